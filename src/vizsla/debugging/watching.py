"""Watching anyone's own training loop: `watch` around it, `step` at the end of each step.

    with watch(model, "runs/mine", loss_fn=criterion, optimizer=optimizer) as debugger:
        for pictures, labels in loader:
            ...
            debugger.step()

The folder becomes a run like any other, which `vizsla debug`, `vizsla report` and `open_run` read.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w
import torch
from torch import nn

from vizsla.debugging.actions import Action, Actions, Call, parse_actions
from vizsla.debugging.capture import Capture
from vizsla.debugging.format import MODES, lines_file
from vizsla.debugging.modules import unwrapped
from vizsla.debugging.plan import CapturePlan, make_plan
from vizsla.debugging.recorder import Recorder
from vizsla.debugging.rules.choosing import (
    AnyRule,
    RuleLike,
    capture_options,
    choose_rules,
    needed_collections,
)
from vizsla.errors import RunError, SettingError, StorageError, WorkError, nearest
from vizsla.findings import Finding
from vizsla.runs.folder import STOPPED_BY_RULE, WATCHED, RunFolder
from vizsla.version import __version__

_log = logging.getLogger("vizsla")


class StoppedByRule(Exception):  # noqa: N818
    """A finding asked to stop. It leaves the loop, and the `with` of `watch` takes it."""


def watch(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    loss_fn: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    rules: str | Sequence[RuleLike] | None = None,
    capture: str | Sequence[str] | None = None,
    every: int | Mapping[str, int] | None = None,
    steps: str | Iterable[int] | Mapping[str, Any] | None = None,
    whole: str | Sequence[str] | None = None,
    half: bool = False,
    budget_mb: float = 1024.0,
    on_finding: str | Call | Sequence[str | Call] = (),
    first_step: int = 0,
    all_ranks: bool = False,
    tensorboard: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Debugger:
    """Capture and judge the training of `model` while inside, into the run folder `folder`.

    `loss_fn` is the module that computes the loss, `optimizer` what updates the weights: give both
    for everything to be seen; without them see `Debugger.record_loss`. `rules`, `capture`, `every`
    (50 steps unless given, and some at the beginning), `steps`, `whole` are those of `vizsla train
    --debug`, where `every` and `steps` may also be a number, a range or a mapping of modes to them.
    `on_finding` takes `stop`, `notify=URL`, `run=COMMAND` and functions of the finding, which are
    called in `step`. A loop that goes on in the same folder says so by `first_step`. Of several
    processes the first one records, or each for itself with `all_ranks`. `facts`, such as
    `{"data": {"classes": [...]}}`, are written to the folder's `run.toml`.

    Raises `SettingError` for settings that make no sense, `RunError` where the folder holds another
    recording or a training of vizsla's, and `StorageError` where it cannot be written. After that
    what fails is logged and the loop goes on; `step` alone raises, to stop, and `with` takes that.
    """
    optimizers = _as_list(optimizer)
    _check_parts(loss_fn, optimizers)
    _check_values(budget_mb, facts)
    chosen = choose_rules(rules)
    plan = make_plan(
        capture, every, steps, whole, needed=needed_collections(chosen), half=half,
        budget_mb=budget_mb, **capture_options(chosen),
    )  # fmt: skip
    wanted = [on_finding] if isinstance(on_finding, str) or callable(on_finding) else on_finding
    actions = parse_actions(list(wanted), [rule.name for rule in chosen])
    _check_actions(actions)
    loop = Loop(model, loss_fn, optimizers, first_step, facts or {})
    return Debugger(loop, Path(folder), plan, chosen, actions, all_ranks, tensorboard)


@dataclass(frozen=True)
class Loop:
    """The loop that is watched: its parts, the number of its first step, and what its run says of
    it."""

    model: nn.Module
    loss_fn: nn.Module | None
    optimizers: list[torch.optim.Optimizer]
    first_step: int
    facts: Mapping[str, Any]


class Debugger:
    """What `watch` gives: a context manager around a training loop."""

    def __init__(
        self,
        loop: Loop,
        folder: Path,
        plan: CapturePlan,
        rules: list[AnyRule],
        actions: list[Action],
        all_ranks: bool,
        tensorboard: bool,
    ) -> None:
        self._rank = _rank()
        self.is_active = self._rank == 0 or all_ranks
        self._loop, self._plan = loop, plan
        self.run = RunFolder(folder)
        self._entered = False
        self._capture: Capture | None = None
        self._new: collections.deque[Finding] = collections.deque()
        self._stop: Finding | None = None
        self._recorder = Recorder(
            self.run, rules if self._rank == 0 else [], self._found, _log.warning, self._rank,
            folder / "tensorboard" if tensorboard else None,
        )  # fmt: skip
        self._actions = Actions(actions, str(folder), self._ask_to_stop, _nothing, _log.warning)

    def __enter__(self) -> Debugger:
        if self._entered:
            raise WorkError(
                f"This debugger of {self.run.path} was entered before, and records once; call "
                "watch again, with first_step to go on in the same folder."
            )
        self._entered = True
        if not self.is_active:
            return self
        with contextlib.ExitStack() as held:
            self._open_run()
            if self._rank == 0:
                held.enter_context(self.run.locked())
                self.run.forget_outcome()
            loop = self._loop
            self._recorder.start(loop.first_step, self._plan.to_dict())
            held.callback(self._recorder.close)
            self._capture = Capture(
                loop.model, self._plan, self._recorder.take, _log.warning, loss_fn=loop.loss_fn,
                optimizers=loop.optimizers, first_step=loop.first_step,
                next_steps=self._recorder.next_steps,
            )  # fmt: skip
            held.callback(self._capture.detach)
            self._capture.attach()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        if not self.is_active:
            return False
        with self._held:
            if self._capture is not None:
                self._capture.detach()  # which hands over what is pending
                self._capture = None
            self._recorder.close()
            self._actions.close()
            self._call_functions()
            if self._rank == 0:
                self._write_outcome(error)
        return isinstance(error, StoppedByRule)

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What rules have found so far, as `findings.jsonl` has it."""
        return self.run.findings()

    def step(self) -> None:
        """A step of training is over. In eval mode each forward pass is a step of itself.

        Raises `StoppedByRule`, which the `with` takes, where a finding asks to stop, and
        `WorkError` before the `with`. After it nothing is recorded.
        """
        capture = self._capturing()
        if capture is None:
            return
        capture.step()
        if self._new:
            self._call_functions()
        if self._stop is not None:
            raise StoppedByRule(_reason(self._stop))

    def record_loss(self, loss: torch.Tensor | float, name: str = "loss") -> None:
        """The loss of this step, or any other number, where no `loss_fn` gives it."""
        capture = self._capturing()
        if capture is not None:
            capture.note_loss(loss, name)

    def set_mode(self, mode: str | None) -> None:
        """Say that steps are of `train`, `eval` or `predict`; None lets the network say, by its
        `training`."""
        name = None if mode is None else str(getattr(mode, "value", mode)).lower()
        if name is not None and name not in MODES:
            raise SettingError(f"There is no mode {mode!r}.{nearest(name, MODES)}")
        capture = self._capturing()
        if capture is not None:
            capture.set_mode(name)

    def _capturing(self) -> Capture | None:
        """What captures, in a process that does. Raises `WorkError` where nobody entered."""
        if not self._entered:
            raise WorkError(
                "Nothing is recorded outside of the debugger's with block. Put the loop inside: "
                "with watch(model, FOLDER) as debugger:"
            )
        return self._capture

    def _write_outcome(self, error: BaseException | None) -> None:
        try:
            self.run.write_outcome(*_outcome(error))
        except StorageError as full:  # which is no reason to lose what was trained
            _log.warning("%s", full)

    def _open_run(self) -> None:
        """Make the folder a run, or go on in it."""
        path = self.run.path
        is_run = (path / "run.toml").exists()
        if is_run and RunFolder.open(path).facts().get("kind") != WATCHED:
            raise RunError(f"{path} holds a training of vizsla's own; name another folder.")
        recorded = lines_file(path, self._rank).exists()
        if recorded and self._loop.first_step == 0:
            raise RunError(
                f"{path} holds a recording already; name another folder, or give first_step to "
                "go on in this one."
            )
        if self._rank == 0 and not is_run:
            RunFolder.at(path)
            facts = {**_facts(self._loop.model), **self._loop.facts, "kind": WATCHED}
            self.run.write_facts(facts)

    def _found(self, finding: Finding) -> None:
        self._new.append(finding)
        self._actions.answer(finding)
        _log.warning("%s (%s): %s %s", finding.rule, finding.where, finding.meaning, finding.advice)

    def _ask_to_stop(self, finding: Finding) -> None:
        self._stop = self._stop or finding

    def _call_functions(self) -> None:
        while self._new:
            finding = self._new.popleft()
            for call in self._actions.calls(finding):
                try:
                    call(finding)
                except Exception as error:  # a user's function stops no training
                    _log.warning("on_finding: %s: %s", type(error).__name__, error)


