"""Rules on what happens between the layers: dead ReLUs, saturated units, batch normalisation.

The first two read the share of values per unit (channel or feature) that capture keeps of an
activation; a unit's share is averaged over the last recorded steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from vizsla.debugging.format import EVAL_LOSS
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule, in_words
from vizsla.debugging.rules.measures import SHOWN, Array
from vizsla.debugging.tensors import Tensors
from vizsla.errors import SettingError
from vizsla.findings import Finding

# "Of the time" is of the last steps: what died late shows at once, what came back is forgiven.
_RECENT, _LEAST = 10, 3
# Losses closer together than this share of the first one are equal for our purposes.
_CLOSE = 0.05
# And those closer than this: a tenth of a nat is no other network.
_CLOSE_NATS = 0.1
_DEFAULT_BOUNDS = {"tanh": (-9.4999, 9.4999), "sigmoid": (-23.0, 16.99999)}


class DeadRelu(DebugRule):
    """Fires when more than `threshold_layer` percent of a layer's ReLUs (channels or features) are
    active for less than `threshold_inactivity` percent of the time.

    Deviations: "of the time" is the share of a unit's values that are above zero, over pictures
    and places, averaged over the last ten recorded steps, of three at least. SageMaker's default
    pattern `.*relu_output` is the collection relu_output here.
    """

    name: ClassVar[str] = "dead_relu"
    needs: ClassVar[tuple[str, ...]] = ("relu_output",)

    threshold_layer: float = Field(
        50.0, ge=0, le=100, description="Dead units of a layer that are too many, in percent."
    )
    threshold_inactivity: float = Field(
        1.0, ge=0, le=100, description="Activity below which a unit is dead, in percent."
    )

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors = record.tensors
        dead: dict[str, float] = {}
        for name in tensors.tensor_names(collection="relu_output", mode="train"):
            active = _recent_shares(tensors, name)
            if active is not None:
                dead[name] = _percent(active * 100 < self.threshold_inactivity)
        over = {name: share for name, share in dead.items() if share > self.threshold_layer}
        if not over:
            return
        worst = max(over, key=lambda name: over[name])
        yield self.finding(
            f"{over[worst]:.0f} % of the ReLUs in {worst} are dead, and more than "
            f"{self.threshold_layer:g} % in {len(over)} of {len(dead)} layers ({in_words(over)}): "
            "what is dead neither answers nor learns.",
            "Lower the learning rate or begin with a warm-up, begin biases at 0 and weights by "
            "He's initialisation, put batch normalisation in front, or take LeakyReLU or GELU.",
            step=tensors.steps("train")[-1],
            layer=worst,
            measured=over[worst],
            threshold=self.threshold_layer,
            cause="dead",
            layers=list(over)[:SHOWN],
        )


class SaturatedActivation(DebugRule):
    """Fires when more than `threshold_layer` percent of a layer's tanh or sigmoid units lie at the
    flat ends for more than `threshold_inactivity` percent of the time.

    The flat ends are inputs below the kind's `min` or above its `max`. They are counted while
    capturing, so that other bounds than those of the recording raise `SettingError`. Deviation:
    "of the time" is the share of a unit's values, averaged over the last ten recorded steps, of
    three at least.
    """

    name: ClassVar[str] = "saturated_activation"
    needs: ClassVar[tuple[str, ...]] = ("tanh_input", "sigmoid_input")

    threshold_tanh_min: float = Field(-9.4999, description="Input below which tanh is flat.")
    threshold_tanh_max: float = Field(9.4999, description="Input above which tanh is flat.")
    threshold_sigmoid_min: float = Field(-23.0, description="Input below which sigmoid is flat.")
    threshold_sigmoid_max: float = Field(16.99999, description="Input above which it is flat.")
    threshold_inactivity: float = Field(
        1.0, ge=0, le=100, description="Time at the flat ends that is too much, in percent."
    )
    threshold_layer: float = Field(
        50.0, ge=0, le=100, description="Saturated units that are too many, in percent."
    )

    @model_validator(mode="after")
    def _ends_are_in_order(self) -> SaturatedActivation:
        for option, (low, high) in self.asks().items():
            if low >= high:
                kind = option.removesuffix("_bounds")
                raise ValueError(f"threshold_{kind}_min must be below threshold_{kind}_max")
        return self

    def asks(self) -> Mapping[str, Any]:
        return {
            "tanh_bounds": [self.threshold_tanh_min, self.threshold_tanh_max],
            "sigmoid_bounds": [self.threshold_sigmoid_min, self.threshold_sigmoid_max],
        }

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        tensors = record.tensors
        saturated: dict[str, float] = {}
        for kind in _DEFAULT_BOUNDS:
            names = tensors.tensor_names(collection=f"{kind}_input", mode="train")
            if names:
                self._check_bounds(tensors, kind)
            for name in names:
                flat = _recent_shares(tensors, name)
                if flat is not None:
                    saturated[name] = _percent(flat * 100 > self.threshold_inactivity)
        over = {name: one for name, one in saturated.items() if one > self.threshold_layer}
        if not over:
            return
        worst = max(over, key=lambda name: over[name])
        yield self.finding(
            f"{over[worst]:.0f} % of the units in {worst} are saturated, and more than "
            f"{self.threshold_layer:g} % in {len(over)} of {len(saturated)} layers "
            f"({in_words(over)}): no gradient passes at the flat ends.",
            "Normalise the inputs or put batch normalisation in front, initialise weights smaller "
            "(Xavier's), lower the learning rate, or take ReLU.",
            step=tensors.steps("train")[-1],
            layer=worst,
            measured=over[worst],
            threshold=self.threshold_layer,
            cause="saturated",
            layers=list(over)[:SHOWN],
        )

    def _check_bounds(self, tensors: Tensors, kind: str) -> None:
        wanted = tuple(self.asks()[f"{kind}_bounds"])
        for session in tensors.sessions:
            had = session.get("capture", {}).get(f"{kind}_bounds", _DEFAULT_BOUNDS[kind])
            if not np.allclose(had, wanted):
                raise SettingError(
                    f"{self.name}: {tensors.path} was captured with {kind} bounds {had[0]:g} and "
                    f"{had[1]:g}, not {wanted[0]:g} and {wanted[1]:g}. Capture again with this "
                    f"rule, or leave threshold_{kind}_min and threshold_{kind}_max out."
                )


class BatchNormMismatch(DebugRule):
    """Fires when the loss of a batch differs between train and eval mode by more than a factor of
    `factor`, either way: the network that is evaluated and deployed is not the one that trains.
    SageMaker has no such rule.

    It is the ratio of the median losses of the last five recorded steps, of three at least, from
    `start_step` on: running statistics with the usual momentum of 0.1 need about fifty steps to
    settle. Losses that are closer than 5 % of the first one, or than 0.1, do not count, since a
    small loss is easily half of another; dropout alone makes the loss in eval mode smaller.
    """

    name: ClassVar[str] = "batch_norm_mismatch"
    needs: ClassVar[tuple[str, ...]] = ("batch_norm", "losses")

    factor: float = Field(2.0, gt=1, description="Ratio of the two losses that is too much.")
    start_step: int = Field(50, ge=0, description="First training step that is looked at.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        training = record.tensors.losses("train")
        answering = record.tensors.losses("train", EVAL_LOSS)
        steps, mine, theirs = np.intersect1d(training.steps, answering.steps, return_indices=True)
        late = steps >= self.start_step
        steps, train, evaluated = (
            steps[late][-5:], training.values[mine][late][-5:], answering.values[theirs][late][-5:]
        )  # fmt: skip
        if len(steps) < _LEAST or not np.isfinite(train).all() or (train <= 0).any():
            return
        middle, other = float(np.median(train)), float(np.median(evaluated))
        broken = not np.isfinite(other)
        near = abs(other - middle) < max(_CLOSE * abs(training.values[0]), _CLOSE_NATS)
        ratio = other / middle
        if not broken and (near or 1 / self.factor <= ratio <= self.factor):
            return
        better = not broken and ratio < 1
        yield self.finding(
            f"The same batches have a loss of {middle:.3g} in train mode and {other:.3g} in eval "
            f"mode: {_BETTER if better else _WORSE}",
            _WHEN_BETTER if better else _WHEN_WORSE,
            severity="error" if broken else "warning",
            step=int(steps[-1]),
            measured=None if broken else max(ratio, 1 / max(ratio, 1e-12)),
            threshold=self.factor,
            train_mode_loss=middle,
            eval_mode_loss=None if broken else other,
        )


_WORSE = "the running statistics of batch normalisation do not describe the data."
_BETTER = "statistics of single batches, or dropout, hold training back."
_WHEN_WORSE = (
    "Set the momentum of BatchNorm to 0.1, train on larger batches (16 pictures a device or more), "
    "compute the statistics again with torch.optim.swa_utils.update_bn(loader, model), or keep "
    "pretrained BatchNorm layers in eval mode."
)
_WHEN_BETTER = (
    "Take larger batches, GroupNorm in place of BatchNorm, or less dropout and stochastic depth; "
    "with strong dropout on purpose a higher factor is right."
)


def _recent_shares(tensors: Tensors, name: str) -> Array | None:
    """Share per unit over the last recorded steps (units,); None of too few steps."""
    steps, shares = tensors.units(name, last=_RECENT)
    return shares.mean(axis=0) if len(steps) >= _LEAST else None


def _percent(marked: Any) -> float:
    return float(np.mean(marked)) * 100
