"""Rules over the pictures that go into the network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from pydantic import Field

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule
from vizsla.findings import Finding

_LISTED = 20


class CheckInputImages(DebugRule):
    """The pictures that go in are not normalised.

    Fires when the absolute mean of an input, over all its recorded pictures, exceeds
    `threshold_mean` once `threshold_samples` have gone in. Pictures are inputs of the shape
    (batch, 1 or 3, height, width), which SageMaker tells by a name pattern; others are not judged.
    Their number is the batch's size times the steps from the first recorded one to the last. In
    vizsla's own trainings, which normalise pictures as the weights want it, it is a hint (info).
    """

    name: ClassVar[str] = "check_input_images"
    needs: ClassVar[tuple[str, ...]] = ("inputs",)

    threshold_mean: float = Field(
        0.2, ge=0, le=1e6, description="Absolute mean of the input that is let pass."
    )
    threshold_samples: int = Field(500, ge=1, description="Pictures before anything is judged.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        found: list[tuple[float, str]] = []
        means = record.tensors.matrix("mean", collection="inputs")
        for name in means.names:
            shape, series = record.tensors.shape(name), means.series(name)
            values = series.values[np.isfinite(series.values)]
            if len(shape) != 4 or shape[1] not in (1, 3) or not len(values):
                continue
            gone_in = shape[0] * int(series.steps[-1] - series.steps[0] + 1)
            if gone_in >= self.threshold_samples:
                found.append((float(values.mean()), name))
        if not found:
            return []
        mean, name = max(found, key=lambda one: abs(one[0]))
        if abs(mean) <= self.threshold_mean:
            return []
        std, low, high = _spread(record, name)
        others = [other for value, other in found if abs(value) > self.threshold_mean]
        normalised = "preprocessing" in record.facts.get("model", {})
        meaning, advice = _brightness(mean) if normalised else _normalisation(mean, std, low, high)
        return [
            self.finding(
                f"The pictures in {name} have a mean of {mean:.3g} and a standard deviation of "
                f"{std:.3g} (from {low:.3g} to {high:.3g}): {meaning}",
                advice,
                severity="info" if normalised else "warning",
                step=int(record.tensors.matrix("mean", names=[name]).steps[-1]),
                layer=name,
                measured=abs(mean),
                threshold=self.threshold_mean,
                mean=mean,
                std=std,
                min=low,
                max=high,
                inputs=others[:_LISTED],
            )
        ]


def _brightness(mean: float) -> tuple[str, str]:
    """Meaning and advice where vizsla has normalised them."""
    return (
        f"they are {'brighter' if mean > 0 else 'darker'} than the pictures that the weights "
        "know, after the normalisation that these want.",
        "Nothing needs changing: the normalisation stays, in training and serving alike. If the "
        "pictures are not meant to be so, look at how they were made.",
    )


def _normalisation(mean: float, std: float, low: float, high: float) -> tuple[str, str]:
    """Meaning and advice where whose loop it is has to."""
    bytes_ = f" (of values divided by 255 first: {mean / 255:.3g} and {std / 255:.3g})"
    return (
        "weights that start around 0, or were trained on normalised pictures, expect a mean near "
        "0.",
        f"Normalise them: subtract {mean:.3g} and divide by {std:.3g}"
        + (bytes_ if low >= 0 and high > 2 else "")
        + "; for pretrained weights take the mean and std that they were trained with.",
    )


def _spread(record: TrainingRecord, name: str) -> tuple[float, float, float]:
    """Standard deviation, smallest and largest value of an input over all its steps."""
    mean, std, low, high = (
        record.tensors.matrix(one, names=[name]).series(name).values
        for one in ("mean", "std", "min", "max")
    )
    there = np.isfinite([mean, std, low, high]).all(axis=0)
    if not there.any():
        return (float("nan"),) * 3
    variance = np.mean(std[there] ** 2) + np.var(mean[there])
    return float(np.sqrt(variance)), float(low[there].min()), float(high[there].max())
