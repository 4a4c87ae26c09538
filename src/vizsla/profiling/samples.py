"""A machine's samples as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.profiling.format import DEFAULT_INTERVAL_MS, SAMPLED, SAMPLED_OF_GPU

Floats = NDArray[np.float64]
_LATE, _LATE_S = 3, 5.0  # a sample may come late by so many intervals and seconds


@dataclass(frozen=True)
class Samples:
    """The samples of one node in order of time. A column has an entry for each sample, NaN where
    it was not to be had; a column that never was is not in `columns`.

    `time` is in seconds since 1970, `cpu` and `iowait` (samples, cores) in percent, `columns` of
    `format.SAMPLED`, and `gpus`, one mapping a device, of `format.SAMPLED_OF_GPU`. `intervals` are
    the seconds between samples as they were set for each; empty where `about` holds for all.
    """

    node: str
    about: Mapping[str, Any]
    time: Floats
    cpu: Floats
    iowait: Floats
    columns: Mapping[str, Floats] = field(default_factory=dict)
    gpus: Sequence[Mapping[str, Floats]] = ()
    intervals: Floats = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.time)

    @property
    def cpu_mean(self) -> Floats:
        """Use of all cores together at each sample, percent."""
        return _mean(self.cpu)

    @property
    def iowait_mean(self) -> Floats:
        """Share of all cores' time spent waiting for the disk, percent; empty if unknown."""
        return _mean(self.iowait)

    @property
    def interval_s(self) -> float:
        """Seconds between two samples, as it was set last."""
        return float(self.about.get("interval_ms", DEFAULT_INTERVAL_MS)) / 1000

    @property
    def seconds(self) -> Floats:
        """How long each sample stands for: the time since the one before it, but no more than an
        interval after a pause, as between two sessions, or while the machine slept."""
        intervals = self.intervals
        if len(intervals) != len(self):
            intervals = np.full(len(self), self.interval_s)
        since = np.diff(self.time, prepend=-np.inf)
        return np.where(since <= _LATE * intervals + _LATE_S, since, intervals)

    @classmethod
    def of(cls, node: str, about: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> Samples:
        """From the `sample` lines of a file, in any order; sessions may know other devices. Where
        lines carry `interval_ms`, it is what was set for them."""
        ordered = sorted(lines, key=lambda line: float(line["time"]))
        devices = max((len(line.get("gpus", ())) for line in ordered), default=0)
        interval_ms = about.get("interval_ms", DEFAULT_INTERVAL_MS)
        return cls(
            node,
            about,
            _array([line["time"] for line in ordered]),
            _matrix([line.get("cpu", ()) for line in ordered]),
            _matrix([line.get("iowait", ()) for line in ordered]),
            _columns(ordered, SAMPLED),
            tuple(_columns(_of_device(ordered, at), SAMPLED_OF_GPU) for at in range(devices)),
            _array([line.get("interval_ms", interval_ms) for line in ordered]) / 1000,
        )


def _of_device(lines: Iterable[Mapping[str, Any]], at: int) -> list[Mapping[str, Any]]:
    listed = (line.get("gpus", ()) for line in lines)
    return [devices[at] if at < len(devices) else {} for devices in listed]


def _columns(lines: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Floats]:
    there = set[str]().union(*lines)
    columns = {name: _array([line.get(name) for line in lines]) for name in names if name in there}
    return {name: column for name, column in columns.items() if not np.isnan(column).all()}


def _matrix(rows: Sequence[Sequence[float | None]]) -> Floats:
    widths = set(map(len, rows))
    width = max(widths, default=0)
    if len(widths) > 1:  # cores were switched on or off; the first sample may know none
        rows = [[*row, *[None] * (width - len(row))] for row in rows]
    return _array(rows).reshape(len(rows), width)


def _array(values: Sequence[Any]) -> Floats:
    """Numbers, or rows of them, as an array; NaN for None and for what is not finite."""
    try:
        array = np.array(values, np.float64)
    except OverflowError:  # an integer of hundreds of digits
        array = np.array([_as_float(value) for value in values], np.float64)
    array[~np.isfinite(array)] = np.nan
    return array


def _as_float(value: Any) -> Any:
    if isinstance(value, Sequence):
        return [_as_float(one) for one in value]
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.nan


def _mean(matrix: Floats) -> Floats:
    if not matrix.shape[1]:
        return np.zeros(0)
    known = ~np.isnan(matrix)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(known, matrix, 0.0).sum(axis=1) / known.sum(axis=1)
    return means
