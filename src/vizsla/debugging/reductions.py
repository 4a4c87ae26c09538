"""Reducing tensors to a few numbers, at a cost that a training does not feel.

The exact sums are taken at once, in the training's own thread and on its device, in plain passes
over memory (the fused `std_mean` is several times slower on a CPU). What needs order, quantiles and
histograms, and the share of zeros are taken later by another thread, of at most 4,096 values at
distances that share no factor with the tensor's size, so that no kernel position or channel is
preferred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.parameter import is_lazy

from vizsla.debugging.format import BINS, SAMPLED, STORED, Row

# Below this size sums are taken in double precision. Above it a variance is taken from the sample
# where values hardly differ from their mean.
_SMALL = 1 << 14
_EPSILON = 1e-12
# A variance below this share of the squared mean has drowned in the rounding of float32 sums.
_DROWNED = 1e-3
_UPDATE = STORED.index("update")


@dataclass
class Reduced:
    """Tensors reduced in one step: what is exact now, what is in order later (`arrays`)."""

    rows: list[Row] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _sums: list[torch.Tensor] = field(default_factory=list)
    _samples: list[torch.Tensor] = field(default_factory=list)
    _later: dict[int, torch.Tensor] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)
    _scales: dict[int, float] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @torch.no_grad()
    def add(self, name: str, collection: str, tensor: torch.Tensor, scale: float = 1.0) -> None:
        """Reduce a tensor as it is now, divided by `scale`; anything but dense numbers is left
        out."""
        values = flattened(tensor)
        if values is None or name in self._places:
            return
        kind = str(tensor.dtype).removeprefix("torch.")
        self._places[name] = len(self.rows)
        if scale != 1.0:
            self._scales[len(self.rows)] = scale
        self.rows.append((name, collection, tuple(tensor.shape), kind))
        self._sizes.append(len(values))
        self._sums.append(_sums_of(values))
        self._samples.append(sample_of(values))

    @torch.no_grad()
    def add_later(self, name: str, tensor: torch.Tensor) -> None:
        """The same tensor after the optimiser's step, for the size of the update."""
        values = flattened(tensor)
        if values is not None and name in self._places:
            self._later[self._places[name]] = sample_of(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """`reductions` and `histograms` of the rows, in their order. May run in another thread."""
        if not self.rows:
            return {}
        alike = len({(one.dtype, one.device) for one in self._sums}) == 1  # one journey for all
        stacked = torch.stack(self._sums) if alike else None
        sums = (
            np.stack([one.cpu().double().numpy() for one in self._sums])
            if stacked is None
            else stacked.cpu().double().numpy()
        )
        reductions = np.zeros((len(self.rows), len(STORED)), np.float64)
        reductions[:, -1] = self._sizes
        histograms = np.zeros((len(self.rows), BINS), np.uint16)
        for at, sample in enumerate(self._samples):
            values = sample.cpu().numpy()
            reductions[at, :_UPDATE] = _statistics(sums[at], self._sizes[at], values)
            histograms[at] = _histogram(values, reductions[at, 2], reductions[at, 3])
            if at in self._later:
                reductions[at, _UPDATE] = _update(values, self._later[at].cpu().numpy())
            elif self.rows[at][1] in ("weights", "biases"):
                reductions[at, _UPDATE] = np.nan  # no update was seen
            if at in self._scales:
                reductions[at, :9] /= self._scales[at]  # all but shares and counts
        with np.errstate(over="ignore"):
            return {"reductions": reductions.astype(np.float32), "histograms": histograms}


def flattened(tensor: torch.Tensor) -> torch.Tensor | None:
    """Its values as one row of real numbers, without a copy where memory allows; of a sparse tensor
    those that it stores, of a complex one both parts. None of what has none: an empty, quantised,
    meta or not yet initialised tensor."""
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if is_lazy(tensor) or tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        return None
    if tensor.numel() == 0:
        return None
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    values = tensor.reshape(-1)
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def sample_of(values: torch.Tensor) -> torch.Tensor:
    """At most 4,096 of the values, at even distances that miss no residue of the size."""
    size = len(values)
    stride = -(-size // SAMPLED)
    while stride > 1 and math.gcd(stride, size) != 1:
        stride += 1
    return values[::stride].clone()


def unit_shares(
    tensor: torch.Tensor, bounds: tuple[float, float], rows_first: bool = False
) -> torch.Tensor | None:
    """Of an activation (batch, channels, height, width) or (batch, ..., features): for each unit
    the share of its values outside `bounds`. With `rows_first`, of one-dimensional convolutions,
    three dimensions are (batch, channels, length). None of anything else."""
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return None
    values = tensor.detach()
    marked = (values < bounds[0]) | (values > bounds[1])
    channels = tensor.ndim >= 4 or (tensor.ndim == 3 and rows_first)
    unit = 1 if channels else tensor.ndim - 1
    others = [dimension for dimension in range(tensor.ndim) if dimension != unit]
    return marked.float().mean(dim=others)


def _sums_of(values: torch.Tensor) -> torch.Tensor:
    """(7,): sum, sum of squares, of absolute values, min, max, NaNs, infinities; of the finite
    values alone."""
    if values.device.type != "cpu":
        return _sums_elsewhere(values)
    if len(values) <= _SMALL:
        values = values.double()
    square = torch.dot(values, values)
    nans = infinities = square.new_zeros(())
    if not math.isfinite(square.item()):  # which one number tells
        nans, infinities = values.isnan().sum().double(), values.isinf().sum().double()
        values = values[values.isfinite()].double()
        if not len(values):
            return torch.stack([*[torch.zeros_like(nans)] * 5, nans, infinities])
        square = torch.dot(values, values)
    low, high = torch.aminmax(values)
    # A 1-norm takes twice as long here, and counting what is not zero as long again.
    return torch.stack([values.sum(), square, values.abs().sum(), low, high, nans, infinities])


def _sums_elsewhere(values: torch.Tensor) -> torch.Tensor:
    """The same on an accelerator, where asking whether all are finite would wait for the device
    and another pass costs little."""
    finite = values.isfinite()
    if values.device.type != "mps":  # which has no double precision
        values = values.double()
    zeroed = values.where(finite, 0.0)
    parts = [
        zeroed.sum(), torch.dot(zeroed, zeroed), zeroed.abs().sum(),
        values.where(finite, math.inf).min(), values.where(finite, -math.inf).max(),
        values.isnan().sum(), values.isinf().sum(),
    ]  # fmt: skip
    return torch.stack([part.to(values.dtype) for part in parts])


def _statistics(sums: NDArray[np.float64], size: int, sample: NDArray[Any]) -> list[float]:
    """All of `STORED` but the update and the size."""
    total, square, absolute, low, high, nans, infinities = sums.tolist()
    finite = max(size - nans - infinities, 1)
    mean = total / finite
    ordered = np.sort(sample[np.isfinite(sample)])
    if square == 0 < absolute and len(ordered):  # too small to be squared in float32
        square = float((ordered.astype(np.float64) ** 2).mean()) * finite
    variance = max(square / finite - mean**2, 0.0)
    if size > _SMALL and variance < _DROWNED * mean**2:
        variance = float(ordered.astype(np.float64).var())
    quantiles = [0.0, 0.0, 0.0]
    if len(ordered):
        places = (np.array([0.05, 0.5, 0.95]) * (len(ordered) - 1)).round().astype(int)
        quantiles = ordered[places].tolist()
    zeros = float((sample == 0).mean())
    if zeros == 1.0 and absolute > 0:  # those that are not were missed by the sample
        zeros = 1 - 1 / size
    return [
        mean, math.sqrt(variance), low, high, absolute, math.sqrt(max(square, 0.0)), *quantiles,
        zeros, nans, infinities,
    ]  # fmt: skip


def _histogram(sample: NDArray[Any], low: float, high: float) -> NDArray[np.uint16]:
    """Counts in even bins between the tensor's ends."""
    finite = sample[np.isfinite(sample)].astype(np.float64)
    counts = np.zeros(BINS, np.uint16)
    if len(finite) and high > low:
        at = ((finite - low) * (BINS / (high - low))).astype(np.int64).clip(0, BINS - 1)
        counts += np.bincount(at, minlength=BINS).astype(np.uint16)
    elif len(finite):
        counts[0] = len(finite)
    return counts


def _update(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Mean size of the change over the mean size of what was changed."""
    with np.errstate(all="ignore"):
        change = np.abs(after.astype(np.float64) - before).mean()
        return float(change / (np.abs(before).mean() + _EPSILON))
