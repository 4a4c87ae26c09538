"""The report of a recorded training, opened as its reader would."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vizsla.debugging import Tensors, watch
from vizsla.debugging.report import lead_of, sections_of, sections_of_tensors
from vizsla.findings import Finding
from vizsla.records import Note, Section
from vizsla.reports.page import write_page

HOSTILE = "<script>alert(1)</script>"
PICTURES = ["Losses", "Gradients", "Updates", "Dead ReLUs", "Weights", "Spread of gradients"]
WITHIN = "() => document.documentElement.scrollWidth <= innerWidth"


class Network(nn.Module):
    """Layers under names that a page must not take for markup."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("conv1", nn.Conv2d(3, 8, 3))
        self.add_module(f"{HOSTILE} act", nn.ReLU())
        self.add_module(f"{HOSTILE} & <b>bold</b>", nn.Conv2d(8, 8, 3))
        self.add_module("pool", nn.AdaptiveAvgPool2d(1))
        self.add_module("flat", nn.Flatten())
        self.add_module("fc", nn.Linear(8, 3))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        for module in self.children():
            pictures = module(pictures)
        return pictures


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    """Thirty steps of a small training, with evaluations, and one whose loss is no number."""
    path = tmp_path_factory.mktemp("debug") / "run"
    torch.manual_seed(0)
    network, loss_fn = Network(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    pictures, labels = torch.randn(6, 3, 12, 12), torch.tensor([0, 1, 2] * 2)
    with watch(
        network, path, loss_fn=loss_fn, optimizer=optimizer, rules=[], every=1,
        capture="weights,gradients,losses,relu_output",
    ) as debugger:  # fmt: skip
        for step in range(30):
            network.train()
            optimizer.zero_grad()
            loss_fn(network(pictures * (float("inf") if step == 29 else 1)), labels).backward()
            optimizer.step()
            debugger.step()
            if step % 10 == 4:
                network.eval()
                with torch.no_grad():
                    loss_fn(network(pictures), labels)
                debugger.step()
    return Tensors(path)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_section_is_drawn_and_fits(
    recording: Tensors, tmp_path: Path, open_page: Any, width: int, dark: bool
) -> None:
    found = [Finding("dead_relu", "warning", HOSTILE, "Units are dead.", "Wait.", 0.67, 0.5)]
    sections = sections_of(recording, found)
    write_page(tmp_path / "page.html", "Debugging", lead_of(recording, found), sections)
    page = open_page(tmp_path / "page.html", width, dark)
    headings = page.locator("main h2").all_inner_texts()
    assert headings == ["Debugger findings", *PICTURES, "Recorded"]
    assert page.locator(".figure").count() == len(PICTURES)
    assert page.locator(".figure.failed").count() == 0
    assert page.evaluate(WITHIN)
    (note,) = page.get_by_role("list").get_by_role("listitem").filter(has_text="dead_relu").all()
    assert note.locator("h3").inner_text().split(maxsplit=1) == [
        "warning", f"dead_relu · {HOSTILE} · measured 0.67 (threshold 0.5)",
    ]  # fmt: skip
    assert note.locator("p").inner_text() == "Units are dead.\nWait."


def test_a_page_that_gains_room_is_drawn_as_if_it_always_had_it(
    recording: Tensors, tmp_path: Path, open_page: Any
) -> None:
    sections = [one for one in sections_of(recording, []) if one.title == "Gradients"]
    write_page(tmp_path / "page.html", "Debugging", "", sections)
    places = """() => [...document.querySelectorAll(".infolayer text, .heatmaplayer image")].map(
        (one) => [one.textContent, Math.round(one.getBoundingClientRect().left)])"""
    wanted = open_page(tmp_path / "page.html", 1280).evaluate(places)
    page = open_page(tmp_path / "page.html", 390)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_function("document.querySelector('.figure')._fullLayout?.width > 600")
    page.wait_for_timeout(500)
    assert page.evaluate(places) == wanted


@pytest.mark.parametrize("dark", [False, True])
def test_severities_can_be_read_on_their_ground(tmp_path: Path, open_page: Any, dark: bool) -> None:
    notes = tuple(Note(tone, "rule · here", "Words.") for tone in ("error", "warning", "info"))
    write_page(tmp_path / "page.html", "Notes", "", [Section("Findings", notes=notes)])
    page = open_page(tmp_path / "page.html", 390, dark)
    ground = luminance(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
    words = page.locator(".notes strong").all()
    assert [word.inner_text() for word in words] == ["error", "warning", "info"]
    for word in words:
        ink = luminance(word.evaluate("one => getComputedStyle(one).color"))
        contrast = (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05)
        assert contrast >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, 0 to 1, as WCAG 2 reckons it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_names_of_layers_are_shown_as_text(
    recording: Tensors, tmp_path: Path, open_page: Any
) -> None:
    sections = sections_of(recording, [])
    write_page(tmp_path / "page.html", "Debugging", lead_of(recording, []), sections)
    page = open_page(tmp_path / "page.html", 1280)
    gradients = page.locator("section", has=page.locator("h2", has_text="Gradients"))
    labels = gradients.locator(".ytick text").all_text_contents()
    assert {"conv1.weight", "conv1.bias", "fc.weight", "fc.bias"} < set(labels)
    (hostile,) = [one for one in labels if one.endswith("<b>bold</b>.weight")]
    assert hostile.startswith("<script>")


def test_hovering_tells_the_norm_of_a_layer(
    recording: Tensors, tmp_path: Path, open_page: Any
) -> None:
    sections = [one for one in sections_of(recording, []) if one.title == "Gradients"]
    write_page(tmp_path / "page.html", "Debugging", "", sections)
    page = open_page(tmp_path / "page.html", 1280)
    # The cell of the first layer at step 10, by Plotly's own axes.
    spot = page.evaluate(
        """() => {
            const place = document.querySelector(".figure");
            const { xaxis, yaxis } = place._fullLayout;
            const { left, top } = place.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.l2p(10), top + yaxis._offset + yaxis.c2p(0)];
        }"""
    )
    page.mouse.move(*spot)
    page.wait_for_selector(".hoverlayer .hovertext")
    value = recording.tensor("gradient/conv1.weight").reduction_value(10, "l2")
    told = page.locator(".hoverlayer .hovertext").text_content()
    assert "conv1.weight" in told
    assert f"step 10: {value:.3g}" in told


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    ("regex", "titles"),
    [
        (r"gradient/.*conv1.weight|Loss", ["Losses", "Means", "Norms", "Histograms"]),
        ("weight|bias", ["Norms"]),
    ],
)
def test_pictures_of_chosen_tensors_are_drawn(
    recording: Tensors, tmp_path: Path, open_page: Any, width: int, regex: str, titles: list[str]
) -> None:
    write_page(tmp_path / "page.html", "Tensors", "", sections_of_tensors(recording, regex))
    page = open_page(tmp_path / "page.html", width)
    assert page.locator("main h2").all_inner_texts() == [*titles, "Tensors"]
    assert page.locator(".figure").count() == len(titles)
    assert page.locator(".figure.failed").count() == 0
    assert page.evaluate(WITHIN)
