"""What rules measure of many tensors at once: medians over layers and steps, updates over weights,
whether there is anything left to learn. No rule lives here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vizsla.debugging.format import GRADIENT
from vizsla.debugging.tensors import Matrix, Tensors

SHOWN = 20  # names that a finding lists
RECENT = 5  # saves that "now" is the median of
# A network has converged below this share of its first loss, or below this loss.
_CONVERGED, _NOTHING = 0.05, 1e-4
# A rate below this share of its highest is a warm-up's or a schedule's end, which move nothing.
_IN_FORCE = 0.01
VANISHED = 1e-7  # gradients that no learning rate makes up for

Array = NDArray[np.float64]


def has_converged(tensors: Tensors) -> bool:
    """Whether the loss is all but gone, so that nothing is left to learn."""
    losses = tensors.losses("train").values
    if len(losses) < 2:
        return False
    # Of a loss that begins below zero nobody knows where it will end.
    return bool(abs(losses[-RECENT:].mean()) < max(_CONVERGED * losses[0], _NOTHING))


def has_beginning(tensors: Tensors) -> bool:
    """Whether the first recorded step is known and is the beginning of the training."""
    return tensors.steps("global")[:1] == [0] and int(tensors.sessions[0]["first_step"]) <= 1


def in_force(tensors: Tensors, steps: NDArray[np.int64]) -> NDArray[np.bool_]:
    """At which of `steps` the learning rate was at least 1 % of its highest; everywhere if it is
    not known."""
    rates = tensors.learning_rates()
    if not len(rates):
        return np.ones(len(steps), bool)
    low = rates.steps[rates.values < _IN_FORCE * rates.values.max()]
    return ~np.isin(steps, low)


def rate_at(tensors: Tensors, step: int) -> float | None:
    """The learning rate at a step, or at the last before it that has one."""
    rates = tensors.learning_rates()
    at = int(np.searchsorted(rates.steps, step, "right")) - 1
    return float(rates.values[at]) if at >= 0 else None


def recent_gradients(tensors: Tensors) -> tuple[Array, list[str], int]:
    """Mean absolute gradient (names,) of each weight, the median of the last saves; NaN where that
    is not finite or of fewer than two. Also the names, and the last step."""
    names = [name for name in tensors.collection("gradients") if not name.endswith("bias")]
    means, nans, infinities = (
        tensors.matrix(one, names=names) for one in ("abs_mean", "nans", "infs")
    )
    if not len(means.steps):
        return np.zeros(0), [], 0
    finite = nans.values + infinities.values == 0
    values = np.where(finite, means.values, np.nan)[-RECENT:]
    enough = np.isfinite(values).sum(axis=0) >= 2
    return np.where(enough, medians(values), np.nan), names, int(means.steps[-1])


def largest_gradient(tensors: Tensors) -> float:
    """The largest of `recent_gradients`; NaN if none is known."""
    return float(np.fmax.reduce(recent_gradients(tensors)[0], initial=np.nan))


def gradients_have_vanished(tensors: Tensors) -> bool:
    """Whether no weight has a gradient to speak of."""
    return largest_gradient(tensors) < VANISHED


def without_gradient(tensors: Tensors) -> set[str]:
    """The weights whose gradient has vanished."""
    sizes, names, _ = recent_gradients(tensors)
    return {names[at].removeprefix(GRADIENT) for at in np.flatnonzero(sizes < VANISHED)}


def update_ratios(tensors: Tensors, epsilon: float = 1e-9, least_gradient: float = 0.0) -> Matrix:
    """Update over weight of each layer's weight and save; NaN where it is not known, the weight
    zero, or its mean absolute gradient no more than `least_gradient`: what has none is only
    decayed. Scales and tokens are left out, which move by far less or more than layers do."""
    updates = tensors.matrix("update", names=layer_weights(tensors, "weights"))
    sizes = tensors.matrix("abs_mean", names=updates.names)
    with np.errstate(invalid="ignore", over="ignore"):
        values = updates.values * (sizes.values / (sizes.values + epsilon))
    known = (
        np.isfinite(values) & (sizes.values > 0) & ~_only_decayed(tensors, updates, least_gradient)
    )
    return Matrix(updates.steps, updates.names, np.where(known, values, np.nan), updates.present)


def _only_decayed(tensors: Tensors, updates: Matrix, least: float) -> NDArray[np.bool_]:
    """Where (steps, names) a gradient was recorded that is no more than `least`."""
    sizes = tensors.matrix("abs_mean", names=[GRADIENT + name for name in updates.names])
    _, mine, theirs = np.intersect1d(updates.steps, sizes.steps, return_indices=True)
    none = np.zeros(updates.values.shape, bool)
    none[mine] = sizes.values[theirs] <= least
    return none


def layer_weights(tensors: Tensors, collection: str) -> list[str]:
    """Of a collection the matrices of layers: no biases, scales, tokens or position embeddings."""
    shapes = {name: tensors.shape(name) for name in tensors.collection(collection)}
    return [name for name, shape in shapes.items() if len(shape) >= 2 and shape[0] > 1]


def fan_in(tensors: Tensors, name: str) -> int:
    """How many inputs a unit of a weight has."""
    return math.prod(tensors.shape(name)[1:])


def fan_out(tensors: Tensors, name: str) -> int:
    """How many units an input of a weight goes to, at all places of a convolution."""
    shape = tensors.shape(name)
    return math.prod((*shape[:1], *shape[2:]))


def he_std(tensors: Tensors, name: str) -> float | None:
    """The standard deviation of He's initialisation of a weight; None of what is no matrix."""
    return math.sqrt(2 / fan_in(tensors, name)) if len(tensors.shape(name)) >= 2 else None


def medians(values: Array) -> Array:
    """The median of each column over what is known; NaN of a column of which nothing is."""
    return quantiles(values, 0.5)


def quantiles(values: Array, share: float) -> Array:
    """A quantile, 0 to 1, of each column over what is known; NaN of a column of which nothing
    is."""
    if not len(values):
        return np.full(values.shape[1:], np.nan)
    ordered = np.sort(np.where(np.isfinite(values), values, np.nan), axis=0)  # NaN last
    at = share * np.maximum(np.isfinite(ordered).sum(axis=0) - 1, 0)
    below, columns = np.floor(at).astype(np.int64), np.arange(values.shape[1])
    low, high = ordered[below, columns], ordered[np.ceil(at).astype(np.int64), columns]
    return np.asarray(low + (at - below) * (high - low))


def median(values: Array) -> float:
    """The median of what is known of some numbers; NaN if nothing is."""
    return float(medians(values.reshape(-1, 1))[0])
