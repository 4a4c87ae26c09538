"""Bringing long recordings down to what a screen can show. Numbers in, numbers out: what becomes
of them is drawn elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


def extremes(values: Floats, most: int) -> Places:
    """Places of at most so many points of a curve: of each stretch the lowest and the highest, so
    that peaks stay. All of them where there are no more, even those that are NaN."""
    if len(values) <= most:
        return np.arange(len(values))
    kept: set[int] = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), most // 2 - 1):
        if not np.isnan(values[part]).all():
            kept |= {int(part[np.nanargmin(values[part])]), int(part[np.nanargmax(values[part])])}
    return np.array(sorted(kept))


def evenly(steps: NDArray[Any], most: int) -> Places:
    """Places of at most so many steps, at even distances, with the first and the last."""
    if not len(steps):
        return np.zeros(0, np.int64)
    return np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).astype(np.int64))


def columns(steps: NDArray[Any], most: int) -> Places:
    """Places at which at most so many stretches of steps begin, which together are all."""
    places = np.linspace(0, len(steps), min(most, len(steps)), endpoint=False)
    return np.unique(places.astype(np.int64))


def largest(values: Floats, starts: Places) -> Floats:
    """Of `values` (steps, names) the largest number of each stretch that begins at `starts`."""
    found: Floats = np.fmax.reduceat(finite(values), starts, axis=0)
    return found


def finite(values: Floats) -> Floats:
    """NaN, a gap in a figure, instead of infinity, which JSON cannot say."""
    return np.where(np.isfinite(values), values, np.nan)


def significant(values: Floats, digits: int = 4) -> list[float | int | None]:
    """Numbers as short as a figure needs them, None for NaN: half the file, and all that is seen.

    >>> significant(np.array([123456.0, 0.0123456, np.nan]))
    [123500, 0.01235, None]
    """
    return [None if value != value else _short(value, digits) for value in finite(values).tolist()]


def _short(value: float, digits: int) -> float | int:
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() else short
