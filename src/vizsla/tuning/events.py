"""What a study tells while it runs, and to whom. As of a training, observers change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vizsla.findings import Finding
from vizsla.observing import TellAll
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.screening import Screened
from vizsla.tuning.space import Space
from vizsla.tuning.study import Study
from vizsla.tuning.trials import TrialRecord


@dataclass
class RunningTrial:
    """A trial at work: where it stands."""

    number: int
    params: Mapping[str, Any]
    started: float  # of time.monotonic
    epoch: int = 0
    epochs: int | None = None
    last: float | None = None
    best: float | None = None
    doing: str = "preparing"
    asked_to_stop: str | None = None  # why the pruner ended it
    earlier_seconds: float = 0.0  # of sittings before this one
    reported: set[int] = field(default_factory=set)  # epochs that Optuna knows of


@dataclass
class StudyState:
    """Where a study stands: every trial that is over, those at work, and the budget."""

    objectives: Sequence[str]
    limit: int | None
    deadline: float | None  # of time.monotonic
    slots: int
    begun: float  # of time.monotonic
    over: list[TrialRecord] = field(default_factory=list)
    running: dict[int, RunningTrial] = field(default_factory=dict)

    def seconds_left(self, now: float) -> float | None:
        """An estimate from the trials that are over; None before the first is. The first trials
        may have filled the cache: as long as the quickest took to get ready, so do the next."""
        until_deadline = None if self.deadline is None else max(self.deadline - now, 0.0)
        timed = [(one.seconds, one.ready_seconds or 0.0) for one in self.over if one.seconds]
        if not timed or self.limit is None:
            return until_deadline
        quickest = min(ready for _, ready in timed)
        mean = sum(seconds - ready + quickest for seconds, ready in timed) / len(timed)
        spent = sum(min(now - trial.started, mean) for trial in self.running.values())
        left = max((self.limit - len(self.over)) * mean - spent, 0.0) / self.slots
        return left if until_deadline is None else min(left, until_deadline)


class StudyObserver:
    """Base of everything that listens to a study; each hook does nothing unless overridden."""

    def on_study(self, folder: StudyFolder, space: Space, state: StudyState, **more: Any) -> None:
        """The study's folder is there, new or taken up again; no trial has begun yet."""

    def on_screened(self, screened: Sequence[Screened], kept: Sequence[str], **more: Any) -> None:
        """Models have been ranked by a linear probe, best first."""

    def on_note(self, note: str, **more: Any) -> None:
        """Something that a person should know, in a sentence."""

    def on_change(self, state: StudyState, **more: Any) -> None:
        """A trial began, made progress, or is over."""

    def on_trial_begun(self, trial: RunningTrial, **more: Any) -> None:
        """A trial was handed to the engine."""

    def on_trial_over(self, record: TrialRecord, **more: Any) -> None:
        """A trial has ended, in whatever way."""

    def on_end(self, **more: Any) -> None:
        """However the trials end; the best's bundle is still to come."""

    def on_bundle_begun(self, record: TrialRecord, **more: Any) -> None:
        """The best trial's bundle is being made."""

    def on_result(self, study: Study, findings: Sequence[Finding], **more: Any) -> None:
        """Everything is written."""


class StudyObservers(TellAll, StudyObserver):
    """Several observers as one, called in order."""
