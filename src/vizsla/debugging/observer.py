"""The debugger of vizsla's own trainings: an observer of the loop.

It captures what `watch` would, and writes into the run's own folder. Validation comes once an
epoch, with its loss and the answers of its pictures, as a step of mode `eval`.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ParamSpec

import torch

from vizsla.debugging.actions import Actions
from vizsla.debugging.answers import answers_of
from vizsla.debugging.capture import Capture
from vizsla.debugging.pieces import StepPieces
from vizsla.debugging.plan import DEFAULT_EVERY, Schedule
from vizsla.debugging.recorder import Recorder
from vizsla.debugging.settings import DebugSettings, read_settings, write_settings
from vizsla.findings import Finding
from vizsla.phases import phase
from vizsla.records import EpochRecord
from vizsla.runs.folder import RunFolder
from vizsla.training.events import Observer, Observers, StepFacts, TrainingFacts, TrainingParts
from vizsla.training.stopping import StopRequest

_log = logging.getLogger("vizsla")
# Of a validation the first pictures are enough to judge answers by.
_ANSWERS = 4096
# What a training is captured at least, if it has so many steps.
_SAVES = 20


P = ParamSpec("P")


def _contained(hook: Callable[P, None]) -> Callable[P, None]:
    """The hook, whose failure ends the debugger and not the training."""

    @functools.wraps(hook)
    def contained(*arguments: P.args, **more: P.kwargs) -> None:
        try:
            with phase("debugger"):
                hook(*arguments, **more)
        except Exception as error:  # whatever it is
            debugger: Any = arguments[0]
            debugger._give_up(error)

    return contained


class TrainingDebugger(Observer):
    """Captures and judges one training. `tell` is called with each finding, and `note` with what
    went wrong with the debugger itself, in the training's thread."""

    def __init__(
        self,
        settings: DebugSettings,
        tell: Callable[[Finding], None] | None = None,
        note: Callable[[str], None] | None = None,
        at_epochs: bool = False,
    ) -> None:
        self._settings = settings.checked()
        self._rules = settings.chosen_rules()
        self._tell, self._note, self._at_epochs = tell, note or _log.warning, at_epochs
        self._found: collections.deque[Finding | str] = collections.deque()
        self._checkpoints: collections.deque[str] = collections.deque()
        self._capture: Capture | None = None
        self._recorder: Recorder | None = None
        self._actions: Actions | None = None
        self._answers: list[Any] = []
        self._answered = 0

    def on_run(self, run: RunFolder, **more: Any) -> None:
        self._run = run
        if self.is_active:
            write_settings(run, self._settings)

    @_contained
    def on_start(
        self, facts: TrainingFacts, stop: StopRequest, *, parts: TrainingParts, **more: Any
    ) -> None:
        if not self.is_active:
            return
        self._stop, self._loss_name = stop, type(parts.loss).__name__
        self._actions = Actions(
            self._settings.actions(self._rules), str(self._run.path), self._ask_to_stop,
            self._ask_to_save, self._found.append,
        )  # fmt: skip
        if self._actions.has("stop") and _several_processes():
            self._note("on_finding stop: of several processes none can stop alone")
        if self._actions.has("checkpoint") and parts.optimizer is None:
            self._note("on_finding checkpoint: solver lbfgs has no checkpoints to keep")
        board = self._run.path / "tensorboard" if self._settings.tensorboard else None
        self._recorder = Recorder(
            self._run, self._rules, self._judged, self._found.append, tensorboard=board
        )
        plan = self._settings.plan(self._rules)
        total = facts.epochs * facts.steps_per_epoch
        usual = {  # each evaluation, as its loss is; and short trainings twenty times or so
            "eval": Schedule(1),
            "train": Schedule(max(1, min(DEFAULT_EVERY, total // _SAVES)), early=True),
        }
        plan = replace(plan, schedules={**usual, **plan.schedules})
        self._recorder.start(parts.step + 1, plan.to_dict())
        optimizer = parts.optimizer  # None of a fit at once, whose loss is not one of a step
        self._capture = Capture(
            parts.network, plan, self._recorder.take, self._found.append,
            loss_fn=parts.loss if optimizer is not None else None,
            optimizers=[optimizer] if optimizer is not None else [],
            computing=parts.computed, first_step=parts.step + 1, joins_evaluations=True,
        )  # fmt: skip
        self._capture.attach()
        if self._at_epochs:
            self._ask_again()
        self._drain()

    @_contained
    def on_step(self, facts: StepFacts, **more: Any) -> None:
        if self._capture is not None:
            self._capture.step()
            self._drain()

    @_contained
    def on_judged(self, logits: torch.Tensor, labels: torch.Tensor, **more: Any) -> None:
        if self._capture is not None and self._answered < _ANSWERS:
            self._answers += answers_of((logits, labels), _ANSWERS - self._answered)
            self._answered += len(labels)

    @_contained
    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        if self._capture is None or self._recorder is None:
            return
        name = f"{self._loss_name}_output_0"
        pieces = self._capture.take_evaluation()
        pieces.step, pieces.time = record.step, time.time()
        pieces.losses = {name: [torch.tensor(record.valid.loss, dtype=torch.float64)]}
        pieces.answers, self._answers, self._answered = self._answers, [], 0
        if record.weight_decay is not None:  # fitted at once: its epochs are all the steps it has
            pieces.step = record.epoch
            train = StepPieces("train", record.epoch, time.time())
            train.losses = {name: [torch.tensor(record.train.loss, dtype=torch.float64)]}
            self._recorder.take(train)
        self._recorder.take(pieces)
        stops = self._actions is not None and self._actions.has("stop")
        if (self._at_epochs or stops) and self._recorder.judging_is_cheap:
            self._recorder.judge_now()
        self._drain()

    @_contained
    def on_save(self, **more: Any) -> None:
        if self._recorder is not None:  # what a checkpoint has done is not computed again
            self._recorder.flush()

    @_contained
    def on_end(self, **more: Any) -> None:
        self._close()
        if self._checkpoints:  # asked for after the last step
            self._keep_checkpoint()

    @property
    def is_active(self) -> bool:
        """Of several processes the first one looks."""
        return os.environ.get("RANK", "0") in ("", "0")

    def _give_up(self, error: Exception) -> None:
        with contextlib.suppress(Exception):
            self._note(
                f"the debugger failed and is off; training goes on. {type(error).__name__}: {error}"
            )
        self._close()

    def _close(self) -> None:
        """End every part that has begun, each whatever becomes of the others."""
        for part in (self._detach, self._close_recorder, self._drain, self._close_actions):
            try:
                part()
            except Exception as error:  # whatever it is
                _log.warning("debugger: %s: %s", type(error).__name__, error)
        with contextlib.suppress(Exception):
            self._drain()

    def _detach(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.detach()

    def _close_recorder(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()

    def _close_actions(self) -> None:
        actions, self._actions = self._actions, None
        if actions is not None:
            actions.close()

    def _judged(self, finding: Finding) -> None:
        """In the recorder's thread: a rule found something."""
        self._found.append(finding)
        if self._actions is not None:
            self._actions.answer(finding)

    def _ask_again(self) -> None:
        """A trial that was killed between a finding and its end is still to end for it."""
        known = {rule.name for rule in self._rules}
        for one in self._run.findings():
            if one["rule"] in known and one["severity"] != "info":
                self._stop.ask(f"{one['rule']}: {one['meaning']}")

    def _ask_to_stop(self, finding: Finding) -> None:
        if _several_processes():
            return  # which was said at the start
        self._stop.ask(f"{finding.rule}: {finding.meaning}", at_once=not self._at_epochs)

    def _ask_to_save(self, finding: Finding) -> None:
        self._stop.checkpoint = True  # first, since the other thread keeps what has been saved
        self._checkpoints.append(finding.rule)

    def _drain(self) -> None:
        """Tell what the other threads have found, and keep the checkpoints they asked for."""
        while self._found:
            found = self._found.popleft()
            if isinstance(found, str):
                self._note(found)
            elif self._tell is not None:
                self._tell(found)
        if self._checkpoints and not self._stop.checkpoint:
            self._keep_checkpoint()

    def _keep_checkpoint(self) -> None:
        last = self._run.checkpoints / "last.pt"
        while self._checkpoints:
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self._checkpoints.popleft())
            kept = self._run.checkpoints / f"finding-{name}.pt"
            if not last.exists() or kept.exists():
                continue
            try:
                os.link(last, kept)  # the next checkpoint takes its name, not its content
            except OSError:  # a disk that knows no links
                try:
                    shutil.copyfile(last, kept)
                except OSError as error:
                    self._note(f"{kept} could not be written: {error.strerror}")


def debugging_observers(
    wanted: DebugSettings | bool | RunFolder, observers: Iterable[Observer]
) -> list[Observer]:
    """The observers with a debugger before them: by settings, as it comes for True, or as the run
    that is taken up again had one."""
    others = list(observers)
    settings: DebugSettings | bool | None
    settings = read_settings(wanted) if isinstance(wanted, RunFolder) else wanted
    if isinstance(settings, DebugSettings) and not settings.is_on:
        settings = None
    if not settings:
        return others
    everyone = Observers(others)
    chosen = settings if isinstance(settings, DebugSettings) else DebugSettings(debug=True)
    return [TrainingDebugger(chosen, everyone.on_finding, everyone.on_note), *others]


def _several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1") or 1) > 1
