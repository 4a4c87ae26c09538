"""Judging: what is new is told once, and a bad rule harms no other."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.debugging.judging import Judge, judge_record, judge_run
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.choosing import choose_rules
from vizsla.debugging.settings import DebugSettings, read_settings, write_settings
from vizsla.debugging.store import TensorWriter
from vizsla.debugging.tensors import Tensors
from vizsla.errors import RunError, StorageError
from vizsla.findings import Finding, identity_of
from vizsla.runs.folder import RunFolder

GOOD = Finding("good", "warning", "step 5", "It is so.", "Do this.", 1.0, 0.0)


def good(record: Any) -> list[Finding]:
    return [GOOD]


def leaves(record: Any) -> list[Finding]:
    sys.exit("enough")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder.at(tmp_path / "judged")
    made.write_facts({})
    return made


BAD: dict[str, Any] = {
    "texts": lambda record: ["loss is high"],
    "a lone finding": lambda record: GOOD,
    "an unknown severity": lambda record: [replace(GOOD, severity="fatal")],
    "a set as evidence": lambda record: [replace(GOOD, evidence={"layers": {"a"}})],
    "an array as evidence": lambda record: [replace(GOOD, evidence={"values": np.ones(3)})],
    "a text as a measure": lambda record: [replace(GOOD, measured="high")],
    "no place": lambda record: [replace(GOOD, where=None)],
    "an end": leaves,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rule_is_told_of_once_and_the_others_judge_on(
    kind: str, run: RunFolder, make_record: Any
) -> None:
    def bad(record: Any) -> Any:
        return BAD[kind](record)

    judge, record = Judge(choose_rules([bad, good]), run), make_record(losses=[1.0])
    told = judge.new_findings(record)
    assert [(one.rule, one.where) for one in told] == [("bad", "rule"), ("good", "step 5")]
    assert "failed and judges no more" in told[0].meaning
    assert judge.new_findings(record) == []
    assert [one["rule"] for one in run.findings()] == ["bad", "good"]
    assert [one.rule for one in judge_record(choose_rules([bad, good]), record)] == ["bad", "good"]


def test_numbers_of_numpy_and_torch_may_be_evidence(run: RunFolder, make_record: Any) -> None:
    import torch

    def numbers(record: Any) -> list[Finding]:
        return [replace(GOOD, measured=torch.tensor(2.0), evidence={"most": np.float32(3)})]

    (told,) = Judge(choose_rules([numbers]), run).new_findings(make_record(losses=[1.0]))
    assert told.measured == 2.0
    assert run.findings()[0]["evidence"] == {"most": 3.0}


def test_findings_that_cannot_be_written_are_told_and_written_later(
    run: RunFolder, make_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no space")

    judge, record = Judge(choose_rules([good]), run), make_record(losses=[1.0])
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_findings", full)
        assert [one.rule for one in judge.new_findings(record)] == ["good"]
    assert run.findings() == []
    assert judge.new_findings(record) == []
    assert [one["rule"] for one in run.findings()] == ["good"]


def test_run_lists_each_finding_that_was_told_and_once(run: RunFolder) -> None:
    def found(where: str, severity: Any = "warning", **evidence: Any) -> Finding:
        return replace(GOOD, where=where, severity=severity, evidence=evidence)

    run.append_findings([found("training", cause="nan"), found("training", cause="inf")])
    run.append_findings([found("fc, step 5", layer="fc"), found("fc, step 9", layer="fc")])
    run.append_findings([found("step 5"), found("step 9"), found("valid"), found("valid", "error")])
    assert [one["where"] for one in run.findings()] == [
        "training", "training", "fc, step 9", "step 9", "valid", "valid",
    ]  # fmt: skip
    assert len({identity_of(one) for one in run.findings()}) == 6


def test_resumed_run_is_silent_since_it_was_resumed(run: RunFolder, make_record: Any) -> None:
    made = make_record(losses=[1.0] * 3)
    path = made.tensors.path
    lines = [json.loads(line) for line in (path / "tensors.jsonl").read_text().splitlines()]
    for line in lines:
        line["time"] = time.time() - 9000
    (path / "tensors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "run.toml").write_text("format_version = 1\n")
    old = TrainingRecord.of(RunFolder(path), Tensors(path), running=True)
    assert old.seconds_silent == pytest.approx(9000, abs=60)
    TensorWriter(path, 3, {})
    resumed = TrainingRecord.of(RunFolder(path), Tensors(path), running=True)
    assert resumed.seconds_silent == pytest.approx(0, abs=60)
    assert TrainingRecord.of(RunFolder(path), Tensors(path), running=False).seconds_silent is None


def test_run_that_hangs_before_its_first_step_is_silent(run: RunFolder) -> None:
    TensorWriter(run.path, 0, {})
    record = TrainingRecord.of(run, Tensors(run.path), running=True)
    assert record.seconds_silent == pytest.approx(0, abs=60)


def test_opening_a_run_runs_no_code_that_it_names(
    make_record: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.py"
    own.write_text("raise SystemExit('this must not run')\n")
    run = RunFolder(make_record(losses=[1.0] * 3).tensors.path)
    run.write_facts({})
    (run.path / "debug.json").write_text(json.dumps({"rules": f"overfit,{own}:mine:most=2,x=3"}))
    assert judge_run(run, None).findings == []
    assert f"--rule {own}:mine:most=2:x=3" in capsys.readouterr().err


def test_files_of_rules_are_kept_by_their_full_paths(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_settings(run, DebugSettings(rules="overfit:patience=2,own.py:mine,most=2"))
    kept = read_settings(run)
    assert kept is not None
    assert kept.rules == f"overfit:patience=2,{tmp_path / 'own.py'}:mine:most=2"
    write_settings(run, kept)
    assert read_settings(run) == kept


@pytest.mark.parametrize("content", ["{", "[]", '{"colour": 1}', '{"capture_budget_mb": "x"}'])
def test_damaged_settings_are_one_sentence(run: RunFolder, content: str) -> None:
    (run.path / "debug.json").write_text(content)
    with pytest.raises(RunError, match=r"debug\.json is damaged"):
        read_settings(run)
