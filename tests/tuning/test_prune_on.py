"""Rules of the debugger that end trials of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vizsla import Settings, tune
from vizsla.cli import run
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import SettingError


def test_trial_that_a_rule_ends_is_pruned_with_its_reason(
    dogs: DrawnDataset, head: Settings, tmp_path: Path
) -> None:
    """One rate is far too high, the other is sound. Rules judge when that costs little of the time
    that has passed, so a busy machine wants a training of more than a few milliseconds."""
    base = head.model_copy(update={"epochs": 300, "batch_size": 8})
    study = tune(
        dogs.folder, {"lr": [0.01, 90.0]}, recipe=base, studies=tmp_path, sampler="grid",
        pruner="none", prune_on="exploding_tensor,learning_rate_too_high",
    )  # fmt: skip
    sick, sound = (
        next(one for one in study.records if one.params["lr"] == rate) for rate in (90.0, 0.01)
    )
    assert sound.status == "finished", sound.reason
    assert sick.status == "pruned"
    assert sick.pruned_by == "learning_rate_too_high"
    assert sick.reason is not None
    assert "learning rate" in sick.reason
    trial = study.folder.trial(sick.number)
    assert json.loads((trial.path / "debug.json").read_text())["on_finding"] == ["stop"]
    assert len(trial.epochs()) < 300
    assert len(study.trials) == 2


def test_rules_of_a_study_are_checked_before_it_is_made(
    dogs: DrawnDataset, head: Settings, search: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SettingError, match="Did you mean overfit"):
        tune(dogs.folder, search, recipe=head, studies=tmp_path / "s", prune_on="overfitt")
    command = ["tune", str(dogs.folder), "--studies", str(tmp_path / "s"), "--search", "lr=1e-4..1"]
    assert run([*command, "--prune-on", "explodes"]) == 2
    assert "no rule 'explodes'" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
