"""Which step what was seen belongs to: of training, of an evaluation, or of prediction.

Training has one step pending until its owner says that it is over; evaluations come and go in
between, even between the update and that word, and never mix with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from vizsla.debugging.answers import AnswerPieces
from vizsla.debugging.plan import CapturePlan
from vizsla.debugging.reductions import Reduced


@dataclass
class StepPieces:
    """What was seen of a step; tensors are copies that nobody changes."""

    mode: str
    step: int = 0
    time: float = 0.0
    rate: float | None = None
    losses: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    answers: list[AnswerPieces] = field(default_factory=list)
    reduced: Reduced = field(default_factory=Reduced)
    units: dict[str, torch.Tensor] = field(default_factory=dict)
    whole: dict[str, torch.Tensor] = field(default_factory=dict)
    passes: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.losses or self.reduced.rows or self.whole or self.answers)

    @property
    def has_tensors(self) -> bool:
        return bool(self.reduced.rows or self.whole)


@dataclass(frozen=True)
class Batch:
    """What a network was given, copied, since it may be overwritten in place."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def copied(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
        return cls(_copied(args), dict(zip(kwargs, _copied(kwargs.values()), strict=True)))


class Steps:
    """Counts and hands over steps. `mode` is that of the latest pass or loss, `pieces` its step;
    `train` is the pending step of training; an optimiser has changed weights in it (`is_updated`)
    or is at it, perhaps calling a closure (`is_updating`)."""

    def __init__(
        self,
        sink: Callable[[StepPieces], None],
        plan: CapturePlan,
        first_step: int,
        next_steps: Mapping[str, int],
        joins_evaluations: bool,
    ) -> None:
        self._sink, self._plan, self._first = sink, plan, first_step
        self._joins = joins_evaluations
        self._counts = {"eval": 0, "predict": 0, **next_steps, "train": first_step}
        self.train = StepPieces("train")
        self._other = StepPieces("eval")
        self._behind: list[StepPieces] = []  # evaluations after an update that is not over yet
        self._forced: str | None = None
        self._trains_in_eval_mode = False
        self._has_gradient = True  # of the latest pass
        self.mode = "train"
        self.is_updated = self.is_updating = False

    @property
    def pieces(self) -> StepPieces:
        return self.train if self.mode == "train" else self._other

    @property
    def is_first_pass(self) -> bool:
        return self.pieces.passes == 1

    @property
    def is_elsewhere(self) -> bool:
        """Whether nothing but an evaluation has been seen since the last step of training."""
        return self._is_idle and (self._other.passes > 0 or not self._other.is_empty)

    @property
    def is_due(self) -> bool:
        if self.mode == "train":
            return self.is_train_due
        behind = sum(one.mode == self.mode for one in self._behind)
        return self._plan.due(self.mode, self._counts[self.mode] + behind)

    @property
    def is_train_due(self) -> bool:
        return self._plan.due("train", self._counts["train"], self._first)

    def set_mode(self, mode: str | None) -> None:
        self._close_other()
        self._forced = mode
        self.mode = mode or "train"
        self._other.mode = self.mode if self.mode != "train" else "eval"

    def begin_pass(self, training: bool) -> None:
        """The network goes forward, in training mode or not. Without gradients nobody trains."""
        training = training or self._trains_in_eval_mode or self.is_updating
        self._has_gradient = torch.is_grad_enabled()
        trains = training and self._has_gradient
        self._turn_to("train" if trains else "eval")
        if self.mode != "train" and not self._joins:  # each pass of an evaluation is a step
            self._close_other()
        self.pieces.passes += 1

    def begin_loss(self, has_gradient: bool) -> None:
        """A loss was computed; perhaps of another network, a moving average say."""
        if not has_gradient and self.mode == "train":
            self._turn_to("eval")
            self._close_other()
        elif has_gradient and (self.pieces.passes == 0 or not self._has_gradient):
            self._turn_to("train")
        elif self.mode != "train" and self._other.losses and not self._joins:
            self._close_other()  # the loss of this pass is there: this one is another network's

    def note_update(self) -> None:
        """An optimiser steps: what went before was training, whatever mode the network is in."""
        if self.mode == "eval" and self._forced is None and self.train.passes == 0:
            self._trains_in_eval_mode = True
            self.train, self._other = self._other, StepPieces("eval")
            self.train.mode = self.mode = "train"
        self.is_updated = self.is_updating = True

    def add_loss(self, loss: torch.Tensor | float, name: str) -> None:
        value = loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(loss)
        copy = value.clone() if value.ndim == 0 else value.float().mean()
        self.pieces.losses.setdefault(name, []).append(copy)

    def end(self) -> None:
        """A step is over: of training, unless only an evaluation was seen."""
        if self._forced not in (None, "train") or self.is_elsewhere:
            self._close_other()
            return
        self._hand_over(self.train)
        self.train, self.is_updated = StepPieces("train"), False
        for one in self._behind:
            self._hand_over(one)
        self._behind.clear()
        self._close_other()
        self.mode = self._forced or "train"

    def take_evaluation(self) -> StepPieces:
        """The pending evaluation, which its owner hands over."""
        pieces, self._other = self._other, StepPieces("eval")
        self._counts["eval"] += 1
        self.mode = "train"
        return pieces

    def close(self) -> None:
        """Hand over whatever is pending."""
        if self.is_updated or self._behind or not self.train.is_empty:
            self.end()
        self._close_other()

    @property
    def _is_idle(self) -> bool:
        return self.train.is_empty and self.train.passes == 0 and not self.is_updated

    def _turn_to(self, mode: str) -> None:
        mode = self._forced or mode
        if mode == "train" and self._other.passes and not self._joins:
            self._close_other()
        self.mode = mode
        if mode != "train":
            self._other.mode = mode

    def _close_other(self) -> None:
        pieces = self._other
        if pieces.is_empty and not pieces.passes:
            return
        self._other = StepPieces(pieces.mode)
        if self.is_updated:
            self._behind.append(pieces)
        else:
            self._hand_over(pieces)

    def _hand_over(self, pieces: StepPieces) -> None:
        pieces.step, pieces.time = self._counts[pieces.mode], time.time()
        self._counts[pieces.mode] += 1
        if not pieces.is_empty:
            self._sink(pieces)


def _copied(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(one.clone() if isinstance(one, torch.Tensor) else one for one in values)
