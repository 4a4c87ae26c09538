"""Several runs on one page: what is better, what differs, and what does not compare."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vizsla.errors import RunError
from vizsla.records import Section
from vizsla.reports.comparison import sections_of
from vizsla.reports.page import write_page
from vizsla.runs.folder import RunFolder

TITLES = [
    "Figures", "Learning curves", "Settings", "Data", "Gains and losses by class", "Time",
    "Versions and hardware",
]  # fmt: skip
RunMaker = Callable[..., RunFolder]


@pytest.fixture
def two(fabricate: RunMaker, tmp_path: Path) -> list[RunFolder]:
    """Runs whose test pictures were answered differently."""
    return [
        fabricate(tmp_path / name, classes=6, epochs=3, steps=9, pictures=20, seed=seed)
        for seed, name in enumerate(("first", "second"))
    ]


def _compared(*runs: RunFolder) -> tuple[str, dict[str, Section]]:
    lead, sections = sections_of(runs)
    assert [section.title for section in sections] == TITLES
    write_page(runs[0].path.parent / "page.html", "Runs", lead, sections)
    return lead, {section.title: section for section in sections}


def _rewrite(run: RunFolder, table: str, **changes: object) -> None:
    facts = {key: value for key, value in run.facts().items() if key != "format_version"}
    run.write_facts({**facts, table: {**facts[table], **changes}})


def test_the_best_of_each_figure_stands_out(two: list[RunFolder]) -> None:
    lead, sections = _compared(*two)
    accuracies = [(run.evaluation("test") or {})["accuracy"] for run in two]
    winner = accuracies.index(max(accuracies))
    assert f"{100 * max(accuracies):.1f} %, of {two[winner].name}." in lead
    figures = sections["Figures"]
    row = [cells[0] for cells in figures.rows].index("test accuracy")
    assert (row, winner + 1) in figures.best_cells
    assert (row, 2 - winner) not in figures.best_cells
    assert figures.columns == ("figure", "first", "second")


def test_curves_lie_over_one_another(two: list[RunFolder]) -> None:
    section = _compared(*two)[1]["Learning curves"]
    traces = json.loads(section.figure or "")["data"]
    assert [trace["name"] for trace in traces if trace["showlegend"]] == ["first", "second"]
    assert len({trace["line"]["color"] for trace in traces}) == 2


def test_gains_and_losses_are_against_the_first(two: list[RunFolder]) -> None:
    section = _compared(*two)[1]["Gains and losses by class"]
    before, after = (
        {one["class_name"]: one["f1"] for one in (run.evaluation("test") or {})["per_class"]}
        for run in two
    )
    assert section.columns == ("class", "pictures", "first", "second", "change")
    assert section.sortable
    for name, _, one, other, change in section.rows:
        assert (one, other) == (f"{before[name]:.3f}", f"{after[name]:.3f}")
        assert float(change) == pytest.approx(after[name] - before[name], abs=0.0006)
    changes = [float(row[-1]) for row in section.rows]
    assert changes == sorted(changes)
    (bars,) = json.loads(section.figure or "")["data"]
    assert bars["x"] == [pytest.approx(after[y] - before[y], abs=1e-3) for y in bars["y"]]


def test_runs_on_other_pictures_are_warned_of_and_none_is_best(two: list[RunFolder]) -> None:
    _rewrite(two[1], "data", fingerprint="0" * 64, source="/data/cats")
    lead, sections = _compared(*two)
    (note,) = sections["Figures"].notes
    assert note.tone == "error"
    assert "do not compare" in note.head
    assert sections["Figures"].best_cells == frozenset()
    assert "best" not in lead
    assert sections["Data"].rows[0] == ("source", "/data/dogImages", "/data/cats")


def test_settings_that_differ_are_shown(two: list[RunFolder]) -> None:
    _rewrite(two[1], "recipe", lr=0.1, nesterov=True)
    assert _compared(*two)[1]["Settings"].rows == (
        ("lr", "0.003", "0.1"),
        ("nesterov", "no", "yes"),
    )


def test_the_same_run_twice(two: list[RunFolder]) -> None:
    lead, sections = _compared(two[0], two[0])
    assert "more than once" in lead
    assert sections["Figures"].columns == ("figure", "first", "first (2)")
    assert sections["Figures"].best_cells == frozenset()
    assert sections["Gains and losses by class"].figure is None
    assert sections["Settings"].text == "The runs do not differ in these."


def test_classes_that_only_one_has_are_said(
    two: list[RunFolder], fabricate: RunMaker, tmp_path: Path
) -> None:
    wider = fabricate(tmp_path / "wider", classes=8, epochs=1, steps=3)
    text = _compared(two[0], wider)[1]["Gains and losses by class"].text
    assert "Only wider, not first, was judged on Breed number 7 and Breed number 8." in text


def test_runs_without_an_evaluation_have_a_page(two: list[RunFolder]) -> None:
    for path in two[1].path.glob("evaluation-*"):
        path.unlink()
    sections = _compared(*two)[1]
    assert "second has none" in sections["Gains and losses by class"].text
    for path in two[0].path.glob("evaluation-*"):
        path.unlink()
    assert "None of the runs has been evaluated" in _compared(*two)[1]["Figures"].text


def test_a_run_that_goes_on_is_said_to(two: list[RunFolder]) -> None:
    shutil.rmtree(two[1].bundle)
    with two[1].locked():
        lead, _ = _compared(*two)
    assert "second is still training" in lead


def test_a_watched_loop_has_a_place(two: list[RunFolder], tmp_path: Path) -> None:
    watched = RunFolder.at(tmp_path / "watched")
    watched.write_facts({"kind": "watched", "recipe": {}})
    sections = _compared(two[0], watched)[1]
    (note,) = sections["Figures"].notes
    assert "not known" in note.head
    assert "watched" in note.text
    assert "watched has no epochs" in sections["Learning curves"].text


def test_one_run_alone_and_none(two: list[RunFolder]) -> None:
    lead, sections = sections_of(two[:1])
    assert "nothing to compare" in lead
    assert sections
    with pytest.raises(RunError, match="none were given"):
        sections_of([])


def test_names_of_runs_are_escaped_in_figures(two: list[RunFolder]) -> None:
    hostile = RunFolder(Path(shutil.move(two[1].path, two[1].path.parent / "<b>x<")))
    sections = _compared(two[0], hostile, two[0])[1]
    for title in ("Learning curves", "Gains and losses by class"):
        figure = json.loads(sections[title].figure or "")
        assert "&lt;b&gt;x&lt;" in json.dumps(figure["data"])
        assert "<b>" not in json.dumps(figure["data"])
