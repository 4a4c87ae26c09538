"""How alike a smaller network answers, and which of its layers have to stay in float for that.

The search is bounded: at most 16 groups of layers are each left in float once, which tells how much
they hurt; then the fewest worst groups that suffice are found by halving, and of their layers those
go back to int8 that are not needed. All on calibration pictures; whether it holds on others is for
`verify.py` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vizsla.metrics import log_softmax

Answers = Callable[[NDArray[np.float32]], NDArray[np.float32]]
# Gives how a network with the named layers in float does, on so many pictures or on all.
Attempt = Callable[[tuple[str, ...], int | None], "Judged"]

_GROUPS = 16
_RETURNS = 12
# Divergence is smooth, so that groups are told apart by a few pictures.
_SMALL_SAMPLE = 64
_BATCH = 16
# A picture on which the original is wrong may as well get another wrong answer.
AGREEMENT_FACTOR = 5


@dataclass(frozen=True)
class Judged:
    """A network against its original on the same pictures: the share of equal first answers, the
    accuracy lost (negative where it gained), and the mean Kullback-Leibler divergence in nats."""

    agreement: float
    lost: float
    divergence: float
    pictures: int

    @property
    def badness(self) -> tuple[float, float]:
        """Less is better: disagreement in steps that chance does not decide, then divergence."""
        return round((1 - self.agreement) * 100), self.divergence

    @property
    def in_words(self) -> str:
        return f"agreement {self.agreement:.1%}, accuracy {-self.lost:+.1%}"


@dataclass(frozen=True)
class Limits:
    """What may be lost: `accuracy` as a share of the pictures, and five times that share of first
    answers that may differ from the original's (None: any)."""

    accuracy: float
    disagreement: float | None

    @classmethod
    def of(cls, max_loss: float) -> Limits:
        return cls(max_loss, min(1.0, AGREEMENT_FACTOR * max_loss))

    def aim(self) -> Limits:
        """What the search aims at: half the changed answers, since other pictures will change
        somewhat more. Not half the accuracy, which on some hundred pictures is two or three."""
        return Limits(self.accuracy, None if self.disagreement is None else self.disagreement / 2)

    def hold(self, judged: Judged) -> bool:
        return judged.lost <= self.accuracy + 1e-9 and (
            self.disagreement is None or 1 - judged.agreement <= self.disagreement + 1e-9
        )


@dataclass(frozen=True)
class Reference:
    """The original's answers to some pictures."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.integer]
    log_probabilities: NDArray[np.float64]

    @classmethod
    def of(
        cls, original: Answers, inputs: NDArray[np.float32], labels: NDArray[np.integer]
    ) -> Reference:
        return cls(inputs, labels, log_softmax(answers_of(original, inputs)))

    def judge(self, answers: Answers, some: int | None = None) -> Judged:
        """How `answers` does, on `some` pictures spread over all of them, or on all."""
        every = len(self.inputs)
        rows = np.linspace(0, every - 1, min(some or every, every)).astype(int)
        given = log_softmax(answers_of(answers, self.inputs[rows]))
        wanted, labels = self.log_probabilities[rows], self.labels[rows]
        first, original = given.argmax(axis=1), wanted.argmax(axis=1)
        return Judged(
            agreement=float((first == original).mean()),
            lost=float((original == labels).mean() - (first == labels).mean()),
            divergence=float((np.exp(wanted) * (wanted - given)).sum(axis=1).mean()),
            pictures=len(rows),
        )


def answers_of(answers: Answers, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of many inputs, a few at a time."""
    parts = [answers(inputs[start : start + _BATCH]) for start in range(0, len(inputs), _BATCH)]
    return np.concatenate(parts)


def least_float(
    layers: Sequence[str], attempt: Attempt, plain: Judged, limits: Limits
) -> tuple[tuple[str, ...], Judged]:
    """The layers to leave in float so that the aim of `limits` is met, and how that does.

    `plain` is how it does with none in float. Where no choice meets the aim, the one with fewest
    layers in float that is within `limits`, or else the one that does best. At least one group goes
    to int8: a network all in float is none of int8. At most 16 + 4 + 12 attempts.
    """
    groups = _grouped(layers)
    hurt = {group: attempt(group, _SMALL_SAMPLE).divergence for group in groups}
    worst = sorted(groups, key=hurt.__getitem__)
    tried: list[tuple[tuple[str, ...], Judged]] = [((), plain)]
    found: tuple[tuple[str, ...], Judged] | None = None
    low, high = 1, len(groups) - 1
    while low <= high:
        middle = (low + high) // 2
        chosen = {name for group in worst[:middle] for name in group}
        left = tuple(name for name in layers if name in chosen)
        tried.append((left, attempt(left, None)))
        if limits.aim().hold(tried[-1][1]):
            found, high = tried[-1], middle - 1
        else:
            low = middle + 1
    if found is not None:
        return _fewer(*found, attempt, limits.aim())
    within = [one for one in tried if limits.hold(one[1])]
    if within:
        return min(within, key=lambda one: len(one[0]))
    return min(tried, key=lambda one: one[1].badness)


def _fewer(
    left: tuple[str, ...], judged: Judged, attempt: Attempt, limits: Limits
) -> tuple[tuple[str, ...], Judged]:
    """Take layers back to int8, in parts that get smaller, as long as the limits hold."""
    tries, size, at = 0, max(len(left) // 2, 1), 0
    while tries < _RETURNS and len(left) > 1:
        part = left[at : at + size]
        rest = tuple(name for name in left if name not in part)
        if part and rest:
            again = attempt(rest, None)
            tries += 1
            if limits.hold(again):
                left, judged = rest, again
                continue
        at += size
        if at >= len(left):
            if size == 1:
                break
            size, at = max(size // 2, 1), 0
    return left, judged


def _grouped(layers: Sequence[str]) -> list[tuple[str, ...]]:
    """At most 16 groups of neighbours."""
    bounds = np.linspace(0, len(layers), min(_GROUPS, len(layers)) + 1).round().astype(int)
    return [tuple(layers[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
