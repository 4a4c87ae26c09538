"""Runs side by side: what differs, and whether their figures may be compared at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vizsla.records import EpochRecord, SplitMetrics
from vizsla.runs.compare import FIGURES, compare_runs
from vizsla.runs.folder import RunFolder


def _run(
    parent: Path, name: str, recipe: dict[str, Any], data: tuple[str, str] = ("a", "b")
) -> RunFolder:
    run = RunFolder(parent / name)
    run.path.mkdir()
    facts = {"fingerprint": data[0], "division": data[1]}
    run.write_facts({"recipe": recipe, "data": facts})
    return run


def _evaluated(run: RunFolder, split: str, accuracy: float) -> None:
    figures = {"loss": 0.5, "accuracy": accuracy, "top5_accuracy": 1.0, "macro_f1": 0.25}
    run.write_evaluation(split, figures, [])


def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    first = _run(tmp_path, "first", {"epochs": 3, "lr": 0.1, "model": "resnet18"})
    second = _run(tmp_path, "second", {"epochs": 3, "model": "resnet50", "patience": 2})
    comparison = compare_runs([first, second])
    assert comparison.names == ("first", "second")
    assert comparison.settings == {
        "lr": (0.1, None),
        "model": ("resnet18", "resnet50"),
        "patience": (None, 2),
    }


def test_figures_stand_side_by_side_with_gaps(tmp_path: Path) -> None:
    first, second = _run(tmp_path, "first", {}), _run(tmp_path, "second", {})
    _evaluated(first, "valid", 0.75)
    _evaluated(second, "valid", 0.5)
    _evaluated(second, "test", 0.25)
    figures = compare_runs([first, second]).figures
    assert figures["valid accuracy"] == (0.75, 0.5)
    assert figures["test accuracy"] == (None, 0.25)
    assert figures["epochs"] == (0, 0)
    assert list(figures)[:4] == [f"valid {name}" for name in FIGURES]


def test_split_that_no_run_has_is_left_out(tmp_path: Path) -> None:
    run = _run(tmp_path, "first", {})
    assert list(compare_runs([run]).figures) == ["epochs", "training seconds"]


def test_seconds_are_summed_over_the_epochs(tmp_path: Path) -> None:
    run = _run(tmp_path, "first", {})
    figures = SplitMetrics(0.5, 0.5, 1.0, 0.5, 4)
    for epoch in (1, 2, 2):  # the second was repeated after a kill
        run.append_epoch(EpochRecord(epoch, epoch, 0.1, figures, figures, 2.0, 0.5, 0.1, 9.0))
    comparison = compare_runs([run])
    assert comparison.figures["epochs"] == (2,)
    assert comparison.figures["training seconds"] == (5.0,)


@pytest.mark.parametrize(
    ("data", "same"), [(("a", "b"), True), (("x", "b"), False), (("a", "x"), False)]
)
def test_runs_on_other_pictures_or_another_division_are_told_apart(
    tmp_path: Path, data: tuple[str, str], same: bool
) -> None:
    runs = [_run(tmp_path, "first", {}), _run(tmp_path, "second", {}, data)]
    assert compare_runs(runs).same_data is same


def test_finished_run_beside_a_copy_differs_in_nothing(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    copy = RunFolder(Path(shutil.copytree(finished_run.path, tmp_path / "copy")))
    comparison = compare_runs([finished_run, copy])
    assert comparison.settings == {}
    assert comparison.same_data
    assert comparison.figures["epochs"] == (2, 2)
    assert all(left == right for left, right in comparison.figures.values())


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("here", "there"):
        (tmp_path / parent).mkdir()
    first, second = _run(tmp_path / "here", "same", {}), _run(tmp_path / "there", "same", {})
    assert compare_runs([first, second, first]).names == (
        "here/same", "there/same", "here/same (2)",
    )  # fmt: skip
    assert compare_runs([first, first]).names == ("same", "same (2)")


def test_a_loop_that_was_only_watched_stands_beside_a_run(tmp_path: Path) -> None:
    first, second = _run(tmp_path, "first", {"lr": 0.1}), RunFolder(tmp_path / "second")
    second.path.mkdir()
    second.write_facts({"kind": "watched"})
    comparison = compare_runs([first, second])
    assert comparison.settings == {"lr": (0.1, None)}
    assert comparison.figures["epochs"] == (0, 0)
    assert not comparison.same_data


def test_differences_of_data_and_surroundings_are_told(tmp_path: Path) -> None:
    runs = [RunFolder(tmp_path / name) for name in "ab"]
    for at, run in enumerate(runs):
        run.path.mkdir()
        data = {"source": "/d", "classes": ["a"] * (at + 2), "pictures": {"train": at}}
        run.write_facts({"data": data, "versions": {"torch": f"2.{at}"}, "hardware": {"cores": 2}})
    comparison = compare_runs(runs)
    assert comparison.data == {"classes": (2, 3), "train pictures": (0, 1)}
    assert comparison.surroundings == {"torch": ("2.0", "2.1")}


def test_a_damaged_file_hides_nothing_else(tmp_path: Path) -> None:
    first, second = _run(tmp_path, "first", {}), _run(tmp_path, "second", {})
    _evaluated(first, "valid", 0.75)
    damaged = second.path / "evaluation-test.json"
    damaged.write_text("{")
    (second.path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    comparison = compare_runs([first, second])
    assert comparison.figures["valid accuracy"] == (0.75, None)
    assert comparison.damage == (f"{damaged} is damaged and was left out.",)