def _nothing(_: Finding) -> None:
    """How this loop keeps checkpoints: `watch` refuses to be asked for one."""


def _check_parts(loss_fn: Any, optimizers: list[Any]) -> None:
    if loss_fn is not None and not isinstance(loss_fn, nn.Module):
        raise SettingError(
            f"loss_fn is {getattr(loss_fn, '__name__', loss_fn)!r}, which is no torch.nn.Module "
            "and cannot be listened to; leave it out and call debugger.record_loss(loss) each step."
        )
    for one in optimizers:
        # Libraries wrap optimizers, and what is wrapped can be listened to as well.
        if not isinstance(getattr(one, "optimizer", one), torch.optim.Optimizer):
            raise SettingError(
                f"optimizer is a {type(one).__name__}, but must be a torch.optim.Optimizer or a "
                "list of them; leave it out to have step look at gradients and weights."
            )


def _check_values(budget_mb: Any, facts: Any) -> None:
    if not isinstance(budget_mb, int | float) or not budget_mb > 0:
        raise SettingError(f"budget_mb is {budget_mb!r}, but must be a number above 0.")
    try:
        tomli_w.dumps({**(facts or {})})
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"facts cannot be written as TOML: {error}. They are a mapping of names to texts, "
            "numbers, lists and mappings; leave out what is None."
        ) from None


def _check_actions(actions: list[Action]) -> None:
    kinds = {action.kind for action in actions}
    if "checkpoint" in kinds:
        raise SettingError(
            "on_finding checkpoint needs a loop that vizsla knows; give a function of the finding "
            "that saves what you want saved."
        )
    if "stop" in kinds and (processes := _processes()) > 1:
        raise SettingError(
            f"on_finding stop would end one of {processes} processes, and the others would wait "
            "for it; give a function of the finding that tells all of them to end."
        )


def _outcome(error: BaseException | None) -> tuple[str, str | None]:
    if isinstance(error, StoppedByRule):
        return STOPPED_BY_RULE, str(error)
    if error is None:
        return "trained", None
    return "failed", f"{type(error).__name__}: {error}"


def _reason(finding: Finding) -> str:
    return f"{finding.rule}: {finding.meaning}"


def _facts(model: nn.Module) -> dict[str, Any]:
    return {
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "recipe": {},
        "model": {"architecture": type(unwrapped(model)).__name__},
        "versions": {
            "vizsla": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _rank() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return int(os.environ.get("RANK", "0") or 0)


def _processes() -> int:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def _as_list(given: Any) -> list[torch.optim.Optimizer]:
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
