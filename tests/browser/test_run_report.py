"""The report of a run, and of runs beside one another, opened as their reader would."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vizsla.findings import Finding
from vizsla.records import Section, Tile
from vizsla.reports import comparison
from vizsla.reports.page import write_page
from vizsla.reports.run_page import compose
from vizsla.runs.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Page

SCRIPT, BOLD = "<script>alert(1)</script>", "<b>x</b> & <br>"
FINDINGS = [
    Finding("dead_relu", "error", SCRIPT, f"A layer is dead: {SCRIPT}.", "Lower the rate.", 0.9),
    Finding("overfit", "warning", "step 3", "The gap is wide.", "Add augmentation, or stop."),
    Finding("class_imbalance", "warning", "train", "Rare classes are rare.", "Add pictures."),
]
TITLES = [
    "Summary", "Learning curves", "Classes", "Confused classes", "Confusion matrix",
    "Most wrong pictures", "Debugger", "Profile", "Data", "Other findings", "Settings",
    "Versions and hardware", "Reproduce",
]  # fmt: skip
WIDE, PHONE = 1280, 390
# Each element that has text of its own, with its colour and what lies under it.
INKS = """() => [...document.querySelectorAll("body *")].filter((one) =>
    !one.closest("script, style, noscript, .js-plotly-plot, .skip, caption") &&
    one.getClientRects().length &&
    [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())
).map((one) => {
    let under = one;
    const clear = (colour) => colour === "transparent" || /, 0\\)$/.test(colour);
    while (under && clear(getComputedStyle(under).backgroundColor)) under = under.parentElement;
    const ground = getComputedStyle(under ?? document.documentElement).backgroundColor;
    return [one.textContent.trim().slice(0, 40), getComputedStyle(one).color, ground];
})"""
FIGURE_INKS = """() => [...document.querySelectorAll(".figure text")].map((one) =>
    [one.textContent, getComputedStyle(one).fill,
     getComputedStyle(document.documentElement).backgroundColor])"""


def _hostile(run: RunFolder, folder: Path) -> RunFolder:
    """A copy of a run two of whose three classes have names that a page must not take for markup,
    with more pictures of one class than of the others."""
    copy = RunFolder(Path(shutil.copytree(run.path, folder)))
    facts = {key: value for key, value in copy.facts().items() if key != "format_version"}
    before = facts["data"]["classes"]
    renamed = dict(zip(before, (SCRIPT, BOLD, before[2])))
    facts["data"]["classes"] = list(renamed.values())
    copy.write_facts(facts)
    for split in ("valid", "test"):
        evaluation = copy.evaluation(split) or {}
        for one, name in zip(evaluation["per_class"], renamed.values()):
            one["class_name"] = name
        evaluation["confusion"] = [[3, 1, 0], [2, 2, 0], [0, 1, 3]]
        path = copy.path / f"predictions-{split}.csv"
        answers = [(one["path"], renamed[one["label"]], SCRIPT, one["confidence"])
                   for one in csv.DictReader(io.StringIO(path.read_text()))]  # fmt: skip
        copy.write_evaluation(split, evaluation, answers)
    with copy.catalogue.open(newline="") as file:
        rows = list(csv.reader(file))
    rows = [[path, renamed.get(label, label), split] for path, label, split in rows]
    fewer = next(at for at, row in enumerate(rows) if row[2] == "train")
    with copy.catalogue.open("w", newline="") as file:
        csv.writer(file).writerows(rows[:fewer] + rows[fewer + 1 :])
    return copy


@pytest.fixture(scope="module")
def hostile_run(finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return _hostile(finished_run, tmp_path_factory.mktemp("hostile") / "run <b>bold<")


@pytest.fixture(scope="module")
def report(hostile_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with everything that a run may have. Do not change it."""
    debug, profile = [Section("Debugger", "Nothing.")], [Section("Profile", "Nothing.")]
    lead, sections = compose(hostile_run, FINDINGS, debug, profile, [Tile("Energy", "0.012 kWh")])
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, hostile_run.name, lead, sections)
    return path


