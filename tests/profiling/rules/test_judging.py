"""Judging a run's profile: by the rules that are asked for, a user's own among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vizsla.errors import SettingError
from vizsla.profiling.judging import judge_profile
from vizsla.profiling.recorded import NotProfiled
from vizsla.profiling.rules import DEFAULT_RULES, RULES
from vizsla.profiling.rules.choosing import choose_rules
from vizsla.runs.folder import RunFolder

OWN = """
from vizsla.profiling import ProfileRule


class LongSteps(ProfileRule):
    name = "long_steps"
    most: float = 1.0

    def judge(self, record):
        seconds = record.profile.steps().seconds
        if len(seconds) and seconds.max() > self.most:
            yield self.finding("A step is long.", "Look.", measured=seconds.max(), steps=[1])


def breaks(record):
    return record.nothing
"""


def test_run_without_a_profile_says_how_to_get_one(tmp_path: Path) -> None:
    run = RunFolder.at(tmp_path / "run")
    run.write_facts({})
    with pytest.raises(NotProfiled, match="--profile"):
        judge_profile(run)


def test_own_rules_judge_and_one_that_fails_harms_no_other(
    tmp_path: Path, make_profile: Any
) -> None:
    (own := tmp_path / "mine.py").write_text(OWN)
    record = make_profile(steps=60, phases={"data_wait": 2.0, "forward": 0.5})
    run = RunFolder(record.profile.run)
    run.write_facts({})
    judged = judge_profile(run, f"{own}:LongSteps:most=2,{own}:breaks,data_starved:threshold=0.5")
    assert [rule.name for rule in judged.rules] == ["long_steps", "breaks", "data_starved"]
    assert [one.rule for one in judged.findings] == ["long_steps", "breaks", "data_starved"]
    assert "judge the run again with vizsla profile" in judged.findings[1].advice
    assert len(judged.record.profile.steps()) == 60


def test_default_rules_judge_unless_others_are_named(make_profile: Any) -> None:
    run = RunFolder(make_profile(steps=60, phases={"forward": 0.5}).profile.run)
    run.write_facts({})
    assert [rule.name for rule in judge_profile(run).rules] == list(DEFAULT_RULES)
    assert [rule.name for rule in choose_rules("all")] == list(RULES)
    (outlier,) = choose_rules("StepOutlier:stddev=3:n_outliers=5")
    assert (outlier.stddev, outlier.n_outliers) == (3, 5)  # type: ignore[attr-defined]
    with pytest.raises(SettingError, match="Did you mean step_outlier"):
        choose_rules("step_outliers")
