"""How large each activation of a network gets on real pictures: what int8 steps are laid over.

The whole range of a tensor wastes steps on a few outliers; a clipped one cuts them off. Neither is
best everywhere, so ranges of several kinds come from one look at the pictures. All activations of
256 pictures would be gigabytes: pictures go through in small batches, and of each tensor only its
extremes, means and a histogram stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Method = Literal["minmax", "percentile", "mse"]
# In the order in which they are tried.
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
Range = tuple[np.float32, np.float32]

_BINS = 2048
_PERCENTILE = 99.99
_STEPS = 255  # of an 8-bit range
# Shares of the whole range that a clipped one may keep, as the least square error is searched.
_KEPT = np.linspace(0.2, 1.0, 81)
# Values of one tensor and batch that go into its histogram, spread over it: counting all of them
# takes five times as long as the network itself.
_COUNTED = 1 << 16
# A batch's activations together: at 224 pixels a ResNet-50 has about 90 MB a picture.
_BATCH = 4


@dataclass
class _Seen:
    lowest: float
    highest: float
    counts: NDArray[np.int64]


class Activations:
    """Extremes, channel means and a histogram of a network's tensors, from real inputs."""

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: NDArray[np.float32],
        progress: Callable[[int, int], None] = lambda done, all_of_them: None,
    ) -> None:
        """Looks at `inputs` (pictures, 3, size, size) twice: the histograms' bounds come from the
        first time. `model` has passed shape inference."""
        self._seen: dict[str, _Seen] = {}
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._pictures = len(inputs)
        session = _watched(model)
        passes = 2 * len(inputs)
        for done, name_values in _outputs(session, inputs):
            progress(done, passes)
            for name, values in name_values:
                self._widen(name, values)
        for done, name_values in _outputs(session, inputs):
            progress(len(inputs) + done, passes)
            for name, values in name_values:
                self._count(name, values)

    def ranges(self, method: Method) -> dict[str, Range]:
        """The lowest and highest value of each tensor that 8-bit steps are to tell apart.

        `minmax`: all that was seen; `percentile`: all but one value in ten thousand; `mse`: where
        rounding and clipping together err least, in squares. Zero is always within.
        """
        chosen: Mapping[Method, Callable[[_Seen], tuple[float, float]]] = {
            "minmax": lambda seen: (seen.lowest, seen.highest),
            "percentile": _percentile,
            "mse": _least_squares,
        }
        found = {}
        for name, seen in self._seen.items():
            low, high = chosen[method](seen)
            found[name] = (np.float32(min(low, 0.0)), np.float32(max(high, 0.0)))
        return found

    def channel_means(self) -> dict[str, NDArray[np.float64]]:
        """The mean of each channel (channels,) of every tensor that has channels."""
        return {name: sums / self._pictures for name, sums in self._sums.items()}

    def _widen(self, name: str, values: NDArray[np.float32]) -> None:
        low, high = float(values.min()), float(values.max())
        seen = self._seen.setdefault(name, _Seen(low, high, np.zeros(_BINS, np.int64)))
        seen.lowest, seen.highest = min(seen.lowest, low), max(seen.highest, high)
        if values.ndim in (2, 4):
            each = values.mean(axis=(2, 3)) if values.ndim == 4 else values
            self._sums[name] = self._sums.get(name, 0.0) + each.sum(axis=0, dtype=np.float64)

    def _count(self, name: str, values: NDArray[np.float32]) -> None:
        seen = self._seen[name]
        if seen.highest > seen.lowest:
            some = values.ravel()[:: max(values.size // _COUNTED, 1)]
            scale = _BINS / (seen.highest - seen.lowest)
            at = ((some - np.float32(seen.lowest)) * np.float32(scale)).astype(np.int32)
            seen.counts += np.bincount(np.clip(at, 0, _BINS - 1), minlength=_BINS)


def _watched(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session of the network that gives every floating-point tensor in it, its inputs too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    given = {one.name for one in copy.graph.output}
    for value in model.graph.value_info:
        floats = value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        if floats and value.name not in given:
            copy.graph.output.append(value)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # the arena would keep its largest size
    return onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _outputs(
    session: onnxruntime.InferenceSession, inputs: NDArray[np.float32]
) -> Iterator[tuple[int, list[tuple[str, NDArray[np.float32]]]]]:
    """Batch by batch, how many pictures are done and every tensor by name."""
    names = [one.name for one in session.get_outputs()]
    source = session.get_inputs()[0].name
    for start in range(0, len(inputs), _BATCH):
        batch = inputs[start : start + _BATCH]
        values = session.run(names, {source: batch})
        named = [(name, value) for name, value in zip(names, values, strict=True) if value.size]
        yield start + len(batch), [(source, batch), *named]


def _percentile(seen: _Seen) -> tuple[float, float]:
    total = seen.counts.sum()
    if not total:
        return seen.lowest, seen.highest
    cut = (100 - _PERCENTILE) / 100 / (1 if seen.lowest >= 0 or seen.highest <= 0 else 2)
    shares = np.cumsum(seen.counts) / total
    edges = np.linspace(seen.lowest, seen.highest, _BINS + 1)
    low = seen.lowest if seen.lowest >= 0 else edges[int(np.searchsorted(shares, cut))]
    high = edges[min(int(np.searchsorted(shares, 1 - cut)) + 1, _BINS)]
    return float(low), float(high)


def _least_squares(seen: _Seen) -> tuple[float, float]:
    """Clip either end to the share of it at which the expected squared error is least."""
    total = seen.counts.sum()
    if not total:
        return seen.lowest, seen.highest
    edges = np.linspace(seen.lowest, seen.highest, _BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    shares = seen.counts / total
    low, high = min(seen.lowest, 0.0), max(seen.highest, 0.0)

    def error(kept: float) -> float:
        bottom, top = low * kept, high * kept
        step = (top - bottom) / _STEPS
        clipped = np.clip(centres, bottom, top) - centres
        # A rounded value errs by step² / 12 on average; exact zeros, as ReLU gives, by nothing.
        rounded = shares[centres != 0].sum() * step**2 / 12
        return float((shares * clipped**2).sum() + rounded)

    kept = min(_KEPT.tolist(), key=error)
    return low * kept, high * kept
