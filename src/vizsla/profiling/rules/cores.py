"""Rules on cores: that too many threads share them, other programs take them, heat slows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.cures import cores_each, loader_workers, recipe_of
from vizsla.profiling.rules.measures import (
    LEAST_SAMPLES,
    NO_SAMPLES,
    NO_STEPS,
    Bools,
    Work,
    device_of,
    mean,
    own_part,
    percentile,
    processes_on,
    ranges,
    too_few,
    works,
)
from vizsla.profiling.samples import Floats
from vizsla.words import counted

# The program's part of all that the cores do, from which crowding is its own.
_OWN_SHARE = 0.6
# What others take, in percent, that is most of the machine.
_MOST = 50.0
# The processor tells of its heat every few seconds.
_FEWEST_READINGS = 6


class ThreadOversubscription(ProfileRule):
    """Fires when more than `threshold` threads a core run or wait for one, most of the time, and
    they are the program's own; or when torch computes with more than so many threads a core.

    New. Twice as many threads as cores are usual (the network's, and the loaders') and harmless.
    Other programs' threads are none of its business: the program must do most of what the cores do,
    and of all threads that run as large a part counts as its own; no more than it has, or than
    torch and the loaders of a training of vizsla's can have.
    """

    name: ClassVar[str] = "thread_oversubscription"

    threshold: float = Field(3.0, ge=1, le=1e4, description="Threads a core that are let pass.")

    def applies(self, record: ProfileRecord) -> str | None:
        found = works(record)
        return None if any(map(self._has_many, found)) else too_few(found, 0)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in works(record):
            threads = work.samples.about.get("torch_threads")
            running = self._own_running(record, work)
            ratio = percentile(running, 50) / work.cores
            if len(work) >= LEAST_SAMPLES and ratio > self.threshold:
                yield self._found(
                    record, work, ratio,
                    f"{ratio * work.cores:.0f} threads run or wait for one of {work.cores} cores, "
                    "most of the time: they take turns, and each turn costs.",
                    seconds_from_start=ranges(
                        record, work.time, running > self.threshold * work.cores
                    ),
                )  # fmt: skip
            elif self._has_many(work) and device_of(record) in ("", "cpu"):
                yield self._found(
                    record, work, float(threads or 0) / work.cores,
                    f"torch computes with {threads} threads, and the program may use {work.cores} "
                    "cores: they take turns, and each turn costs.",
                )  # fmt: skip

    def _has_many(self, work: Work) -> bool:
        """Whether torch computes with too many threads, which needs no time to be seen."""
        threads = work.samples.about.get("torch_threads")
        return isinstance(threads, int) and threads > self.threshold * work.cores

    def _own_running(self, record: ProfileRecord, work: Work) -> Floats:
        """The program's threads that run or wait at each sample; NaN where nobody can tell them
        from other programs'."""
        own = own_part(work)
        if not own >= _OWN_SHARE:
            return np.full(len(work), np.nan)
        running = np.minimum(own * work.column("runnable"), work.column("threads"))
        return np.minimum(running, _most_threads(record, work))

    def _found(
        self,
        record: ProfileRecord,
        work: Work,
        ratio: float,
        meaning: str,
        seconds_from_start: list[list[float]] | None = None,
    ) -> Finding:
        workers, threads = loader_workers(record, work), cores_each(record, work)
        advice = (
            f"Let torch take no more than {counted(threads, 'thread')}: OMP_NUM_THREADS={threads}"
        )
        if workers is not None and workers > threads:
            flag = "--workers {}" if recipe_of(record) else "DataLoader(num_workers={})"
            advice += f"; load in fewer processes: {flag.format(threads)}"
        return self.finding(
            meaning,
            f"{advice}. Start fewer processes and threads of your own, if there are any.",
            where=work.node,
            measured=ratio,
            threshold=self.threshold,
            cores=work.cores,
            torch_threads=work.samples.about.get("torch_threads"),
            workers=workers,
            seconds_from_start=seconds_from_start,
        )


