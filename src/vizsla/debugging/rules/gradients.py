"""Rules on how weights begin and learn: gradients, initialisation, the size of updates.

They judge many tensors at once, from reductions alone, and give one finding for a cause rather
than one for each layer. What an update says of the learning rate is in `learning_rate.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vizsla.debugging.format import GRADIENT
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule, in_words
from vizsla.debugging.rules.learning_rate import rate_is_too_high
from vizsla.debugging.rules.losses import noise_of
from vizsla.debugging.rules.measures import (
    SHOWN,
    VANISHED,
    Array,
    fan_in,
    fan_out,
    has_beginning,
    has_converged,
    he_std,
    in_force,
    layer_weights,
    medians,
    recent_gradients,
    update_ratios,
)
from vizsla.debugging.tensors import Tensors
from vizsla.findings import Finding

# A fall of the loss that noise may hide, as a share of it.
_HIDDEN = 0.05
# Updates that many times the weights leave nothing of them.
_RUINED = 100
# A scale that began at zero and is smaller than this has hardly moved.
_UNMOVED = 1e-3


class VanishingGradient(DebugRule):
    """Fires when a layer's gradient has a mean absolute value below `threshold`.

    Deviations: it is the median of the last five recorded steps, of two at least, because layers
    behind a weight that starts at zero have no gradient in the first step. Biases are left out: in
    front of a normalisation theirs is zero by nature. A gradient with a NaN or an infinity is left
    to ExplodingTensor, and a network whose loss is all but gone may have small gradients.
    """

    name: ClassVar[str] = "vanishing_gradient"
    needs: ClassVar[tuple[str, ...]] = ("gradients", "losses")

    threshold: float = Field(
        1e-7, ge=0, description="Mean absolute gradient below which a layer does not learn."
    )

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors = record.tensors
        sizes, names, step = recent_gradients(tensors)
        tiny = np.flatnonzero(sizes < self.threshold)
        if not len(tiny) or has_converged(tensors):
            return
        layers = [names[at].removeprefix(GRADIENT) for at in tiny]
        worst = int(tiny[np.argmin(sizes[tiny])])
        layer = names[worst].removeprefix(GRADIENT)
        yield self.finding(
            f"The gradients of {len(tiny)} of {len(names)} weights are below {self.threshold:g} "
            f"({in_words(layers)}): these layers do not learn.",
            _remedy(record, layer, float(sizes[worst])),
            step=step,
            layer=layer,
            measured=float(sizes[worst]),
            threshold=self.threshold,
            cause="vanishing",
            layers=layers[:SHOWN],
            largest_gradient=float(np.nanmax(sizes)),
        )


class PoorWeightInitialization(DebugRule):
    """Fires when the first `steps` recorded steps of a run show that it began badly: the variances
    of the layers' weights differ by more than a factor of `threshold`, or the narrowest gradient
    has a range from its 5th to its 95th percentile below `distribution_range`, or the loss is flat
    for `patience` saves.

    Deviations: a layer's variance is multiplied by its fan-in or its fan-out, whichever is nearer
    to the other layers', since good initialisation makes wide layers' weights smaller; weights of
    fewer than two dimensions are left out. The loss is flat when it varies by less than 0.1 %.
    Variances and gradients count only while the mean loss of the last `patience` saves is not 1 %
    below that of the saves before, and noise could hide no fall of 5 %: healthy deep networks show
    both and learn. Losses are those after a learning rate's warm-up. The activations of
    `activation_inputs_regex` are not looked at. A run that went on from another step, or whose
    first steps are no longer known, is not judged, nor is one that began with trained weights.
    """

    name: ClassVar[str] = "poor_weight_initialization"
    needs: ClassVar[tuple[str, ...]] = ("weights", "gradients", "losses")

    threshold: float = Field(
        10.0, gt=1, description="Ratio of largest to smallest variance times fan-in of the layers."
    )
    distribution_range: float = Field(
        0.001, ge=0, description="Narrowest range of a layer's gradient, 5th to 95th percentile."
    )
    patience: int = Field(5, ge=2, description="Saves over which a flat loss is one that stays.")
    steps: int = Field(10, ge=2, description="First recorded steps that are looked at.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors = record.tensors
        weights = record.facts.get("model", {}).get("weights", "none")
        if not has_beginning(tensors) or not str(weights).startswith("none"):
            return
        count = max(self.steps, self.patience + 1)
        losses = _losses_at_work(tensors)[:count]
        if (0 < len(losses) < count) or not np.isfinite(losses).all():
            return
        if not len(losses) and len(tensors.losses("train")):
            return  # it still warms up
        last, before = losses[-self.patience :], losses[: -self.patience]
        still = 0.001 * abs(float(last.mean())) if len(last) else 0.0
        flat = len(last) > 0 and float(np.ptp(last)) < still
        if flat or not len(last) or _has_not_fallen(before, last):
            found = self._variances(tensors) or self._gradients(tensors)
            if found is None and flat:
                found = {
                    "meaning": f"The loss stays at {last.mean():.4g} in the first steps.",
                    "measured": float(np.ptp(last)),
                    "threshold": still,
                }
            if found is not None:
                yield self._found(tensors, flat, **found)

    def _variances(self, tensors: Tensors) -> dict[str, Any] | None:
        """The ratio of variances, if it is too large at the first step."""
        names = layer_weights(tensors, "weights")
        stds = tensors.matrix("std", names=names)
        if not len(names) or not len(stds.steps):
            return None
        fans = np.array([(fan_in(tensors, name), fan_out(tensors, name)) for name in names])
        scaled = stds.values[0][:, None] ** 2 * fans
        known = np.flatnonzero(np.isfinite(scaled).all(axis=1))
        if not len(known):
            return None
        low, high = scaled.min(axis=1), scaled.max(axis=1)
        least, most = int(known[np.argmin(high[known])]), int(known[np.argmax(low[known])])
        if 0 < low[most] <= self.threshold * high[least]:
            return None
        same = high[least] == 0
        ratio = None if same else float(low[most] / high[least])
        words = (
            f"The weights of {names[least]} all begin alike, so that its units learn the same."
            if same
            else f"The weights of {names[most]} vary {ratio:.3g} times more for their size than "
            f"those of {names[least]}."
        )
        layer = names[least if same or high[least] < 0.1 else most]
        facts = {"layer": layer, "step": int(stds.steps[0])}
        return {"meaning": words, "measured": ratio, "threshold": self.threshold, **facts}

    def _gradients(self, tensors: Tensors) -> dict[str, Any] | None:
        """The narrowest gradient of the first steps, if it is too narrow."""
        names = layer_weights(tensors, "gradients")
        low, high = (tensors.matrix(one, names=names) for one in ("quantile_5", "quantile_95"))
        with np.errstate(invalid="ignore"):  # infinities
            widths = medians(high.values[: self.steps] - low.values[: self.steps])
        narrow = np.flatnonzero(widths < self.distribution_range)
        if not len(narrow):
            return None
        worst = int(narrow[np.argmin(widths[narrow])])
        layers = [names[at].removeprefix(GRADIENT) for at in narrow]
        return {
            "meaning": f"The gradients of {len(narrow)} of {len(names)} layers are all close to "
            f"zero ({in_words(layers)}).",
            "layer": names[worst].removeprefix(GRADIENT),
            "measured": float(widths[worst]),
            "threshold": self.distribution_range,
            "layers": layers[:SHOWN],
        }

    def _found(
        self, tensors: Tensors, flat: bool, meaning: str, layer: str | None = None, **facts: Any
    ) -> Finding:
        course = " The loss does not move." if flat else ""
        value = he_std(tensors, layer) if layer is not None else None
        advice = "Initialise layers so that signals keep their size (He's for ReLU, Xavier's else)"
        if layer is not None and value is not None:
            advice += f": {layer} with a standard deviation of {value:.2g}"
        return self.finding(
            meaning + (course if layer is not None else ""),
            advice + ", or begin with pretrained weights.",
            layer=layer,
            cause="start",
            suggested_std=value,
            **facts,
        )


class WeightUpdateRatio(DebugRule):
    """Fires when a step changes weights by more than `large_threshold` times their size, or by
    less than `small_threshold`.

    What is measured is one optimiser step: the mean absolute change over the mean absolute weight,
    of a sample of at most 4,096 values (SageMaker compared a save with an earlier one). With
    `num_steps` n it is the mean over the last n saves. Deviations: only weights of layers are
    looked at, no scales, tokens or biases; a tensor that is all zeros, or whose gradient is, has no
    ratio; too small must hold three times in a row, for mixed precision skips single steps; and
    small updates are meant where the learning rate is below 1 % of its highest or the loss is all
    but gone. Those that follow from vanished gradients or from too high a learning rate are told
    by the rules on these. An error where an update is a hundred times the weights.
    """

    name: ClassVar[str] = "weight_update_ratio"
    needs: ClassVar[tuple[str, ...]] = ("weights",)

    large_threshold: float = Field(10.0, gt=0, description="Largest update over weight.")
    small_threshold: float = Field(1e-8, ge=0, description="Smallest update over weight.")
    epsilon: float = Field(1e-9, gt=0, description="Added to the weight, against small divisors.")
    num_steps: int | None = Field(
        None, ge=1, description="Saves whose mean is judged; none judges each save by itself."
    )

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        ratios = update_ratios(record.tensors, self.epsilon)
        count = self.num_steps or 1
        if len(ratios.steps) < count or not ratios.names:
            return
        large = _means(ratios.values, count)
        over = np.nan_to_num(large, nan=0.0) > self.large_threshold
        if over.any():
            worst = np.nan_to_num(large, nan=0.0) > max(_RUINED, self.large_threshold)
            over = worst if worst.any() else over
            first = int(np.argmax(over.any(axis=1)))
            step = int(ratios.steps[first + count - 1])
            yield self._found(ratios.names, large[first], over[first], step, too="large")
        # Of layers whose gradient vanishes another rule tells.
        ratios = update_ratios(record.tensors, self.epsilon, least_gradient=VANISHED)
        working = in_force(record.tensors, ratios.steps)
        small = _means(ratios.values[working], count)[-3:]
        under = np.asarray((small < self.small_threshold).all(axis=0))
        if len(small) < 3 or not under.any() or has_converged(record.tensors):
            return
        if rate_is_too_high(record) is None:
            step = int(ratios.steps[working][-1])
            yield self._found(ratios.names, small[-1], under, step, too="small")

    def _found(
        self, names: tuple[str, ...], ratios: Array, out: NDArray[np.bool_], step: int, too: str
    ) -> Finding:
        layers = [names[at] for at in np.flatnonzero(out)]
        chosen = np.where(out, ratios, np.nan)
        worst = int(np.nanargmax(chosen) if too == "large" else np.nanargmin(chosen))
        meaning, advice = {
            "large": (
                "a step throws away what they had learned.",
                "Lower the learning rate or clip gradients; learning_rate_too_high says by how "
                "much.",
            ),
            "small": (
                "they do not train.",
                "Raise the learning rate, or freeze these layers if they are not meant to train; "
                "weights in 16 bits also lose small updates.",
            ),
        }[too]
        return self.finding(
            f"Updates of {len(layers)} of {len(names)} weights are too {too} for their size "
            f"({in_words(layers)}): {meaning}",
            advice,
            severity="error" if too == "large" and ratios[worst] > _RUINED else "warning",
            step=step,
            layer=names[worst],
            measured=float(ratios[worst]),
            threshold=self.large_threshold if too == "large" else self.small_threshold,
            cause=too,
            layers=layers[:SHOWN],
        )


def _remedy(record: TrainingRecord, layer: str, gradient: float) -> str:
    tensors = record.tensors
    if rate := rate_is_too_high(record):
        return f"It came after too large steps, which leave units dead or saturated: {rate.advice}"
    if unmoved := _unmoved_scales(tensors):
        return (
            f"Scales begin at zero ({in_words(unmoved)}): their branch begins at zero and has "
            "hardly moved; raise the learning rate."
        )
    if gradient == 0:
        return (
            "Nothing of the loss comes back to them: look for detach(), for ReLUs that are all "
            "dead (dead_relu), and for weights that are all zero (all_zero)."
        )
    value = he_std(tensors, layer)
    stds = tensors.matrix("std", names=[layer]).values
    if value is not None and len(stds) and stds[0, 0] < 0.25 * value:
        return f"Initialise {layer} with a standard deviation of {value:.2g}, not {stds[0, 0]:.2g}."
    return (
        "Put normalisation or shortcuts (residual connections) between the layers, and ReLU in "
        "the place of sigmoid and tanh."
    )


def _unmoved_scales(tensors: Tensors) -> list[str]:
    """Scales that were all zero and hardly are more by now."""
    scales = set(tensors.collection("weights")) - set(layer_weights(tensors, "weights"))
    sizes = tensors.matrix("abs_mean", names=sorted(scales))
    if not len(sizes.steps):
        return []
    unmoved = (sizes.values[0] == 0) & (sizes.values[-1] < _UNMOVED)
    return [sizes.names[at] for at in np.flatnonzero(unmoved)]


def _losses_at_work(tensors: Tensors) -> Array:
    """The losses from where the learning rate has warmed up."""
    losses, rates = tensors.losses("train"), tensors.learning_rates()
    if not len(rates):
        return losses.values
    warm = rates.steps[np.argmax(rates.values >= 0.99 * rates.values.max())]
    return np.asarray(losses.values[losses.steps >= warm])


def _has_not_fallen(before: Array, last: Array) -> bool:
    """Whether the loss stays, and it is not only that noise hides its fall."""
    size, noise = abs(float(before.mean())), noise_of(np.concatenate([before, last]))
    chance = 2 * noise * float(np.sqrt(1 / len(before) + 1 / len(last)))
    return bool(before.mean() - last.mean() < 0.01 * size and chance <= _HIDDEN * size)


def _means(values: Array, count: int) -> Array:
    """Means of `count` rows in a row; NaN where one of them is."""
    if count == 1 or len(values) < count:
        return values if count == 1 else values[:0]
    return np.asarray(np.lib.stride_tricks.sliding_window_view(values, count, axis=0).mean(axis=-1))
