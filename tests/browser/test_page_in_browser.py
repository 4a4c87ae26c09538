"""A report in a browser: drawn whole, at home on a phone, by day and by night."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import plotly.graph_objects as go
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from vizsla.records import Section
from vizsla.reports.page import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

LONG_PATH = "/studies/" + "a-folder-whose-name-has-no-end" * 5 + "/study.toml"
WIDE, PHONE = 1280, 390


def _study() -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    rate, drop = FloatDistribution(1e-5, 0.1, log=True), FloatDistribution(0.0, 0.5)
    distributions: dict[str, Any] = {
        "learning_rate": rate, "dropout": drop, "optimizer": CategoricalDistribution(["a", "b"])
    }  # fmt: skip
    for number in range(8):
        params = {"learning_rate": 10 ** -(1 + number / 2), "dropout": number / 16}
        study.add_trial(
            optuna.trial.create_trial(
                params={**params, "optimizer": "ab"[number % 2]},
                distributions=distributions,
                value=0.8 - 0.01 * (number - 3) ** 2,
            )
        )
    return study


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each kind of section, among them figures of a small study. Do not change it."""
    study = _study()
    bars = go.Figure(go.Bar(x=[0.5, 0.1], y=["rate", "drop"], orientation="h"))
    bars.update_layout(xaxis_title="share in deciding the validation accuracy")
    lines = go.Figure(
        go.Parcoords(dimensions=[{"label": name, "values": [1, 3, 2]} for name in "abc"])
    )
    slices = optuna.visualization.plot_slice(study)
    slices.update_layout(template="plotly_white", width=2000)
    contour = optuna.visualization.plot_contour(study, params=["learning_rate", "dropout"])
    columns = tuple(f"measure number {number}" for number in range(14))
    rows = tuple(tuple(f"{row + column / 7:.4f}" for column in range(14)) for row in range(5))
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_page(
        path,
        "Eight trials <b>of</b> " + "Donaudampfschifffahrt" * 3,
        "The best of them is the fourth.",
        [
            Section("Trials", "The last is greyed.", columns, rows, frozenset({4})),
            Section("Importances", figure=bars.to_json()),
            Section("Slices", "Each setting alone.", figure=slices.to_json()),
            Section("Contour", figure=contour.to_json()),
            Section("Lines", figure=lines.to_json()),
            Section("Recipe", LONG_PATH, ("what", "value"), (("file", LONG_PATH),)),
        ],
    )
    return path


def _overflow_px(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))


def _brightness(page: Page, selector: str, what: str) -> float:
    """Mean of red, green and blue, 0 to 255, of the first element that matches."""
    script = "(one, what) => getComputedStyle(one)[what].match(/[\\d.]+/g).map(Number)"
    return sum(page.locator(selector).first.evaluate(script, what)[:3]) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_report_is_drawn_whole_and_fits(
    report: Path, open_page: Any, width: int, dark: bool
) -> None:
    page = open_page(report, width, dark=dark)
    assert page.locator(".figure").count() == 4
    for figure in page.locator(".figure").all():
        box = figure.locator("svg.main-svg").first.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 100
    assert "WebGL" not in page.locator("main").inner_text()
    assert _overflow_px(page) <= 0


def test_wide_table_scrolls_in_its_own_box(report: Path, open_page: Any) -> None:
    page = open_page(report, PHONE)
    box = page.locator(".table").first
    box.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.querySelector('.table').scrollLeft > 0")
    assert page.evaluate("scrollX") == 0


def test_contents_lead_to_their_sections(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator(f"section{link.get_attribute('href')}")
        assert target.locator("h2").inner_text() == link.inner_text()
        box = target.locator("h2").bounding_box()
        assert box is not None
        assert 0 <= box["y"] < 900


def test_first_key_leads_past_the_contents(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_figures_follow_the_colour_scheme(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE, dark=True)
    text = ".figure .xtick text"
    assert _brightness(page, "html", "backgroundColor") < 60
    assert _brightness(page, text, "fill") > 180
    at_night = page.evaluate(f"getComputedStyle(document.querySelector('{text}')).fill")
    page.emulate_media(color_scheme="light")
    page.wait_for_function(  # the figures are drawn anew, which takes a while
        f"before => getComputedStyle(document.querySelector('{text}')).fill != before",
        arg=at_night,
    )
    assert _brightness(page, text, "fill") < 80
    assert _brightness(page, "html", "backgroundColor") > 240


def test_paper_is_white_even_at_night(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE, dark=True)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert _brightness(page, "html", "backgroundColor") == 255
    assert _brightness(page, ".figure .xtick text", "fill") < 80


def test_broken_figure_leaves_the_others_standing(tmp_path: Path, open_page: Any) -> None:
    good = go.Figure(go.Bar(x=["</script>", "b"], y=[1, 2])).to_json()
    path = tmp_path / "page.html"
    sections = [Section("Broken", figure="{no JSON"), Section("Good", figure=good)]
    write_page(path, "Figures", "", sections)
    page = open_page(path, WIDE)
    assert page.locator(".failed").count() == 1
    assert len(open_page.complaints) == 1
    open_page.complaints.clear()
    assert page.locator(".figure svg.main-svg").first.is_visible()
