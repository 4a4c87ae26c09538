"""Judging a run while it is recorded and afterwards: rules, and which findings are new."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.choosing import AnyRule, RuleLike, choose_rules
from vizsla.debugging.settings import read_settings
from vizsla.debugging.tensors import open_tensors
from vizsla.errors import StorageError
from vizsla.findings import Finding, identity_of, worst_first
from vizsla.judging import ANYTHING, failure_of, findings_of, judge_safely
from vizsla.rulebook import built_in_alone
from vizsla.runs.folder import RunFolder

_log = logging.getLogger("vizsla")
_VERB = "debug"


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
                found = findings_of(rule, record)
            except ANYTHING as error:
                self._rules.remove(rule)
                found = [failure_of(rule, error, _VERB)]
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
    return judge_safely(rules, record, _VERB)


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
