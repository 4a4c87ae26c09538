"""Trials as people see them: a record each, ranked, on a leaderboard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from vizsla.runs.files import write_text
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.settings import OBJECTIVES

Status = Literal["finished", "pruned", "failed", "stopped", "running", "refused"]

# Names of what is kept with a trial in Optuna's storage.
SECONDS, REASON, OWNER, HOST = "seconds", "reason", "owner", "host"
CURVE = "epoch "  # and its number, where Optuna takes no figures on the way
READY, KNOWN, REFUSED = "ready_seconds", "known_from", "refused"  # READY: until the first step


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `values` are its figures by objective, of a trial that did not finish the best so
    far; `curve` the first objective by epoch; `seconds` what it took, `ready_seconds` of them
    until its first step. `status` is `stopped` where
    it can go on, and `refused` where its settings contradict one another; `owner` is the id of the
    study folder that holds its run, `host` the machine."""

    number: int
    status: Status
    params: Mapping[str, Any]
    values: Mapping[str, float]
    curve: Mapping[int, float]
    seconds: float | None
    ready_seconds: float | None = None
    reason: str | None = None
    owner: str = ""
    host: str = ""

    @property
    def pruned_by(self) -> str | None:
        """The rule that ended the trial, if one did."""
        if self.status != "pruned" or not self.reason:
            return None
        return self.reason.partition(":")[0]

    @property
    def is_over(self) -> bool:
        return self.status in ("finished", "pruned", "failed")


def records_of(
    trials: Iterable[FrozenTrial], objectives: Sequence[str], owner: str, running: bool
) -> list[TrialRecord]:
    """The study's trials by number, without those that it knows from elsewhere. `running` says
    whether a process is at those of `owner` (a study folder's id); of others, one is."""
    return [
        _record(trial, objectives, running or trial.user_attrs.get(OWNER) != owner)
        for trial in trials
        if KNOWN not in trial.user_attrs and trial.state != TrialState.WAITING
    ]


def _record(trial: FrozenTrial, objectives: Sequence[str], running: bool) -> TrialRecord:
    status = _status(trial, running)
    aside = {
        int(name.removeprefix(CURVE)): value
        for name, value in trial.user_attrs.items()
        if name.startswith(CURVE)
    }
    curve = dict(sorted((trial.intermediate_values or aside).items()))
    values: dict[str, float] = {}
    if trial.state == TrialState.COMPLETE and trial.values:
        values = dict(zip(objectives, trial.values, strict=True))
    elif curve:
        best = max if OBJECTIVES[objectives[0]] else min
        values = {objectives[0]: best(curve.values())}
    return TrialRecord(
        number=trial.number,
        status=status,
        params=trial.params,
        values=values,
        curve=curve,
        seconds=trial.user_attrs.get(SECONDS),
        ready_seconds=trial.user_attrs.get(READY),
        reason=trial.user_attrs.get(REASON),
        owner=trial.user_attrs.get(OWNER, ""),
        host=trial.user_attrs.get(HOST, ""),
    )


def _status(trial: FrozenTrial, running: bool) -> Status:
    if trial.state == TrialState.COMPLETE:
        return "finished"
    if trial.state == TrialState.PRUNED:
        return "pruned"
    if trial.state == TrialState.FAIL:
        return "refused" if REFUSED in trial.user_attrs else "failed"
    return "running" if running else "stopped"


def ranked(records: Iterable[TrialRecord], objective: str) -> list[TrialRecord]:
    """Best first, by value, also of pruned trials; then those that failed or have none yet."""
    sign = -1 if OBJECTIVES[objective] else 1
    order = {"failed": 1, "refused": 2}

    def place(record: TrialRecord) -> tuple[int, float, int]:
        value = record.values.get(objective)
        group = order.get(record.status, 0 if value is not None else 1)
        return group, sign * value if value is not None else 0.0, record.number

    return sorted(records, key=place)


def best_of(records: Iterable[TrialRecord], objective: str) -> TrialRecord | None:
    """The trial with the best value: one that finished, or that was pruned or ran out of time
    and was better even so."""
    usable = ("finished", "pruned", "stopped")
    having = [one for one in records if one.status in usable and one.values]
    return next(iter(ranked(having, objective)), None)


def front_of(records: Iterable[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """The Pareto front: finished trials than which no other is better in one objective and as
    good in all, best in the first objective first."""
    finished = [record for record in records if record.status == "finished"]

    def figures(record: TrialRecord) -> tuple[float, ...]:
        return tuple(record.values[name] * (1 if OBJECTIVES[name] else -1) for name in objectives)

    def beaten(record: TrialRecord) -> bool:
        own = figures(record)
        return any(
            all(one >= two for one, two in zip(figures(other), own)) and figures(other) != own
            for other in finished
        )

    return ranked([record for record in finished if not beaten(record)], objectives[0])


def write_leaderboard(
    folder: StudyFolder, records: Sequence[TrialRecord], objectives: Sequence[str]
) -> None:
    """Write every trial, best first, with its settings, figures, seconds and status."""
    names = list(dict.fromkeys(name for record in records for name in record.params))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rank", "trial", *objectives, *names, "epochs", "seconds", "status", "reason"])
    for rank, record in enumerate(ranked(records, objectives[0]), start=1):
        writer.writerow(
            [
                rank,
                record.number,
                *(record.values.get(name, "") for name in objectives),
                *(record.params.get(name, "") for name in names),
                len(record.curve),
                "" if record.seconds is None else round(record.seconds, 3),
                record.status,
                record.reason or "",
            ]
        )
    write_text(folder.leaderboard, text.getvalue())
