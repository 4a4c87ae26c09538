"""A rule on single steps that take far longer than the others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.format import STEP_PHASES
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.recorded import StepTimes
from vizsla.profiling.rules.base import SHOWN, ProfileRule
from vizsla.profiling.rules.measures import (
    NO_STEPS,
    Bools,
    are_first,
    follow_a_pause,
    others_percent,
    phase_of,
    since_start,
    timed_steps,
)
from vizsla.profiling.samples import Floats

_FEWEST = 50
_FIRST = 3  # steps of a session: memory is taken, kernels are chosen
# Of normal noise the median distance to the median, as a standard deviation.
_NORMAL = 1.4826
# A step is an outlier from this many medians on, however alike the others are.
_LEAST_FACTOR = 1.5
# Outliers that cost less than the first share of the time are let be; from the second on it is more
# than a hint.
_NOTHING, _MUCH = 0.01, 0.05
# What others take of the cores, in percent, that slows steps at times.
_CROWDED = 15.0
_TRACED = re.compile(r"trace-(\d+)-(\d+)\D.*")
_CAUSES = {
    "data_wait": "The loader falls behind at times: more loader processes or a larger "
    "prefetch_factor even it out, and single huge pictures are better stored smaller.",
    "transfer": "Moving batches stalls at times: pin memory (DataLoader(pin_memory=True)).",
    "other": "It is something between the phases: logging, plots, an evaluation or checkpoint of "
    "your own (name it with profiler.phase('evaluation') and it counts no longer), or Python's "
    "garbage collection.",
}
_COMPUTING = (
    "The network's computation itself takes longer at times: another program on this machine, "
    "inputs of other sizes than usual, or a processor slowed for its heat."
)


class StepOutlier(ProfileRule):
    """Fires when more than `n_outliers` steps take longer than the usual one by more than `stddev`
    standard deviations.

    Deviations: the usual step is the median, and the standard deviation that of the median distance
    from it (times 1.4826), since outliers spoil means; only slower steps count, from one and a half
    times the median on, and only where all of them cost 1 % of the time. Left out are a session's
    first three steps, the first after an evaluation or checkpoint, steps that were traced, and the
    time that capturing tensors took. A hint below 5 % of the time, where outliers come at even
    distances, as at the beginning of epochs, and where other programs take a part of the cores.
    `stddev` has the documented 5 (SageMaker's code: 3).
    """

    name: ClassVar[str] = "step_outlier"

    stddev: float = Field(5.0, gt=0, le=1e6, description="Standard deviations from the usual.")
    n_outliers: int = Field(10, ge=0, le=10**9, description="Outliers that are let pass.")

    def applies(self, record: ProfileRecord) -> str | None:
        count = len(timed_steps(record))
        if not count:
            return NO_STEPS
        needed = _FEWEST + _FIRST
        return f"it needs {needed} steps, and {count} were timed" if count < needed else None

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        steps = timed_steps(record)
        fine = ~(are_first(record, steps, _FIRST) | follow_a_pause(steps) | _traced(record, steps))
        seconds = steps.seconds - phase_of(steps, "debugger")
        if fine.sum() < _FEWEST:
            return
        usual = float(np.median(seconds[fine]))
        spread = _NORMAL * float(np.median(np.abs(seconds[fine] - usual)))
        limit = max(usual + self.stddev * spread, _LEAST_FACTOR * usual)
        out = fine & (seconds > limit)
        lost = float((seconds[out] - usual).sum())
        share = lost / float(seconds[fine].sum()) if seconds[fine].sum() > 0 else 0.0
        if out.sum() > self.n_outliers and share >= _NOTHING:
            yield self._found(record, steps, fine, out, seconds, usual, lost, share)

    def _found(
        self,
        record: ProfileRecord,
        steps: StepTimes,
        fine: Bools,
        out: Bools,
        seconds: Floats,
        usual: float,
        lost: float,
        share: float,
    ) -> Finding:
        phase = _where_time_went(steps, fine & ~out, out)
        every = _even_distance(steps.step[out])
        worst = np.flatnonzero(out)[np.argsort(seconds[out])[::-1][:SHOWN]]
        worst.sort()
        others = others_percent(record)
        is_crowded = others > _CROWDED and phase != "data_wait"
        beat = f", about every {every} steps," if every else ""
        epoch = (
            " At even distances it may be the start of an epoch: DataLoader(persistent_workers="
            "True) keeps loader processes."
        )
        return self.finding(
            f"{int(out.sum()):,} of {int(fine.sum()):,} steps{beat} took "
            f"{float(np.median(seconds[out])) / max(usual, 1e-9):.3g} times as long as the usual "
            f"{1000 * usual:.3g} ms, which cost {lost:.3g} seconds, {100 * share:.0f} % of the "
            f"time; most of it went to {STEP_PHASES.get(phase, phase)}.",
            f"Other programs took {others:.0f} % of the cores meanwhile, which is reason enough: "
            "see crowded_machine."
            if is_crowded
            else _CAUSES.get(phase, _COMPUTING) + (epoch if every and phase == "data_wait" else ""),
            severity="info" if share < _MUCH or every or is_crowded else "warning",
            where="steps",
            measured=float(out.sum()),
            threshold=float(self.n_outliers),
            cause=phase,
            others_percent=others,
            usual_seconds=usual,
            lost_seconds=lost,
            every=every,
            steps=[int(one) for one in steps.step[worst]],
            seconds_from_start=since_start(record, steps.time[worst]),
        )


def _where_time_went(steps: StepTimes, usual: Bools, out: Bools) -> str:
    """The phase that took most of what outliers took longer."""
    longer = {
        name: float((values[out] - np.median(values[usual])).sum()) if usual.any() else 0.0
        for name, values in steps.phases.items()
        if name != "debugger"
    }
    return max(longer, key=lambda name: longer[name], default="other")


def _even_distance(steps: NDArray[np.int64]) -> int | None:
    """The number of steps between outliers, where it hardly varies; one may be missing."""
    gaps = np.diff(steps)
    usual = float(np.median(gaps)) if len(gaps) else 0.0
    if usual < 5:
        return None
    off = np.abs(gaps - usual * np.maximum(1, np.round(gaps / usual)))
    return round(usual) if float((off <= max(1.0, 0.05 * usual)).mean()) >= 0.8 else None


def _traced(record: ProfileRecord, steps: StepTimes) -> Bools:
    """Steps that PyTorch's profiler watched, which slows them, and those beside them."""
    traced = np.zeros(len(steps), np.bool_)
    for path in record.profile.traces():
        if match := _TRACED.fullmatch(path.name):
            traced |= (steps.step >= int(match[1]) - 1) & (steps.step <= int(match[2]) + 1)
    return traced
