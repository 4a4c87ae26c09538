"""Judging a run while it is recorded and afterwards: rules, and which findings are new.

Rules may be users' own: what one of them raises, or returns that is no finding, becomes a finding
about the rule, and the others judge on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.choosing import AnyRule, RuleLike, built_in_alone, choose_rules
from vizsla.debugging.settings import read_settings
from vizsla.debugging.tensors import open_tensors
from vizsla.errors import RunError, SettingError, StorageError
from vizsla.findings import SEVERITIES, Finding, identity_of, worst_first
from vizsla.runs.files import plain_number
from vizsla.runs.folder import RunFolder

_log = logging.getLogger("vizsla")
# What a rule of a user's may raise: anything, and one that leaves the process is not to.
_ANYTHING = (Exception, SystemExit)


class Judge:
    """Applies rules to a run's record as it grows. A rule that fails is told of once and left out.

    What is in the run's `findings.jsonl` already is known, so that a run that is taken up again is
    not stopped for what it was stopped for before.
    """

    def __init__(self, rules: Sequence[AnyRule], run: RunFolder) -> None:
        self._rules, self._run = list(rules), run
        self._known = {identity_of(one) for one in run.findings()}
        self._unwritten: list[Finding] = []

    def new_findings(self, record: TrainingRecord) -> list[Finding]:
        """What nobody was told of yet, worst first; written into the run."""
        new: list[Finding] = []
        for rule in list(self._rules):
            try:
                found = _findings_of(rule, record)
            except _ANYTHING as error:
                self._rules.remove(rule)
                found = [_failure(rule, error)]
            for finding in found:
                identity = identity_of(finding.to_dict())
                if identity not in self._known:
                    self._known.add(identity)
                    new.append(finding)
        self._write(new)
        return worst_first(new)

    def _write(self, new: list[Finding]) -> None:
        """Write findings, with those that could not be written before."""
        had_failed = bool(self._unwritten)
        self._unwritten += new
        try:
            self._run.append_findings(self._unwritten)
            self._unwritten = []
        except StorageError as error:  # they are told all the same
            if not had_failed:
                _log.warning("%s", error)


def judge_record(rules: Iterable[AnyRule], record: TrainingRecord) -> list[Finding]:
    """Everything that rules find in a record, worst first, and which of them failed. Raises
    `RunError` and `SettingError` where a rule was told of a run or setting that there is not."""
    found: list[Finding] = []
    for rule in rules:
        try:
            found += _findings_of(rule, record)
        except (RunError, SettingError):
            raise
        except _ANYTHING as error:
            found.append(_failure(rule, error))
    return worst_first(found)


@dataclass(frozen=True)
class Judgement:
    """What rules found in a run's record, worst first."""

    rules: list[AnyRule]
    record: TrainingRecord
    findings: list[Finding]


def judge_run(run: RunFolder, rules: str | Sequence[RuleLike] | None = None) -> Judgement:
    """Judge a run by rules, or by the built-in ones that it was trained with. Raises `RunError` if
    nothing was captured."""
    chosen = choose_rules(rules) if rules is not None else rules_of_run(run)
    tensors = open_tensors(run.path)
    record = TrainingRecord.of(run, tensors, run.status() == "running")
    return Judgement(chosen, record, judge_record(chosen, record))


def rules_of_run(run: RunFolder) -> list[AnyRule]:
    """The rules that a run was trained with, but for users' own: to look at a run that came from
    elsewhere must not run code that it names. A hint says how to judge by them."""
    settings = read_settings(run)
    if settings is None or settings.rules is None:
        return choose_rules(None)
    built_in, own = built_in_alone(settings.rules)
    if own:
        _log.warning(
            "%s was also judged by rules of its own files, which are left out; judge by them with "
            "%s", run.path, " ".join(f"--rule {one}" for one in own),
        )  # fmt: skip
    return choose_rules(built_in)


def _findings_of(rule: AnyRule, record: TrainingRecord) -> list[Finding]:
    """What a rule finds. Raises whatever it raises, and `TypeError` or `ValueError` where a finding
    of it cannot be written."""
    return [_checked(found) for found in rule.judge(record)]


def _checked(found: Any) -> Finding:
    """The finding, of plain numbers, once it can be written, told and sorted."""
    if not isinstance(found, Finding):
        raise TypeError(f"it must give findings, and gave {found!r:.100}")
    if found.severity not in SEVERITIES:
        raise ValueError(f"the severity {found.severity!r} is none of {', '.join(SEVERITIES)}")
    for name in ("rule", "where", "meaning", "advice"):
        if not isinstance(getattr(found, name), str):
            raise TypeError(f"{name} must be a text, and is {getattr(found, name)!r:.100}")
    if not isinstance(found.evidence, Mapping):
        raise TypeError(f"evidence must be a mapping, and is {found.evidence!r:.100}")
    plain = replace(found, measured=_plain(found.measured), threshold=_plain(found.threshold))
    json.dumps(plain.to_dict(), default=plain_number)
    return plain


def _plain(value: Any) -> float | None:
    return None if value is None else float(value)


def _failure(rule: AnyRule, error: BaseException) -> Finding:
    return Finding(
        rule.name,
        "warning",
        "rule",
        f"The rule {rule.name} failed and judges no more: {type(error).__name__}: {error}",
        "Mend the rule, and judge the run again with vizsla debug.",
        evidence={"cause": "failed"},
    )
