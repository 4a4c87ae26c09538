"""Whether something grows steadily: a robust slope, with its confidence.

Memory grows at the beginning, stays, grows by steps and falls back; a leak does none of that but
the first, and goes on. So a line through the points is not enough: it must rise in each quarter,
and must not fall back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vizsla.profiling.samples import Floats

_MOST_POINTS = 120  # pairs of points are looked at, so that their number counts squared
_FEWEST = 15
_CONFIDENCE_95 = 1.96
# Each quarter grows by this share of the mean quarter at least, and the second half by this share
# of the first: what levels off does not.
_EVEN, _LASTING = 0.3, 0.7
# What falls back by this share of its growth is let go by turns. Falls are looked for in so many
# medians, in which noise is small.
_FALLEN, _COARSE = 0.3, 16


class Trend(NamedTuple):
    """Growth a second, with the limits of its 95 % confidence interval, and over all seconds."""

    slope: float
    low: float
    high: float
    growth: float
    seconds: float


def theil_sen(x: Floats, y: Floats) -> Trend:
    """The median of the slopes of all pairs of points, and Kendall's confidence interval of it.

    Sen, P. K. (1968). Estimates of the regression coefficient based on Kendall's tau. JASA 63.
    """
    first, second = np.triu_indices(len(x), 1)
    runs = x[second] - x[first]
    fine = runs > 0  # two samples of one moment have no slope
    slopes = np.sort((y[second] - y[first])[fine] / runs[fine])
    count, pairs = len(x), len(slopes)
    if not pairs:
        return Trend(0.0, 0.0, 0.0, 0.0, 0.0)
    spread = _CONFIDENCE_95 * float(np.sqrt(count * (count - 1) * (2 * count + 5) / 18))
    low = max(0, int(np.floor((pairs - spread) / 2)))
    high = min(pairs - 1, int(np.ceil((pairs + spread) / 2)))
    slope, seconds = float(np.median(slopes)), float(x[-1] - x[0])
    return Trend(slope, float(slopes[low]), float(slopes[high]), slope * seconds, seconds)


def steady_rise(times: Floats, values: Floats, least: float, leave_out: float) -> Trend | None:
    """The trend of what has grown by more than `least`, evenly, after the share `leave_out` of the
    points, and did not fall back there or before; None of anything else, and where points are too
    few to tell."""
    known = np.isfinite(times) & np.isfinite(values)
    times, values = times[known], values[known]
    first = int(leave_out * len(times))
    x, y = thinned(times[first:], values[first:], _MOST_POINTS)
    if len(x) < _FEWEST or x[-1] <= x[0]:
        return None
    trend = theil_sen(x, y)
    if trend.growth <= least or trend.low <= 0 or not _is_even(x, y):
        return None
    coarse = thinned(times[first // 3 :], values[first // 3 :], _COARSE)[1]
    fallen = float((np.maximum.accumulate(coarse) - coarse).max())
    return None if fallen > _FALLEN * trend.growth else trend


def thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """Medians of neighbours, which also leave out single peaks."""
    count = min(most, max(_FEWEST, len(x) // 3), len(x))
    if not count:
        return x, y
    parts = zip(np.array_split(x, count), np.array_split(y, count))
    pairs = [(float(np.median(a)), float(np.median(b))) for a, b in parts]
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


def _is_even(x: Floats, y: Floats) -> bool:
    quarters = np.array([np.median(part) for part in np.array_split(y, 4)])
    if np.diff(quarters).min() < _EVEN * (quarters[-1] - quarters[0]) / 3:
        return False
    half = len(x) // 2
    before, after = theil_sen(x[:half], y[:half]), theil_sen(x[half:], y[half:])
    return after.slope >= _LASTING * before.slope
