"""Running a study: handing trials to an engine, hearing of their epochs, judging, and ending.

The search itself is Optuna's. What happens here is what makes it fast and safe: the first trial
fills the cache that all share before the others begin; each trial reports every epoch and is
ended when the pruner says so; a trial that a kill cut off is taken up again under its own number.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.trial import TrialState

from vizsla import errors
from vizsla.data.cores import available_cores
from vizsla.engines.base import Engine, Event, Job
from vizsla.errors import Interrupted, RunError, SettingError, StorageError, VizslaError, WorkError
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.training.stopping import StopRequest
from vizsla.tuning.events import RunningTrial, StudyObserver, StudyState
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.samplers import grid_size, suggest
from vizsla.tuning.settings import OBJECTIVES, StudySettings
from vizsla.tuning.space import Space
from vizsla.tuning.take_up import asks_for_costs, note_epoch, take_up, values_of
from vizsla.tuning.trials import (
    HOST,
    KNOWN,
    OWNER,
    READY,
    REASON,
    REFUSED,
    SECONDS,
    TrialRecord,
    best_of,
    front_of,
    records_of,
)

_POLL_S = 0.25
_DRAIN_S = 90.0
# So many settings in a row that contradict one another, or trials that fail alike, end a study.
_REFUSALS_AT_MOST = 200
_FAILURES_AT_MOST = 3
_STOPS_AT_MOST = 3
# Errors that say that no trial can go better.
_OF_ALL = ("DataError", "ModelError", "DependencyError")
_BUSY_S = 60.0


@dataclass
class Conductor:
    """Runs the trials of one study in one sitting."""

    folder: StudyFolder
    study: optuna.Study
    settings: StudySettings
    space: Space
    base: Mapping[str, Any]
    data: str
    objectives: tuple[str, ...]
    engine: Engine
    observer: StudyObserver
    state: StudyState
    _jobs: dict[int, RunningTrial] = field(default_factory=dict)  # by the engine's number
    _trials: dict[int, optuna.trial.Trial] = field(default_factory=dict)  # by their own
    _left_over: list[optuna.trial.FrozenTrial] = field(default_factory=list)
    _stops: Counter[int] = field(default_factory=Counter)  # by trials' numbers
    _stopping: bool = False
    _cache_filled: bool = False
    _refusals: int = 0
    _failures: list[str] = field(default_factory=list)  # reasons, while nothing else happened

    def __post_init__(self) -> None:
        self.owner = str(self.folder.facts()["id"])

    def conduct(self, stop: StopRequest) -> list[TrialRecord]:
        """Run trials until the budget is used up or nothing improves; every trial so far.

        Raises `Interrupted` after a signal, with everything saved; `WorkError`, or the error that
        all trials have in common, where none can succeed.
        """
        alone = self.settings.storage is None
        self._left_over = take_up(self.study, self.folder, self.objectives, self.owner, alone)
        self._refresh()
        try:
            while self._begin_trials() or self._jobs:
                for event in self.engine.events(_POLL_S):
                    self._hear(event)
                if stop.signal_number is not None or self._time_is_up():
                    self._stop_all(stop)
                    break
                self.observer.on_change(self.state)
        finally:
            self.observer.on_end()
        return self.records()

    def records(self) -> list[TrialRecord]:
        """Every trial so far, also of other machines."""
        trials = self.study.get_trials(deepcopy=False)
        return records_of(trials, self.objectives, self.owner, running=False)

    def _begin_trials(self) -> bool:
        """Fill free slots; whether a trial was begun."""
        begun = False
        while len(self._jobs) < self._slots_now() and not self._time_is_up():
            trial = self._next_trial()
            if trial is None:
                break
            begun = self._begin(*trial) or begun
        return begun

    def _slots_now(self) -> int:
        """The first trial runs alone until the cache is filled, with every core."""
        return self.engine.slots if self._cache_filled else 1

    def _next_trial(self) -> tuple[optuna.trial.Trial, optuna.trial.FrozenTrial | None] | None:
        """A new trial, or one that was left over and what it was then."""
        if self._left_over:
            left = self._left_over.pop(0)
            return optuna.trial.Trial(self.study, left._trial_id), left
        if self._no_more_wanted():
            return None
        trial = self.study.ask()
        trial.set_user_attr(OWNER, self.owner)
        trial.set_user_attr(HOST, platform.node())
        return trial, None

    def _no_more_wanted(self) -> bool:
        """Whether the budget is used up, a grid is tried out, or nothing improves."""
        elsewhere = [
            one for one in self.records() if one.status == "running" and one.owner != self.owner
        ]
        begun = len(self.state.over) + len(self._jobs) + len(elsewhere)
        if self.state.limit is not None and begun >= self.state.limit:
            return True
        if self.settings.sampler == "grid" and len(self.records()) >= grid_size(self.space):
            return True
        patience = self.settings.study_patience
        return patience is not None and self._trials_without_better() >= patience

    def _trials_without_better(self) -> int:
        """Trials that ended since the best one did."""
        best = best_of(self.state.over, self.objectives[0])
        if best is None:
            return 0
        numbers = [record.number for record in self.state.over]
        return len(numbers) - 1 - numbers.index(best.number)

    def _begin(self, trial: optuna.trial.Trial, left: optuna.trial.FrozenTrial | None) -> bool:
        """Hand a trial to the engine; False where its settings contradict one another."""
        params = suggest(trial, self.space)
        try:
            recipe = Recipe(**{**self.base, **params})
        except SettingError as error:
            self._refuse(trial, str(error))
            return False
        self._refusals = 0
        run = self.folder.trial(trial.number)
        if left is not None:
            self._wait_for(run)
        cores = available_cores()
        share = max(1, cores // self.engine.slots)
        notes = self.folder.path / "footprints"
        job = Job(
            data=self.data,
            recipe=recipe.model_dump(exclude_none=True),
            folder=str(run.path.resolve()),
            bundle=False,
            footprint=str(notes.resolve()) if asks_for_costs(self.objectives) else None,
            debug=self.settings.debugger,
            cores=share,
            cores_before=share if self._cache_filled else cores,
        )
        running = RunningTrial(
            number=trial.number,
            params=params,
            started=time.monotonic(),
            epochs=recipe.epochs,
            earlier_seconds=left.user_attrs.get(SECONDS, 0.0) if left is not None else 0.0,
            reported=set(left.intermediate_values) if left is not None else set(),
        )
        self._jobs[self.engine.submit(job)] = running
        self._trials[trial.number] = trial
        self.state.running[trial.number] = running
        self.observer.on_trial_begun(running)
        return True

    def _wait_for(self, run: RunFolder) -> None:
        """Wait until a process that outlived its study has saved and left the run."""
        deadline, told = time.monotonic() + _BUSY_S, False
        while (run.path / "run.toml").exists() and run.status() == "running":
            if time.monotonic() > deadline:
                raise RunError(f"The trial {run.path} is still being trained by another process.")
            if not told:
                self.observer.on_note(f"waiting for the process that still holds {run.path.name}")
            told = True
            time.sleep(_POLL_S)

    def _refuse(self, trial: optuna.trial.Trial, reason: str) -> None:
        trial.set_user_attr(REFUSED, True)
        trial.set_user_attr(REASON, reason)
        self.study.tell(trial, state=TrialState.FAIL)
        self._refusals += 1
        if self._refusals >= _REFUSALS_AT_MOST:
            raise SettingError(
                f"{self._refusals} settings in a row contradict one another, the last so: {reason} "
                "Search other values."
            )

    def _hear(self, event: Event) -> None:
        running, facts = self._jobs[event.job], event.facts
        if event.kind == "trunk":
            running.doing = f"frozen layers {facts['done']:,}/{facts['of']:,}"
        elif event.kind == "started":
            running.doing, running.epochs = "training", facts["epochs"]
            self._cache_filled = True
            self._trials[running.number].set_user_attr(READY, facts["seconds"])
        elif event.kind == "note":
            self.observer.on_note(f"trial {running.number}: {facts['text']}")
        elif event.kind == "epoch":
            self._judge(event.job, running, facts["record"])
        else:
            del self._jobs[event.job], self.state.running[running.number]
            self._close(event, running)

    def _judge(self, job: int, running: RunningTrial, record: Mapping[str, Any]) -> None:
        """Note an epoch, and say whether the trial goes on."""
        trial = self._trials[running.number]
        value = float(record["valid"][self.objectives[0]])
        better = max if OBJECTIVES[self.objectives[0]] else min
        running.epoch, running.last = record["epoch"], value
        running.best = value if running.best is None else better(running.best, value)
        note_epoch(trial, self.objectives, running.reported, running.epoch, value)
        convex = {**self.base, **running.params}.get("solver") == "lbfgs"
        may_prune = not convex and len(self.objectives) == 1
        prune = may_prune and running.epoch < (running.epochs or 0) and trial.should_prune()
        why = f"epoch {running.epoch} was worse than others'" if prune else None
        running.asked_to_stop = why
        # The last trials share the cores of those that are no more.
        self.engine.answer(job, why, max(1, available_cores() // len(self._jobs)))

    def _close(self, event: Event, running: RunningTrial) -> None:
        """A trial's job has ended: tell Optuna how."""
        trial = self._trials.pop(running.number)
        # By its own clock, which does not count the start of its process.
        spent = event.facts.get("seconds", time.monotonic() - running.started)
        seconds = running.earlier_seconds + float(spent)
        trial.set_user_attr(SECONDS, seconds)
        reason = str(event.facts.get("reason", ""))
        if event.facts.get("error") == "StorageError":  # it can go on when there is room
            way_on = f"vizsla tune --resume {self.folder.path}"
            raise StorageError(reason.replace("vizsla train --resume", way_on))
        cut_off = event.kind == "stopped" or (self._stopping and event.kind == "crashed")
        if cut_off and (self._stopping or self._goes_on(running)):
            return
        self._cache_filled = True
        if event.kind == "finished":
            self.study.tell(trial, values_of(self.folder.trial(running.number), self.objectives))
            self._failures = []
        elif event.kind == "pruned":
            if reason != running.asked_to_stop:  # a rule ended it, and not the pruner
                trial.set_user_attr(REASON, reason)
            self.study.tell(trial, state=TrialState.PRUNED)
            self._failures = []
        else:
            trial.set_user_attr(REASON, reason or "its process was stopped again and again")
            self.study.tell(trial, state=TrialState.FAIL)
        self._refresh()
        self._tidy()
        self.observer.on_trial_over(
            next(record for record in self.state.over if record.number == running.number)
        )
        if event.kind in ("failed", "crashed"):
            self._weigh_failure(str(event.facts.get("error", "")), reason)

    def _goes_on(self, running: RunningTrial) -> bool:
        """Whether a trial that somebody else stopped is taken up again; not for ever."""
        self._stops[running.number] += 1
        if self._stops[running.number] > _STOPS_AT_MOST:
            return False
        trials = self.study.get_trials(deepcopy=False)
        self._left_over += [trial for trial in trials if trial.number == running.number]
        return True

    def _weigh_failure(self, kind: str, reason: str) -> None:
        """Raise where no other trial can be expected to do better."""
        first = all(record.status == "failed" for record in self.state.over)
        if first and kind in _OF_ALL and "model" not in self.space:
            error: type[VizslaError] = getattr(errors, kind)
            raise error(reason)
        self._failures.append(reason)
        if first and len(self._failures) >= _FAILURES_AT_MOST and len(set(self._failures)) == 1:
            raise WorkError(f"The first {len(self._failures)} trials failed alike: {reason}")

    def _tidy(self) -> None:
        """Remove the checkpoints of trials that are over and not the best: they are large."""
        keep = {record.number for record in front_of(self.state.over, self.objectives)}
        best = best_of(self.state.over, self.objectives[0])
        if best is not None:
            keep.add(best.number)
        for record in self.state.over:
            run = self.folder.trial(record.number)
            if record.owner == self.owner and record.is_over and record.number not in keep:
                shutil.rmtree(run.checkpoints, ignore_errors=True)
            elif record.is_over:
                (run.checkpoints / "last.pt").unlink(missing_ok=True)

    def _time_is_up(self) -> bool:
        return self.state.deadline is not None and time.monotonic() >= self.state.deadline

    def _stop_all(self, stop: StopRequest) -> None:
        """Let every trial save and stop; they go on when the study is resumed."""
        self._stopping = True
        for job in self._jobs:
            self.engine.stop(job)
        self._drain(_DRAIN_S)
        for job in self._jobs:  # it does not hear
            self.engine.stop(job, now=True)
        self._drain(_DRAIN_S)
        if stop.signal_number is not None:
            raise Interrupted(stop.signal_number, "Stopped; every trial is saved.")

    def _drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._jobs and time.monotonic() < deadline:
            for event in self.engine.events(_POLL_S):
                self._hear(event)

    def _refresh(self) -> None:
        """Read anew which trials are over, also on other machines, in the order of their ends."""
        trials = self.study.get_trials(deepcopy=False)
        over = [
            trial for trial in trials if trial.state.is_finished() and KNOWN not in trial.user_attrs
        ]
        over.sort(key=lambda trial: trial.datetime_complete or datetime.max)
        records = records_of(over, self.objectives, self.owner, running=True)
        self.state.over = [record for record in records if record.is_over]
