"""The report of a profile, opened as its reader would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vizsla.findings import Finding
from vizsla.profiling.recorded import Profile
from vizsla.profiling.report import sections_of
from vizsla.reports.page import write_page

BEGAN = 1_700_000_000.0
HOSTILE = "<script>alert(1)</script>"
FIGURES = ["Where the time went", "Machine over time", "Cores", "Steps"]
WITHIN = "() => document.documentElement.scrollWidth <= innerWidth"
FIGURE = """title => [...document.querySelectorAll("section")]
    .find(one => one.querySelector("h2").textContent.includes(title)).querySelector(".figure")"""
_PHASES = {"data_wait": 0.2, "forward": 0.3, "backward": 0.4, HOSTILE: 0.05, "other": 0.05}


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """400 steps in 20 epochs with an evaluation after each, under names that a page must not take
    for markup. Step 123 is slow, and while it lasts the GPU does nothing."""
    run = tmp_path_factory.mktemp("profiles") / "run"
    run.mkdir()
    time, lines, gpu = BEGAN + 3.0, [], []
    lines += [
        {"kind": "session", "time": BEGAN, "node": "algo-1", "rank": 0},
        {"kind": "span", "name": "import", "time": BEGAN, "seconds": 2.0},
        {"kind": "span", "name": "weights", "time": BEGAN + 2, "seconds": 1.0},
    ]
    for number in range(1, 401):
        seconds = 3.0 if number == 123 else 0.2 + 0.01 * (number % 3)
        if number == 123:
            gpu = [time, time + seconds]
        phases = {name: [share * seconds] for name, share in _PHASES.items()}
        lines.append(
            {"kind": "steps", "step": [number], "time": [time], "seconds": [seconds],
             "phases": phases}
        )  # fmt: skip
        time += seconds
        if number % 20 == 0:
            lines.append({"kind": "span", "name": "evaluation", "time": time, "seconds": 1.0})
            time += 1.0
    write(run / "timeline.jsonl", lines)
    about = {"kind": "about", "node": "algo-1", "host": HOSTILE, "cores": 4, "interval_ms": 500,
             "gpus": [{"name": f"{HOSTILE} & <b>Loom</b>", "memory_bytes": 24e9}]}  # fmt: skip
    samples = [
        {"kind": "sample", "time": at, "cpu": [30.0, 60.0, 90.0, 20.0], "memory_bytes": 8e9,
         "tree_bytes": 2e9, "read_bytes": 3e6, "write_bytes": 1e6, "received_bytes": 1e4,
         "sent_bytes": 1e4,
         "gpus": [{"utilization": 0 if gpu[0] < at < gpu[1] else 80, "memory_bytes": 6e9}]}
        for at in (BEGAN + 0.5 * number for number in range(int((time - BEGAN) * 2)))
    ]  # fmt: skip
    write(run / "profile-algo-1.jsonl", [about, *samples])
    return Profile(run)


@pytest.fixture(scope="module")
def page_of_profile(profile: Profile) -> Path:
    found = [Finding("step_outlier", "warning", HOSTILE, "A step is slow.", "Look.", 14.0, 3.0)]
    path = profile.run / "page.html"
    write_page(path, "Profile", "", sections_of(profile, found, 1.2))
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_section_is_drawn_and_fits(
    page_of_profile: Path, open_page: Any, width: int, dark: bool
) -> None:
    page = open_page(page_of_profile, width, dark)
    assert page.locator(".figure").count() == len(FIGURES)
    assert page.locator(".figure.failed").count() == 0
    assert page.evaluate(WITHIN)
    assert "Loom" in page.locator("main").inner_text()


def test_page_stays_small(page_of_profile: Path) -> None:
    assert page_of_profile.stat().st_size < 6e6


def test_hovering_over_a_step_shows_the_machine_at_that_time(
    page_of_profile: Path, open_page: Any
) -> None:
    page = open_page(page_of_profile, 1280)
    figure = page.evaluate_handle(FIGURE, "Machine over time").as_element()
    figure.evaluate("place => place.scrollIntoView()")  # it is higher than the window
    # The mark of the slow step in the uppermost row, by Plotly's own axes.
    spot = figure.evaluate(
        """place => {
            const steps = place._fullData.find(one => one.name === "step");
            const at = [...steps.customdata].findIndex(one => one[0] === 123);
            const { xaxis, yaxis } = place._fullLayout;
            const { left, top } = place.getBoundingClientRect();
            return [
                left + xaxis._offset + xaxis.l2p(steps.x[at]),
                top + yaxis._offset + yaxis.l2p(steps.y[at]) + 4,
            ];
        }"""
    )
    page.mouse.move(*spot)
    page.wait_for_selector(".hoverlayer .legend")
    told = page.locator(".hoverlayer .legend").text_content()
    for words in (
        "step 123: 3 s",
        "cores 50",
        "memory 8",
        "disk read 3",
        "GPU 0 0.000 %",
        "GPU memory",
    ):
        assert words in told


def test_names_are_shown_as_text(page_of_profile: Path, open_page: Any) -> None:
    page = open_page(page_of_profile, 1280)
    figure = page.evaluate_handle(FIGURE, "Where the time went").as_element()
    labels = figure.evaluate(
        "place => [...place.querySelectorAll('.ytick')].map(one => one.textContent)"
    )
    assert any(label.startswith(HOSTILE) for label in labels)
    assert any(label.startswith("waiting for data") for label in labels)


@pytest.mark.parametrize("dark", [False, True])
def test_words_in_figures_can_be_read_on_their_ground(
    page_of_profile: Path, open_page: Any, dark: bool
) -> None:
    page = open_page(page_of_profile, 1280, dark)
    ground = luminance(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    inks = page.evaluate(
        """() => [...new Set([...document.querySelectorAll(".figure svg text")].filter(
            one => one.textContent && !one.closest(".modebar")).map(
            one => getComputedStyle(one).fill))]"""
    )
    assert inks
    for ink in map(luminance, inks):
        assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, 0 to 1, as WCAG 2 reckons it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
