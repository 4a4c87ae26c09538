"""Rules on memory that grows and does not stop: of a GPU, and of the process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.cures import recipe_of
from vizsla.profiling.rules.measures import (
    NO_GPU,
    Work,
    has_gpus,
    percentile,
    since_start,
    steps_on,
    too_few,
    works,
)
from vizsla.profiling.rules.trend import Trend, steady_rise, theil_sen, thinned
from vizsla.profiling.samples import Floats
from vizsla.words import counted, duration

# The share of the time at the beginning in which caches and allocators fill: of the process, more
# where no steps say when the work began, and of a GPU.
_WARM_UP, _WARM_UP_UNTIMED, _FILLING = 0.3, 0.5, 0.1
_HOUR = 3600.0
# By this share of it the memory of a healthy process swings within a minute or so.
_SWING = 0.1
# The machine's memory stands still where it grows by less than this share of what processes do.
_STILL, _POINTS = 0.3, 60


class GPUMemoryIncrease(ProfileRule):
    """Fires when the moving average of a GPU's memory, over `window` samples, has risen by more
    than `increase` points.

    Deviations: it must rise evenly after `patience` and the first tenth, and not fall back, since
    an allocator that fills or a larger batch once is no leak; the window is a
    quarter of the samples at most. Of the published pairs the documented values are taken: 10
    points, a window of 500, a patience of 100 (code: 5, 10, 1000). Without a GPU it does not apply:
    memory_leak watches the process.
    """

    name: ClassVar[str] = "gpu_memory_increase"

    increase: float = Field(10.0, gt=0, le=100, description="Rise that is let pass, in points.")
    patience: int = Field(100, ge=0, le=10**9, description="First samples that are left out.")
    window: int = Field(500, ge=1, le=10**9, description="Samples of a moving average.")

    def applies(self, record: ProfileRecord) -> str | None:
        if not has_gpus(record):
            return NO_GPU
        return too_few([work for work in works(record) if work.gpus], self.patience)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in (one.after(self.patience) for one in works(record)):
            rising = []
            for number, gpu in work.gpus.items():
                memory = gpu.get("memory", np.zeros(0))
                known = np.isfinite(memory)
                averages = _moving_average(memory[known], self.window)
                times = work.time[known][int(known.sum()) - len(averages) :]
                trend = steady_rise(times, averages, self.increase, _FILLING)
                if trend is not None:
                    rising.append((number, float(memory[known][-1]), trend))
            if rising:
                yield self._found(record, work, rising)

    def _found(
        self, record: ProfileRecord, work: Work, rising: list[tuple[int, float, Trend]]
    ) -> Finding:
        """One finding for all GPUs whose memory rises, by the one that is full first."""
        full, number, last, trend = min(
            ((100 - last) / trend.slope, number, last, trend) for number, last, trend in rising
        )
        also = f" (and that of {counted(len(rising) - 1, 'more GPU')})" if len(rising) > 1 else ""
        return self.finding(
            f"The memory of GPU {number}{also} grew steadily by {trend.growth:.3g} points in "
            f"{duration(trend.seconds)} and is {last:.0f} % full; at this rate it is full in "
            f"{duration(full)}.",
            "Keep nothing of a step that hangs on its graph: add up loss.item() or loss.detach(), "
            "and clear lists of outputs after each epoch.",
            severity="error" if full < _HOUR else "warning",
            where=f"{work.node}, GPU {number}",
            measured=trend.growth,
            threshold=self.increase,
            gpus=[number for number, _, _ in rising],
            seconds_until_full=full,
            seconds_from_start=[since_start(record, work.time[[0, -1]])],
        )


class MemoryLeak(ProfileRule):
    """Fires when the memory of the process, or of its children, grows steadily by more than
    `least_mb`, and by more than a tenth of what it was: torch's own goes up and down by so much.

    New. The slope is the median of those between all pairs of points (Theil and Sen), and its 95 %
    confidence interval must lie above zero. Left out are the start, the first epoch of a training
    of vizsla's (files that are mapped count as memory when they are first read), and three tenths
    of what is left. Memory must have grown in each quarter, in the second half nearly as much as in
    the first, and never have fallen back by a third: so neither growth that levels off nor what is
    let go by turns is taken for a leak.
    Without steps it is a hint. An error where memory would be full within an hour.
    """

    name: ClassVar[str] = "memory_leak"

    least_mb: float = Field(100.0, gt=0, le=1e9, description="Growth that is let pass, in MB.")

    def applies(self, record: ProfileRecord) -> str | None:
        found = [kept for work in works(record) if (kept := _warm(record, work)) is not None]
        if record.profile.nodes and not found:
            return "the first epoch, in which memory fills, has not ended"
        return too_few(found, 0)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in works(record):
            kept = _warm(record, work)
            if kept is None:
                continue
            for series in _series(kept):
                left_out = _WARM_UP if kept.has_steps else _WARM_UP_UNTIMED
                usual = _SWING * percentile(series.bytes, 50)
                least = max(self.least_mb * 1e6, usual if np.isfinite(usual) else 0.0)
                trend = steady_rise(series.times, series.bytes, least, left_out)
                if trend is not None and not _is_mapped(kept, trend):
                    yield self._found(record, kept, series, trend)
                    break

    def _found(self, record: ProfileRecord, work: Work, series: _Series, trend: Trend) -> Finding:
        end = float(series.times[-1])
        judged = np.array([end - trend.seconds, end])
        steps = steps_on(record, work.node)
        count = int(((steps.time >= judged[0]) & (steps.time <= judged[1])).sum())
        per_step = trend.growth / count if count else None
        rates = [f"{_mb(60 * trend.slope)} MB a minute"]
        rates += [f"{_mb(1000 * per_step)} MB in 1,000 steps"] if per_step else []
        full = _seconds_until_full(work, trend.slope)
        last = f"; at this rate memory is full in {duration(full)}" if full is not None else ""
        soon = full is not None and full < _HOUR
        return self.finding(
            f"The memory of {series.of} grew steadily by {_mb(trend.growth)} MB in "
            f"{duration(trend.seconds)}: {', '.join(rates)} (95 % confidence: "
            f"{_mb(60 * trend.low)} to {_mb(60 * trend.high)} MB a minute){last}.",
            series.advice,
            severity="info" if not work.has_steps else "error" if soon else "warning",
            where=work.node,
            measured=trend.growth / 1e6,
            threshold=self.least_mb,
            cause=series.of.removeprefix("the ").removeprefix("its "),
            mb_per_minute=60 * trend.slope / 1e6,
            mb_per_minute_low=60 * trend.low / 1e6,
            mb_per_minute_high=60 * trend.high / 1e6,
            mb_per_1000_steps=1000 * per_step / 1e6 if per_step else None,
            seconds_until_full=full,
            seconds_from_start=[since_start(record, judged)],
        )


class _Series(NamedTuple):
    """The memory of the process or of its children, and what helps where it grows."""

    of: str
    times: Floats
    bytes: Floats
    advice: str


def _series(work: Work) -> Iterable[_Series]:
    """Memory to look at. That of children only while there are as many as usual."""
    own, tree = work.column("own_bytes"), work.column("tree_bytes")
    if work.has_steps:
        yield _Series(
            "the process", work.time, own,
            "Look for what is kept of every step: losses with their graph (add up loss.item()), "
            "outputs in a list, results that no one clears; tracemalloc tells which line made it. "
            "A data set that is mapped from a file counts as well, until all of it was read.",
        )  # fmt: skip
    counts = work.column("processes")
    known = counts[np.isfinite(counts)]
    if not len(known):
        return
    values, times = np.unique(known, return_counts=True)
    usual = counts == values[np.argmax(times)]
    children = tree - own if work.has_steps else tree
    yield _Series(
        "its child processes" if work.has_steps else "the program",
        work.time[usual], children[usual],
        "Loader processes copy what they touch: keep a data set's list of files in a NumPy array "
        "or a tensor, not in Python objects, and hold nothing back in __getitem__. A data set that "
        "is mapped from a file counts once for each of them."
        if work.has_steps
        else "If it is not meant to gather data, look for what it keeps; tracemalloc tells which "
        "line of Python made it.",
    )  # fmt: skip


def _is_mapped(work: Work, trend: Trend) -> bool:
    """Whether the machine's memory stood still while that of processes grew so. Where it fell, or
    went up and down by more than that, other programs are at it, and nobody knows."""
    used = work.column("memory_bytes")
    judged = (work.time >= work.time[-1] - trend.seconds) & np.isfinite(used)
    used = used[judged]
    if len(used) < 2:
        return False
    swing = percentile(used, 95) - percentile(used, 5)
    machine = theil_sen(*thinned(work.time[judged], used, _POINTS))
    return swing < trend.growth and abs(machine.growth) < _STILL * trend.growth


def _warm(record: ProfileRecord, work: Work) -> Work | None:
    """The samples after the beginning of the last session; None where it has not ended yet."""
    sessions = record.profile.sessions(0)
    begins = [one.get("time") for one in sessions]
    begin = max((one for one in begins if isinstance(one, int | float)), default=-np.inf)
    recipe = recipe_of(record)
    if recipe is not None and recipe.epochs > 1 and work.has_steps:
        judged = [one for one in record.profile.spans(0) if one.name == "evaluation"]
        ends = [one.time + one.seconds for one in judged if one.time >= begin]
        if not ends:
            return None
        begin = min(ends)
    return work.where(work.time >= begin)


def _seconds_until_full(work: Work, slope: float) -> float | None:
    """When the machine's memory, or what the program may have of it, is full at this rate."""
    about = work.samples.about
    room = []
    for whole, used in (("memory_bytes", "memory_bytes"), ("memory_limit_bytes", "tree_bytes")):
        limit, column = about.get(whole), work.column(used)
        known = column[np.isfinite(column)]
        if isinstance(limit, int | float) and len(known):
            room.append(max(0.0, float(limit) - float(known[-1])))
    return min(room) / slope if room else None


def _moving_average(values: Floats, window: int) -> Floats:
    width = max(1, min(window, len(values) // 4))
    return np.convolve(values, np.full(width, 1 / width), "valid") if len(values) else values


def _mb(count: float) -> str:
    """Bytes in MB, to three digits or whole."""
    return f"{count / 1e6:,.0f}" if count >= 1e8 else f"{count / 1e6:.3g}"
