"""Rules on tensors of any kind: broken, all zero, too varied, standing still, equal in two runs.

Each takes a `collection`, a `regex` for names, or both, to say which tensors; without either it
looks where its finding would mean something.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vizsla.debugging.format import IN_LINES, STORED
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule, in_words
from vizsla.debugging.rules.learning_rate import rate_is_too_high
from vizsla.debugging.rules.measures import (
    SHOWN,
    Array,
    gradients_have_vanished,
    has_converged,
    layer_weights,
    without_gradient,
)
from vizsla.debugging.tensors import Matrix, Tensors, open_tensors
from vizsla.errors import RunError, SettingError
from vizsla.findings import Finding

# What makes two tensors the same; an update is of a step, not of the tensor.
_COMPARED = tuple(one for one in STORED if one not in ("update", "size"))
_SAVES = 3  # in a row, before a tensor counts as all zero
# Where a number that is broken comes from, if several tensors break in one step: as data flows.
_ORIGIN = ("inputs", "weights", "biases", "outputs", "losses", "gradients")
_CAUSES = {
    "inputs": "The data bring it: check pictures and their normalisation for it.",
    "weights": "An update before did it: lower the learning rate, or clip gradients.",
    "biases": "An update before did it: lower the learning rate, or clip gradients.",
    "losses": "Lower the learning rate, look for log(0) and division by zero in the loss, and in "
    "16 bits take bfloat16 or a gradient scaler.",
    "gradients": "The backward pass makes it, as a root or a norm of zero does: add a small "
    "epsilon there, clip gradients, and in float16 use a gradient scaler.",
}
_ANY_CAUSE = "Lower the learning rate, clip gradients, and in float16 take bfloat16 instead."


class _TensorRule(DebugRule):
    """Chooses tensors by collection and pattern. `usual` are the collections without either."""

    usual: ClassVar[tuple[str, ...]] = ()

    collection: str | None = Field(None, description="A collection, such as gradients.")
    regex: str | None = Field(None, description="A pattern found anywhere in a tensor's name.")

    def chosen(self, tensors: Tensors, mode: str = "train") -> list[str]:
        """Names of tensors that have reductions, which losses, labels and predictions have not."""
        names = tensors.tensor_names(self.regex, self.collection, mode)
        homes = {name: tensors.tensor(name).collection for name in names}
        usual = self.usual if self.collection is None and self.regex is None else ()
        return [
            name
            for name, home in homes.items()
            if home not in IN_LINES and (not usual or home in usual)
        ]

    def is_told_where(self) -> bool:
        """Whether tensors were named, so that nobody else is to speak of them."""
        return self.collection is not None or self.regex is not None


class ExplodingTensor(_TensorRule):
    """Fires when a tensor has a NaN or, unless `only_nan`, an infinity. Without `collection` and
    `regex` these are all recorded tensors and the losses, in training and evaluation.

    Deviation: gradients and losses that were infinite or NaN and became finite again, while weights
    never broke, are told as a hint (info): a gradient scaler skips such steps.
    """

    name: ClassVar[str] = "exploding_tensor"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "losses")

    only_nan: bool = Field(False, description="Whether infinities are left alone.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        for mode in record.tensors.modes():
            broken = self._broken(record.tensors, mode)
            if broken:
                found = self._found(record.tensors, mode, broken)
                yield found
                if found.severity == "error":
                    return  # one cause, which later modes only show again

    def _broken(self, tensors: Tensors, mode: str) -> dict[str, NDArray[np.int64]]:
        """Names of broken tensors and the steps at which they were."""
        found: dict[str, NDArray[np.int64]] = {}
        for name in tensors.tensor_names(self.regex, self.collection, mode):
            if tensors.tensor(name).collection == "losses":
                losses = tensors.losses(mode, name)
                bad = np.isnan(losses.values)
                if not self.only_nan:
                    bad |= np.isinf(losses.values)
                found[name] = losses.steps[bad]
        counts = tensors.matrix("nans", names=(names := self.chosen(tensors, mode)), mode=mode)
        there = counts.values > 0
        if not self.only_nan:
            there |= tensors.matrix("infs", names=names, mode=mode).values > 0
        for at in np.flatnonzero(there.any(axis=0)):
            found[names[at]] = counts.steps[there[:, at]]
        return {name: steps for name, steps in found.items() if len(steps)}

    def _found(self, tensors: Tensors, mode: str, broken: dict[str, NDArray[np.int64]]) -> Finding:
        step = min(int(steps[0]) for steps in broken.values())
        homes = {name: tensors.tensor(name).collection for name in broken}
        first = [name for name, steps in broken.items() if steps[0] == step]
        first.sort(key=lambda name: _place(homes[name]))
        if past := _is_past(tensors, mode, broken, homes):
            course = "later steps none: such a step teaches nothing"
            advice = "This is harmless if a gradient scaler skipped the step."
        else:
            course = "the network learns and answers nothing from there on"
            advice = _CAUSES.get(homes[first[0]], _ANY_CAUSE)
        return self.finding(
            f"{in_words(first)} had {'a NaN' if self.only_nan else 'a NaN or an infinity'} in "
            f"step {step}{'' if mode == 'train' else f' of {mode}'}; {course}.",
            advice,
            severity="info" if past else "error",
            step=step,
            layer=first[0],
            measured=float(len(broken)),
            threshold=0.0,
            cause="past" if past else "broken",
            layers=first[:SHOWN],
            mode=mode,
        )


class AllZero(_TensorRule):
    """Fires when at least `threshold` percent of a tensor's values are exactly zero.

    Deviations: in three recorded steps in a row, the last ones, since weights and gradients may
    begin at zero (a normalisation's last scale, a new head, a warm-up) and leave it in a step or
    two. Without `collection` and `regex` weights and gradients are looked at: biases and inputs
    may be zero, and of gradients that have all vanished (vanishing_gradient) or a learning rate
    that is too high only the rules on these speak, but for layers' weights that are zero, which
    explain the former. A network whose loss is all but gone may have no gradient.
    """

    name: ClassVar[str] = "all_zero"
    needs: ClassVar[tuple[str, ...]] = ("weights", "gradients")
    usual: ClassVar[tuple[str, ...]] = ("weights", "gradients")

    threshold: float = Field(100.0, gt=0, le=100, description="Zeros, in percent of the values.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        names = self._named(record)
        zeros = record.tensors.matrix("zeros", names=names)
        recent = zeros.values[-_SAVES:] * 100
        if len(recent) < _SAVES or has_converged(record.tensors):
            return
        # A share is stored in single precision.
        empty = np.flatnonzero((recent >= self.threshold - 1e-4).all(axis=0))
        if not len(empty):
            return
        listed = [names[at] for at in empty]
        worst = int(empty[np.argmax(recent[-1, empty])])
        yield self.finding(
            f"{len(empty)} of {len(names)} tensors are zero to at least {self.threshold:g} % "
            f"({in_words(listed)}).",
            "Zero gradients come from dead ReLUs (dead_relu), from detach() and from weights that "
            "all begin at zero; zero weights from their initialisation (He's for ReLU, Xavier's "
            "else) or from a weight decay that is too strong.",
            step=int(zeros.steps[-1]),
            layer=names[worst],
            measured=float(recent[-1, worst]),
            threshold=self.threshold,
            cause="zero",
            layers=listed[:SHOWN],
        )

    def _named(self, record: TrainingRecord) -> list[str]:
        names = self.chosen(record.tensors)
        if self.is_told_where():
            return names
        if gradients_have_vanished(record.tensors):
            layers = layer_weights(record.tensors, "weights")
            names = [name for name in names if name in layers]
        return [] if rate_is_too_high(record) else names


class TensorVariance(_TensorRule):
    """Fires when a tensor's variance is above `max_threshold` or below `min_threshold` at any
    recorded step; with neither given it never does. Without `collection` and `regex` it looks at
    all recorded tensors. Deviation: single numbers have no variance that could be too small.
    """

    name: ClassVar[str] = "tensor_variance"
    needs: ClassVar[tuple[str, ...]] = ("weights", "gradients")

    max_threshold: float | None = Field(None, ge=0, description="Largest variance; none is any.")
    min_threshold: float | None = Field(None, ge=0, description="Smallest variance; none is any.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        names = self.chosen(record.tensors)
        matrix = record.tensors.matrix("variance", names=names)
        if self.max_threshold is not None:
            yield from self._outside(matrix, matrix.values, self.max_threshold, "above")
        if self.min_threshold is not None:
            many = np.array([np.prod(record.tensors.shape(name)) > 1 for name in names], bool)
            values = np.where(many, matrix.values, np.nan)
            yield from self._outside(matrix, values, self.min_threshold, "below")

    def _outside(
        self, matrix: Matrix, values: Array, threshold: float, side: str
    ) -> Iterable[Finding]:
        out = values > threshold if side == "above" else values < threshold
        if not out.any():
            return
        inside = np.where(out, values, np.nan)
        at = int(np.nanargmax(inside) if side == "above" else np.nanargmin(inside))
        row, column = divmod(at, values.shape[1])
        listed = [matrix.names[one] for one in np.flatnonzero(out.any(axis=0))]
        yield self.finding(
            f"The variance of {in_words(listed)} is {side} {threshold:g}, first in step "
            f"{matrix.steps[np.argmax(out.any(axis=1))]}.",
            "Normalise what goes into these layers, and check their initialisation and the "
            "learning rate."
            if side == "above"
            else "Check that these layers get different inputs, and that they are not initialised "
            "alike.",
            step=int(matrix.steps[row]),
            layer=matrix.names[column],
            measured=float(values[row, column]),
            threshold=threshold,
            cause=side,
            layers=listed[:SHOWN],
        )


class UnchangedTensor(_TensorRule):
    """Fires when a tensor is the same in the last `num_steps` saves. Without `collection` and
    `regex` weights are looked at, of which those that do not train are not recorded; biases in
    front of a normalisation stand still by nature.

    Deviation: reductions are compared, not values: all that are stored agree as `numpy.allclose`
    has it, and where the optimiser's update of the tensor is known it is exactly zero. Weights
    that a small learning rate moves by less than the tolerance are therefore not reported, nor a
    network whose loss is all but gone; nor, without `collection` and `regex`, what other rules say:
    tensors that are all zero, a gradient that has vanished, too high a learning rate.
    """

    name: ClassVar[str] = "unchanged_tensor"
    needs: ClassVar[tuple[str, ...]] = ("weights",)
    usual: ClassVar[tuple[str, ...]] = ("weights",)

    num_steps: int = Field(3, ge=2, description="Saves in which the tensor is the same.")
    rtol: float = Field(1e-5, ge=0, description="Relative tolerance.")
    atol: float = Field(1e-8, ge=0, description="Absolute tolerance.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors, names = record.tensors, self.chosen(record.tensors)
        steps, still = self._still(tensors, names)
        if not self.is_told_where():
            still &= ~(tensors.matrix("zeros", names=names).values[-_SAVES:] == 1).all(axis=0)
            gone = without_gradient(tensors)
            still &= np.array([name not in gone for name in names], bool)
        if not still.any() or has_converged(tensors):
            return
        if not self.is_told_where() and rate_is_too_high(record):
            return
        listed = [names[at] for at in np.flatnonzero(still)]
        rate = tensors.learning_rates().values[-1:]
        yield self.finding(
            f"{len(listed)} of {len(names)} tensors have not changed from step {steps[0]} to "
            f"{steps[-1]} ({in_words(listed)}).",
            "The learning rate is 0: give the optimiser one, such as 1e-3 for Adam."
            if len(rate) and rate[0] == 0
            else "If they are to train, check that the loss depends on them (no detach(), no dead "
            "ReLUs) and that the learning rate is not too small for their precision; else freeze "
            "them with requires_grad_(False), which saves time.",
            step=int(steps[-1]),
            layer=listed[0],
            measured=0.0,
            threshold=self.rtol,
            cause="unchanged",
            layers=listed[:SHOWN],
        )

    def _still(
        self, tensors: Tensors, names: Sequence[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The last saves, and which tensors are the same in all of them."""
        updates = tensors.matrix("update", names=names)
        recent = updates.values[-self.num_steps :]
        if len(recent) < self.num_steps:
            return updates.steps[:0], np.zeros(len(names), bool)
        still = (np.isnan(recent) | (recent == 0)).all(axis=0)
        still &= updates.present[-self.num_steps :].all(axis=0)
        for one in _COMPARED:
            values = tensors.matrix(one, names=names).values[-self.num_steps :]
            still &= np.isclose(values, values[:1], self.rtol, self.atol).all(axis=0)
        return updates.steps[-self.num_steps :], still


class SimilarAcrossRuns(_TensorRule):
    """Fires when tensors are equal to another run's at every step that both recorded, two steps at
    least. `other_runs` are run folders; a semicolon divides them (a comma would divide rules).
    Without `collection` and `regex` weights and gradients are looked at.

    Deviation: reductions are compared, all that are stored, as `numpy.allclose` has it.
    """

    name: ClassVar[str] = "similar_across_runs"
    needs: ClassVar[tuple[str, ...]] = ("weights", "gradients")
    usual: ClassVar[tuple[str, ...]] = ("weights", "gradients")

    other_runs: str = Field(min_length=1, description="Run folders, divided by semicolons.")
    rtol: float = Field(1e-5, ge=0, description="Relative tolerance.")
    atol: float = Field(1e-8, ge=0, description="Absolute tolerance.")

    def __init__(self, **values: Any) -> None:
        if not values.get("other_runs"):  # pydantic's words for it say no way out
            raise SettingError(f"{self.name} needs other_runs: write {self.name}:other_runs=RUN")
        super().__init__(**values)

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        mine = self.chosen(record.tensors)
        for other in self._others():
            there = set(other.tensor_names(mode="train"))
            names = [name for name in mine if name in there]
            steps, same = self._same(record.tensors, other, names)
            if not same.any():
                continue
            listed = [names[at] for at in np.flatnonzero(same)]
            yield self.finding(
                f"{len(listed)} of {len(names)} tensors are equal to those of {other.path} at "
                f"{len(steps)} steps ({in_words(listed)}): these runs train the same.",
                "If a setting was to make a difference, check that it arrives; else one of the "
                "runs is enough.",
                step=int(steps[-1]),
                layer=listed[0],
                measured=len(listed) / len(names),
                threshold=self.rtol,
                cause=str(other.path),
                layers=listed[:SHOWN],
            )

    def _others(self) -> list[Tensors]:
        paths = [Path(one.strip()).expanduser() for one in self.other_runs.split(";")]
        missing = [str(path) for path in paths if not path.is_dir()]
        if missing:
            raise RunError(
                f"{self.name}: there is no run {', '.join(missing)}. other_runs takes run folders, "
                "divided by semicolons."
            )
        return [open_tensors(path) for path in paths]

    def _same(
        self, mine: Tensors, other: Tensors, names: Sequence[str]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Steps that both recorded, and which tensors are equal at all of them."""
        left, right = (run.matrix("nans", names=names) for run in (mine, other))
        steps, rows, others = np.intersect1d(left.steps, right.steps, return_indices=True)
        both = left.present[rows] & right.present[others]
        same = both.sum(axis=0) >= 2
        for one in _COMPARED:
            ours, theirs = (run.matrix(one, names=names).values for run in (mine, other))
            close = np.isclose(ours[rows], theirs[others], self.rtol, self.atol)
            same &= (close | ~both).all(axis=0)
        return steps, same


def _place(collection: str) -> int:
    """Where data come to a collection; what is not listed flows between inputs and losses."""
    return _ORIGIN.index(collection if collection in _ORIGIN else "outputs")


def _is_past(
    tensors: Tensors, mode: str, broken: dict[str, NDArray[np.int64]], homes: dict[str, str]
) -> bool:
    """Whether only gradients and losses broke, and none of them at its last step."""
    if not set(homes.values()) <= {"gradients", "losses"}:
        return False
    for name, steps in broken.items():
        loss = homes[name] == "losses"
        there = tensors.losses(mode, name) if loss else tensors.matrix("nans", names=[name])
        if steps[-1] >= there.steps[-1]:
            return False
    return True
