"""A run is read as far as it can be, and what is damaged is counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vizsla.findings import Finding
from vizsla.reports.reading import as_findings, class_names, read_answers, read_run
from vizsla.runs.folder import RunFolder


@pytest.fixture
def small(fabricate: Callable[..., RunFolder], tmp_path: Path) -> RunFolder:
    return fabricate(tmp_path / "run", classes=4, epochs=3, steps=12)


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_a_whole_run_has_no_damage(finished_run: RunFolder) -> None:
    reading = read_run(finished_run)
    assert reading.damage == ()
    assert list(reading.epochs) == finished_run.epochs()
    assert [one["step"] for one in reading.steps] == [one["step"] for one in finished_run.steps()]
    assert reading.status == "finished"
    assert reading.judged is not None
    assert reading.judged.split == "test"
    assert reading.judged.figures.accuracy == (finished_run.evaluation("test") or {})["accuracy"]


def test_damaged_lines_are_skipped_and_counted(small: RunFolder) -> None:
    _append(small.path / "metrics.jsonl", '{"epoch": 4}\n')
    _append(small.path / "steps.jsonl", '{"step": 1\n[1]\n{"step": 13, "loss": null}\n{"step": 14')
    _append(small.path / "findings.jsonl", "\n")
    reading = read_run(small)
    assert reading.damage == (
        "Damaged lines were skipped: 1 line of metrics.jsonl, 4 lines of steps.jsonl and 1 line of "
        "findings.jsonl.",
    )
    assert (len(reading.epochs), len(reading.steps)) == (3, 12)


def test_a_line_that_is_being_written_is_no_damage(small: RunFolder) -> None:
    shutil.rmtree(small.bundle)
    _append(small.path / "steps.jsonl", '{"step": 13, "lo')
    with small.locked():
        assert read_run(small).status == "running"
        assert read_run(small).damage == ()
    assert read_run(small).status == "interrupted"
    assert len(read_run(small).damage) == 1


def test_the_later_line_of_a_step_counts(small: RunFolder) -> None:
    small.append_steps([{"step": 12, "loss": 0.125}])
    assert read_run(small).steps[-1]["loss"] == 0.125


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"per_class": [], "confusion": [[1]]}', '{"per_class": 3, "confusion": []}'],
)
def test_a_damaged_evaluation_leaves_the_other(small: RunFolder, content: str) -> None:
    (small.path / "evaluation-test.json").write_text(content)
    reading = read_run(small)
    assert reading.judged is not None
    assert reading.judged.split == "valid"
    (sentence,) = reading.damage
    assert "evaluation-test.json is damaged" in sentence


def test_a_damaged_evaluation_that_tells_the_status_is_forgiven(small: RunFolder) -> None:
    (small.path / "evaluation-valid.json").write_text("{")
    assert read_run(small).status == "finished"


def test_rows_of_answers_that_were_cut_off_are_left_out(small: RunFolder) -> None:
    whole = len(read_answers(read_run(small), "test"))
    _append(small.path / "predictions-test.csv", "a.jpg,001.A\nb.jpg,001.A,001.A,many\n")
    assert len(read_answers(read_run(small), "test")) == whole == 32
    assert read_answers(read_run(small), "train") == []


def test_classes_of_one_name_are_told_apart(small: RunFolder) -> None:
    facts = small.facts()
    facts["data"]["classes"] = ["001.Akita", "002.Akita", "Pug"]
    small.write_facts({key: value for key, value in facts.items() if key != "format_version"})
    assert list(class_names(read_run(small)).values()) == ["Akita", "Akita (2)", "Pug"]


def test_findings_come_from_lines_as_well() -> None:
    finding = Finding("overfit", "warning", "step 3", "It is.", "Stop.", measured=0.5)
    line = json.loads(json.dumps(finding.to_dict())) | {"of_tomorrow": 1}
    other = {**line, "severity": "catastrophe"}
    assert as_findings([finding, line, {"rule": "overfit"}, other]) == [finding, finding]
