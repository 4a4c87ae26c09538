"""Rules on the learning rate, from the size of updates and the course of the loss.

What they suggest is a rule of thumb turned into a number: an optimiser's step should change the
weights by about a thousandth of their size, and by no more than a hundredth. Layers whose gradient
is zero tell nothing of it: what moves them is weight decay alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule
from vizsla.debugging.rules.measures import (
    VANISHED,
    Array,
    gradients_have_vanished,
    has_converged,
    in_force,
    largest_gradient,
    layer_weights,
    median,
    medians,
    quantiles,
    rate_at,
    update_ratios,
)
from vizsla.debugging.tensors import Series, Tensors
from vizsla.findings import Finding

# Of the layers, where large updates are looked for: a few that leap spoil a network.
_FASTEST = 0.9
# Above this update, or this many times the first loss, nothing of the network is left.
_RUINED, _RUINED_LOSS = 100, 10
# An update need not be in proportion to the rate, so that no more is suggested in one go.
_AT_MOST = 100
_TINY_RATE = 1e-8  # of which updates are lost in rounding
TARGET = 1e-3  # update over weight of a layer that trains well


class LearningRateTooHigh(DebugRule):
    """Fires when a step changes weights by more than `large_update` of their size (90th percentile
    of the layers that have a gradient) and the loss suffers: it ends `rise` of its first value
    above that or above its best, leaps to three times its first value without coming back, swings
    without falling (by its second differences and changes of sign), or is no number. SageMaker has
    no such rule.

    The learning rate that it suggests would have made the largest of these updates `target_update`,
    which is more than a trained layer's should be, since new heads begin with larger ones; it is
    half the present rate at most. An error if the updates are a hundred times the weights, or the
    loss ends at ten times its first value or is no number.
    """

    name: ClassVar[str] = "learning_rate_too_high"
    needs: ClassVar[tuple[str, ...]] = ("weights", "losses")

    large_update: float = Field(
        0.03, gt=0, description="Update over weight above which the learning rate is suspected."
    )
    target_update: float = Field(0.01, gt=0, description="Update over weight that is aimed at.")
    rise: float = Field(0.3, gt=0, description="Rise of the loss, as a share of its first value.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors = record.tensors
        losses, ratios = tensors.losses("train"), update_ratios(tensors)
        paces = quantiles(ratios.values.T, _FASTEST)
        broken = losses.steps[~np.isfinite(losses.values)]
        if len(broken):
            trouble = f"is no number from step {broken[0]} on"
            paces[ratios.steps > broken[0]] = np.nan  # what comes later tells nothing
        else:
            trouble = _trouble(losses.values, self.rise)
        if not trouble or not (paces > self.large_update).any():
            return
        # Steps of a network that is ruined already say nothing of the rate that ruined it.
        before = ratios.steps < _ruined_from(losses)
        if (paces[before] > self.large_update).any():
            paces[~before] = np.nan
        at = int(np.nanargmax(paces))
        step, pace = int(ratios.steps[at]), float(paces[at])
        rate = rate_at(tensors, step)
        better = None if rate is None else min(_rounded(rate * self.target_update / pace), rate / 2)
        change = (
            f"Divide the learning rate by about {max(_rounded(pace / self.target_update), 2):g}"
            if better is None
            else f"Set the learning rate to about {better:.2g} instead of {rate:.3g}"
        )
        ruined = bool(len(broken)) or pace > _RUINED or _is_ruined(losses.values)
        yield self.finding(
            f"A step changes the weights by {pace:.2g} of their size and the loss {trouble}: the "
            "learning rate is too high.",
            f"{change}, and begin with a warm-up.",
            severity="error" if ruined else "warning",
            step=step,
            measured=pace,
            threshold=self.large_update,
            suggested_lr=better,
            learning_rate=rate,
        )


class LearningRateTooLow(DebugRule):
    """Fires when steps change weights by less than `small_update` of their size (median of layers
    and steps) and the loss, which could fall, fell by less than `fall` from the first quarter of
    the recorded steps to the last. SageMaker has no such rule.

    Steps of a warm-up or of a schedule's end (below 1 % of the highest rate) do not count, nor do
    layers whose gradient vanishes; nor is a network judged that has converged. Suggested is the
    highest rate of a schedule at which the median update would be `target_update`, at most 1 and a
    hundred times the present one; where updates cannot be measured, the rate at which Adam, which
    moves each weight by about the rate, would make such updates.
    """

    name: ClassVar[str] = "learning_rate_too_low"
    needs: ClassVar[tuple[str, ...]] = ("weights", "gradients", "losses")

    small_update: float = Field(
        1e-5, gt=0, description="Update over weight below which the learning rate is suspected."
    )
    target_update: float = Field(1e-3, gt=0, description="Update over weight that is aimed at.")
    fall: float = Field(0.05, ge=0, lt=1, description="Fall of the loss that is learning.")
    min_saves: int = Field(10, ge=4, description="Recorded steps before anything is said.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors = record.tensors
        ratios, losses = update_ratios(tensors), tensors.losses("train").values
        working = in_force(tensors, ratios.steps)
        if min(int(working.sum()), len(losses)) < self.min_saves or not np.isfinite(losses).all():
            return
        pace = pace_of(tensors, self.target_update)
        quarter = len(losses) // 4
        begin, end = float(losses[:quarter].mean()), float(losses[-quarter:].mean())
        fell = begin - end > self.fall * abs(begin)
        if not pace.update < self.small_update or fell or has_converged(tensors):
            return
        yield self.finding(
            f"A step changes the weights by {pace.update:.2g} of their size and the loss fell only "
            f"from {begin:.4g} to {end:.4g}: the learning rate is too low.",
            f"Set the learning rate to about {pace.better:.2g}"
            + ("." if pace.peak is None else f" instead of {pace.peak:.3g}."),
            step=int(ratios.steps[working][-1]),
            measured=pace.update,
            threshold=self.small_update,
            suggested_lr=pace.better,
            learning_rate=pace.peak,
        )


class Pace(NamedTuple):
    """The median `update` of weights over their size (NaN where none is known), the highest
    learning rate (None likewise), and the one that would do `better`."""

    update: float
    peak: float | None
    better: float


def pace_of(tensors: Tensors, target: float = TARGET) -> Pace:
    """How fast weights move at the rates that there were, and the highest rate at which they would
    move by `target` of their size."""
    ratios, rates = update_ratios(tensors, least_gradient=VANISHED), tensors.learning_rates()
    working = in_force(tensors, ratios.steps)
    updates = medians(ratios.values[working].T)
    peak = float(rates.values.max()) if len(rates) else None
    if peak is None or peak < _TINY_RATE or not median(updates) > 0:
        sizes = tensors.matrix("abs_mean", names=layer_weights(tensors, "weights")).values
        return Pace(median(updates), peak, _rounded(target * median(medians(sizes))) or TARGET)
    # Each update belongs to the rate of its own step: the last one of a schedule is next to none.
    at = np.searchsorted(rates.steps, ratios.steps[working], "right") - 1
    with np.errstate(divide="ignore"):
        better = _rounded(target * median(rates.values[np.maximum(at, 0)] / updates))
    return Pace(median(updates), peak, min(better, _rounded(_AT_MOST * peak), max(1.0, peak)))


def rate_is_too_high(record: TrainingRecord) -> Finding | None:
    """What LearningRateTooHigh finds by its defaults, for rules whose own finding follows from
    it."""
    return next(iter(LearningRateTooHigh().judge(record)), None)


def way_out(record: TrainingRecord, rate: float | None) -> str:
    """What to do about a loss that does not fall at a highest rate of `rate` (None if it is not
    known), with the rate that the updates ask for."""
    if rate == 0:
        return "The learning rate is 0: set one, such as 0.001."
    if gradients_have_vanished(record.tensors):
        size = "zero" if largest_gradient(record.tensors) == 0 else "next to zero"
        return (
            f"All gradients are {size}, which no learning rate makes up for: look for detach(), "
            "for ReLUs that are all dead (dead_relu), and for weights that are all zero."
        )
    if high := rate_is_too_high(record):
        return high.advice
    pace = pace_of(record.tensors)
    see = "that the optimiser has the parameters that train"
    if np.isfinite(pace.update) and rate is not None and pace.better < 2 * rate:
        return (
            f"A step changes the weights by {pace.update:.2g} of their size, so that the learning "
            f"rate is not too low: see {see}, and that labels belong to their pictures."
        )
    if np.isfinite(pace.update):
        advice = f"Try a learning rate of {pace.better:.2g}"
    elif rate is None:
        advice = "Try ten times the rate"
    else:
        advice = f"Try a learning rate of {10 * rate if rate > _TINY_RATE else 0.001:.2g}"
    return f"{advice}, and see {see}, and that labels belong to their pictures."


def _trouble(losses: Array, rise: float) -> str:
    """What a loss that is finite suffers from, in words; nothing if it does not."""
    if len(losses) < 6:
        return ""
    width = min(max(len(losses) // 8, 1), 50)
    smooth = np.convolve(losses, np.full(width, 1 / width), "valid")
    first, best, end = losses[0], smooth.min(), _end(losses)
    # A loss may begin at zero or below, and then has fallen by more than it began with.
    size = max(abs(first), first - best)
    if size == 0:
        return ""
    if end > first + rise * size:
        return f"rose from {first:.4g} to {end:.4g}"
    if end - best > rise * size:
        return f"rose again from {best:.4g} to {end:.4g}"
    stays = end > first - 0.1 * size
    if stays and losses.max() > first + 2 * size:
        return f"leapt from {first:.4g} to {losses.max():.4g}"
    slopes, bends = np.diff(smooth), np.diff(smooth, 2)
    turns = float((slopes[1:] * slopes[:-1] < 0).mean())
    if stays and turns > 0.4 and np.abs(bends).mean() > 0.25 * abs(smooth.mean()):
        return "swings without falling"
    return ""


def _is_ruined(losses: Array) -> bool:
    return bool(losses[0] > 0 and _end(losses) > _RUINED_LOSS * losses[0])


def _ruined_from(losses: Series) -> float:
    """The first step whose loss is so high that nothing is left of the network."""
    first = losses.values[0]
    over = losses.steps[losses.values > _RUINED_LOSS * first] if first > 0 else losses.steps[:0]
    return float(over[0]) if len(over) else float("inf")


def _end(losses: Array) -> float:
    return float(np.median(losses[-max(len(losses) // 4, 2) :]))  # one odd batch is no end


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