def _section(page: Page, title: str) -> Any:
    return page.locator("section", has=page.get_by_role("heading", name=title, exact=True))


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(...)`, 0 to 1, as WCAG 2 reckons it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_every_section_is_there_drawn_and_fits(
    report: Path, open_page: Any, width: int, dark: bool
) -> None:
    page = open_page(report, width, dark)
    assert page.locator("main h2").all_inner_texts() == TITLES
    assert page.locator(".figure").count() == 3
    assert page.locator(".figure.failed").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every((one) => one.naturalWidth > 0)")


@pytest.mark.parametrize(("width", "height"), [(WIDE, 900), (PHONE, 844)])
def test_the_summary_fits_one_screen(report: Path, open_page: Any, width: int, height: int) -> None:
    box = _section(open_page(report, width), "Summary").bounding_box()
    assert box is not None
    assert box["height"] <= height


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_all_text_can_be_read_on_its_ground(report: Path, open_page: Any, dark: bool) -> None:
    page = open_page(report, WIDE, dark)
    inks = page.evaluate(INKS) + page.evaluate(FIGURE_INKS)
    assert len(inks) > 100
    faint = [(text, contrast(ink, ground)) for text, ink, ground in inks]
    assert [one for one in faint if one[1] < 4.5] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_counts_can_be_read_on_any_cell(report: Path, open_page: Any, dark: bool) -> None:
    page = open_page(report, WIDE, dark)
    counts = _section(page, "Confusion matrix").locator(".heatmaplayer text, .hm text")
    ink = counts.first.evaluate("one => getComputedStyle(one).fill")
    assert sorted(counts.all_text_contents()) == ["1", "1", "2", "2", "3", "3"]
    scale = page.evaluate(
        """() => [...document.querySelectorAll(".figure")].flatMap((one) => one._fullData)
            .find((one) => one.type === "heatmap").colorscale.map(([, colour]) => {
                const pen = document.createElement("canvas").getContext("2d");
                pen.fillStyle = colour;
                pen.fillRect(0, 0, 1, 1);
                return `rgb(${pen.getImageData(0, 0, 1, 1).data.slice(0, 3).join(",")})`;
            })"""
    )
    assert min(contrast(ink, colour) for colour in scale) >= 4.5


def test_names_of_classes_are_shown_as_text(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    names = _section(page, "Classes").locator("tbody th").all_inner_texts()
    assert {SCRIPT, BOLD} < set(names)
    labels = _section(page, "Confusion matrix").locator(".ytick text").all_text_contents()
    assert {"<script>alert(1)</script>", "<b>x</b> & <br>"} < set(labels)
    labels = _section(page, "Data").locator(".ytick text").all_text_contents()
    assert {"<script>alert(1)</script>", "<b>x</b> & <br>"} < set(labels)
    assert "taken for " + SCRIPT in _section(page, "Most wrong pictures").inner_text()
    assert page.locator("main b").count() == 0


def test_hovering_tells_who_was_taken_for_whom(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    figure = _section(page, "Confusion matrix").locator(".figure")
    figure.scroll_into_view_if_needed()
    spot = figure.evaluate(
        """(place) => {
            const { xaxis, yaxis } = place._fullLayout;
            const { left, top } = place.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.c2p(0), top + yaxis._offset + yaxis.c2p(1)];
        }"""
    )
    page.mouse.move(*spot)
    page.wait_for_selector(".hoverlayer .hovertext")
    told = page.locator(".hoverlayer .hovertext").text_content()
    assert told == f"{BOLD}, answered {SCRIPT}: 2 of 4 (50.0 %)"


def test_a_part_of_the_matrix_can_be_seen_larger(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    figure = _section(page, "Confusion matrix").locator(".figure")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".nsewdrag").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function(
        """() => [...document.querySelectorAll(".figure")].some((one) =>
            one._fullData[0].type === "heatmap" && one._fullLayout.xaxis.range[1] < 2)"""
    )


def _column(page: Page, number: int) -> list[str]:
    rows = _section(page, "Classes").locator("tbody tr").all()
    return [row.locator("th, td").nth(number).inner_text() for row in rows]


def test_tables_are_sorted_by_mouse(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    before = _column(page, 4)
    assert before == sorted(before)
    head = _section(page, "Classes").get_by_role("columnheader", name="F1")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert _column(page, 4) == before[::-1]
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert _column(page, 4) == before
    _section(page, "Classes").get_by_role("button", name="class").click()
    assert head.get_attribute("aria-sort") is None
    assert _column(page, 0)[:2] == [BOLD, SCRIPT]


def test_tables_are_sorted_by_keyboard(report: Path, open_page: Any) -> None:
    page = open_page(report, PHONE)
    button = _section(page, "Classes").get_by_role("button", name="recall")
    button.focus()
    page.keyboard.press("Enter")
    shares = [float(one.removesuffix(" %")) for one in _column(page, 3)]
    assert shares == sorted(shares, reverse=True)
    page.keyboard.press("Space")
    shares = [float(one.removesuffix(" %")) for one in _column(page, 3)]
    assert shares == sorted(shares)


def test_numbers_sort_as_numbers_and_gaps_come_last(tmp_path: Path, open_page: Any) -> None:
    cells = ("10", "–", "9", "1,024", "-3", "")
    rows = tuple((f"row {at}", cell) for at, cell in enumerate(cells))
    section = Section("Classes", columns=("name", "n"), rows=rows, sortable=True)
    write_page(tmp_path / "page.html", "Table", "", [section])
    page = open_page(tmp_path / "page.html", WIDE)
    page.get_by_role("button", name="n", exact=True).click()
    assert _column(page, 1) == ["1,024", "10", "9", "-3", "–", ""]
    page.get_by_role("button", name="n", exact=True).click()
    assert _column(page, 1) == ["-3", "9", "10", "1,024", "–", ""]


def test_amounts_that_are_less_or_more_sort_as_numbers(tmp_path: Path, open_page: Any) -> None:
    cells = ("11.0 %", "<0.1 %", ">99.9 %", "nan", "9.0 %")
    rows = tuple((f"row {at}", cell) for at, cell in enumerate(cells))
    section = Section("Classes", columns=("name", "n"), rows=rows, sortable=True)
    write_page(tmp_path / "page.html", "Table", "", [section])
    page = open_page(tmp_path / "page.html", WIDE)
    page.get_by_role("button", name="n", exact=True).click()
    assert _column(page, 1) == [">99.9 %", "11.0 %", "9.0 %", "<0.1 %", "nan"]


def test_classes_called_as_a_script_calls_things_have_their_row(
    finished_run: RunFolder, tmp_path: Path, open_page: Any
) -> None:
    run = RunFolder(Path(shutil.copytree(finished_run.path, tmp_path / "run")))
    evaluation = run.evaluation("test") or {}
    names = ("constructor", "__proto__", "$x^2$")
    for one, name in zip(evaluation["per_class"], names):
        one["class_name"] = name
    run.write_evaluation("test", {**evaluation, "confusion": [[3, 1, 0], [2, 2, 0], [0, 1, 3]]}, [])
    write_page(tmp_path / "page.html", "Names", "", compose(run, [], [], [], [])[1])
    page = open_page(tmp_path / "page.html", WIDE)
    matrix = _section(page, "Confusion matrix")
    labels = matrix.locator(".ytick text").all_text_contents()
    assert {one.strip("\u200b") for one in labels} == set(names)
    counts = matrix.locator(".heatmaplayer text, .hm text").all_text_contents()
    assert sorted(counts) == ["1", "1", "2", "2", "3", "3"]


def test_code_that_cannot_reach_the_clipboard_is_selected(report: Path, open_page: Any) -> None:
    page = open_page(report, WIDE)
    block = _section(page, "Reproduce").locator(".code")
    button = block.get_by_role("button")
    button.click()
    page.wait_for_function("document.querySelectorAll('.code button')[0].textContent != 'Copy'")
    code = block.locator("code").text_content()
    assert "vizsla train" in code
    assert page.evaluate("getSelection().toString().trim()") == code


def test_a_phone_shows_what_to_do_next_on_its_first_screen(
    finished_run: RunFolder, tmp_path: Path, open_page: Any
) -> None:
    tiles = [Tile(name, "0.012 kWh", "estimated") for name in ("Step", "Waiting", "Energy", "Cost")]
    lead, sections = compose(finished_run, FINDINGS[1:2], [], [], tiles)
    write_page(tmp_path / "page.html", finished_run.name, lead, sections)
    note = _section(open_page(tmp_path / "page.html", PHONE), "Summary").locator(".notes li").first
    box = note.bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 844


def test_contents_of_a_phone_are_one_line_that_stays(report: Path, open_page: Any) -> None:
    page = open_page(report, PHONE)
    nav = page.locator("nav").bounding_box()
    assert nav is not None
    assert nav["height"] < 60
    page.locator("nav a", has_text="Reproduce").click()
    page.wait_for_function("scrollY > 1000")
    nav, head = (page.locator(one).last.bounding_box() for one in ("nav", "main h2"))
    assert nav is not None
    assert head is not None
    assert abs(nav["y"]) < 1
    assert head["y"] >= nav["height"]


def test_a_page_without_figures_sorts_as_well(tmp_path: Path, open_page: Any) -> None:
    section = Section("Classes", columns=("a",), rows=(("b",), ("a",)), sortable=True, code="ls")
    write_page(tmp_path / "page.html", "Table", "", [section])
    page = open_page(tmp_path / "page.html", WIDE)
    page.get_by_role("button", name="a", exact=True).click()
    assert _column(page, 0) == ["a", "b"]
    assert page.evaluate("typeof Plotly") == "undefined"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, PHONE])
def test_runs_beside_one_another_are_drawn_and_fit(
    hostile_run: RunFolder,
    finished_run: RunFolder,
    tmp_path: Path,
    open_page: Any,
    width: int,
    dark: bool,
) -> None:
    other = RunFolder(Path(shutil.copytree(hostile_run.path, tmp_path / "other")))
    evaluation = json.loads((other.path / "evaluation-test.json").read_text())
    evaluation["per_class"][0]["f1"] = 0.125
    evaluation["accuracy"] = 0.99
    (other.path / "evaluation-test.json").write_text(json.dumps(evaluation))
    lead, sections = comparison.sections_of([hostile_run, other, finished_run])
    write_page(tmp_path / "page.html", "Runs", lead, sections)
    page = open_page(tmp_path / "page.html", width, dark)
    assert page.locator(".figure").count() == 2
    assert page.locator(".figure.failed").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert SCRIPT in page.locator(".ytick text").all_text_contents()
    assert page.locator("main b").count() == 0
    inks = page.evaluate(INKS) + page.evaluate(FIGURE_INKS)
    assert [one for one in inks if contrast(one[1], one[2]) < 4.5] == []


def test_a_page_of_many_figures_answers_before_all_are_drawn(
    report: Path, tmp_path: Path, hostile_run: RunFolder, open_page: Any
) -> None:
    _, sections = compose(hostile_run, [], [], [], [])
    curves = next(one for one in sections if one.title == "Learning curves")
    write_page(tmp_path / "page.html", "Curves", "", [curves] * 20)
    started = time.perf_counter()
    page = open_page(tmp_path / "page.html", WIDE)
    assert time.perf_counter() - started < 30
    assert page.locator(".figure svg.main-svg .infolayer").count() >= 20
