"""Judging a run's profile by rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vizsla.findings import Finding
from vizsla.judging import judge_safely
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.recorded import open_profile
from vizsla.profiling.rules.choosing import AnyRule, RuleLike, choose_rules
from vizsla.runs.folder import RunFolder

_VERB = "profile"


@dataclass(frozen=True)
class Judgement:
    """What rules found in a run's profile, worst first."""

    rules: list[AnyRule]
    record: ProfileRecord
    findings: list[Finding]


def judge_profile(run: RunFolder, rules: str | Sequence[RuleLike] | None = None) -> Judgement:
    """Judge a run's profile by rules, or by the default ones. Raises `NotProfiled` if there is
    none."""
    chosen = choose_rules(rules)
    record = ProfileRecord.of(run, open_profile(run.path))
    return Judgement(chosen, record, judge_safely(chosen, record, _VERB))
