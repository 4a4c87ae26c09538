"""Curves brought down to what a screen can show, and scales that a spike does not spoil."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vizsla.debugging.tensors import Series
from vizsla.thinning import Floats, extremes, finite

Steps = NDArray[np.int64]

SMOOTHED_FROM = 20  # steps of a curve that a running median is drawn of


def smoothed(series: Series) -> Series:
    """The running median: unlike a mean, it passes over a single huge value."""
    import pandas as pd

    window = max(5, len(series) // 40) | 1
    running = pd.Series(finite(series.values)).rolling(window, center=True, min_periods=1).median()
    return Series(series.steps, running.to_numpy(np.float64))


def thinned(series: Series, most: int) -> Series:
    """At most so many points of a curve, its peaks among them."""
    values = finite(series.values)
    kept = extremes(values, most)
    return Series(series.steps[kept], values[kept])


def rebinned(shares: Floats, edges: Floats, levels: Floats) -> Floats:
    """The share of values between each two `levels`, as if they lay evenly within their bins."""
    if edges[0] == edges[-1]:  # all alike
        return np.histogram(edges[:1], levels)[0].astype(np.float64)
    below = np.interp(levels, edges, np.concatenate([[0.0], np.cumsum(shares)]))
    return np.diff(below)


def axis_range(curves: Sequence[Floats]) -> tuple[float, float] | None:
    """An axis for curves that neither single huge values nor a late explosion decide; None where
    there is no finite value."""
    shown = [_usual(values[np.isfinite(values)]) for values in curves]
    values = np.concatenate([*shown, np.zeros(0)])
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-6)
    return low - pad, high + pad


def log_range(curves: Sequence[Series]) -> tuple[float, float] | None:
    """The powers of ten between which curves lie, if they are worth an axis of powers: all above
    zero, and a thousand times apart for longer than a lone spike."""
    values = np.concatenate([one.values[np.isfinite(one.values)] for one in curves])
    if not len(values) or values.min() <= 0:
        return None
    lasting = np.concatenate([_lasting(one) for one in curves])
    if lasting.max() <= 1000 * lasting.min():
        return None
    low, high = float(np.log10(values.min())), float(np.log10(values.max()))
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def power_ticks(low: float, high: float) -> Floats:
    """Round numbers between two powers of ten: up to four powers, or 1, 2, 5 where those are few.
    A range of 0.7 or more has two at least."""
    if high - low >= 2:
        powers: Floats = np.arange(np.ceil(low), high + 1e-9, np.ceil((high - low) / 3))
        return 10.0**powers
    fine = np.array(
        [
            number * 10.0**power
            for power in range(int(np.floor(low)), int(high) + 2)
            for number in (1, 2, 5)
        ]
    )
    inside: Floats = fine[(fine >= 10.0**low) & (fine <= 10.0**high)]
    return inside


def mass_range(shares: Floats, edges: Floats) -> tuple[float, float]:
    """Where all but one in a hundred of a histogram's values lie."""
    below = np.concatenate([[0.0], np.cumsum(shares)])
    low, high = np.interp((0.005, 0.995), below, edges)
    return float(low), float(high)


def _lasting(series: Series) -> Floats:
    """The finite values; of a long curve without lone spikes."""
    values = smoothed(series).values if len(series) >= SMOOTHED_FROM else series.values
    return values[np.isfinite(values)]


def _usual(values: Floats) -> Floats:
    """The values within three times what they usually are or began with, for a loss may well begin
    far above where it stays."""
    if not len(values):
        return values
    start = np.median(values[: max(3, len(values) // 10)])
    reach = 3 * float(np.abs([start, *np.quantile(values, (0.25, 0.75))]).max())
    usual: Floats = values[np.abs(values) <= reach]
    return usual