class CrowdedMachine(ProfileRule):
    """Fires when other programs took more than `threshold` percent of the cores' time while steps
    went on and, most of the time, all cores together were used by more than `cpu_threshold`
    percent.

    New. Cores that nobody else wanted are no loss, so that moments in which some were free do not
    count. A warning where others took most. Of commands without steps nothing is said: what their
    short-lived children do would pass for others'.
    """

    name: ClassVar[str] = "crowded_machine"

    threshold: float = Field(25.0, gt=0, lt=100, description="Others' part let pass, percent.")
    cpu_threshold: float = Field(90.0, ge=0, lt=100, description="Use of full cores, percent.")

    def applies(self, record: ProfileRecord) -> str | None:
        found = works(record)
        if found and not any(work.has_steps for work in found):
            return NO_STEPS
        if reason := too_few(found, 0):
            return reason
        known = any(np.isfinite(work.others).any() for work in found)
        return None if known else "nobody tells here what other programs take of the cores"

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in works(record):
            full = (work.use > self.cpu_threshold) & np.isfinite(work.others)
            if len(work) < LEAST_SAMPLES or 2 * full.sum() <= len(work):
                continue
            others = mean(work.others[full])
            if others <= self.threshold:
                continue
            yield self.finding(
                f"For {100 * full.mean():.0f} % of the time no core was free, and other programs "
                f"took {others:.0f} % of what {counted(work.cores, 'core')} can do: steps took "
                "longer than they need, and other findings may be due to that.",
                "See what else runs (top lists it), and train while it does not, or on cores of "
                "your own. Judge speed by a run on a quiet machine.",
                severity="warning" if others > _MOST else "info",
                where=work.node,
                measured=others,
                threshold=self.threshold,
                own_percent=mean(work.use[full]) - others,
                seconds_from_start=ranges(record, work.time, full),
            )


def _most_threads(record: ProfileRecord, work: Work) -> float:
    """How many threads a training of vizsla's can have at work; no limit for other programs."""
    threads = work.samples.about.get("torch_threads")
    if recipe_of(record) is None or not isinstance(threads, int):
        return np.inf
    return processes_on(record, work.node) * (threads + (loader_workers(record, work) or 0) + 1)


class ThermalThrottle(ProfileRule):
    """Fires when the processor, or a GPU, was slowed for its heat for more than the share
    `threshold` of the time.

    New. Of a processor the system counts how often that happened; a reading counts where the
    number has risen since the one before.
    """

    name: ClassVar[str] = "thermal_throttle"

    threshold: float = Field(0.1, ge=0, lt=1, description="Share of the time let pass, 0 to 1.")

    def applies(self, record: ProfileRecord) -> str | None:
        found = works(record)
        if not any(_heat_of(work) for work in found):
            return (
                "neither processor nor GPU tells here that heat slows it" if found else NO_SAMPLES
            )
        return None

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        for work in works(record):
            for what, (times, slowed, celsius) in _heat_of(work).items():
                share = float(slowed.mean())
                if share <= self.threshold:
                    continue
                hot = percentile(celsius, 100)
                degrees = f", at up to {hot:.0f} °C" if np.isfinite(hot) else ""
                yield self.finding(
                    f"For {100 * share:.0f} % of the time {what} was slowed for its heat{degrees}.",
                    "Let it have more air: free its vents, raise a laptop from the table, take the "
                    "plan for high performance; or train where it is cooler.",
                    where=f"{work.node}, {what.removeprefix('the ')}",
                    measured=share,
                    threshold=self.threshold,
                    celsius=hot if np.isfinite(hot) else None,
                    seconds_from_start=ranges(record, times, slowed),
                )


class _Heat(NamedTuple):
    """When a device was read, whether it was slowed then, and its temperatures."""

    times: Floats
    slowed: Bools
    celsius: Floats


def _heat_of(work: Work) -> dict[str, _Heat]:
    """Of the processor and of each GPU that tells."""
    found: dict[str, _Heat] = {}
    slowings = work.column("throttled")
    known = np.isfinite(slowings)
    if known.sum() >= _FEWEST_READINGS:
        slowed = np.diff(slowings[known], prepend=slowings[known][:1]) > 0
        found["the processor"] = _Heat(work.time[known], slowed, work.column("celsius"))
    for number, gpu in work.gpus.items():
        flags = gpu.get("throttled", np.zeros(0))
        known = np.isfinite(flags)
        if known.sum() >= LEAST_SAMPLES:
            celsius = gpu.get("celsius", np.zeros(0))
            found[f"GPU {number}"] = _Heat(work.time[known], flags[known] > 0, celsius)
    return found
