"""Rules on what feeds a loop: that it waits for its data, and by how many processes it is fed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.recorded import StepTimes
from vizsla.profiling.rules.base import SHOWN, ProfileRule
from vizsla.profiling.rules.cures import (
    against_waiting,
    cores_each,
    loader_workers,
    recipe_of,
)
from vizsla.profiling.rules.measures import (
    NO_SAMPLES,
    NO_STEPS,
    Work,
    are_first,
    mean,
    own_part,
    percentile,
    phase_of,
    processes_on,
    since_start,
    timed_steps,
    works,
)
from vizsla.profiling.samples import Floats
from vizsla.words import counted

_FEWEST_STEPS = 20
# A loop that waits for less than this share of its time has loader processes enough.
_WELL_FED = 0.05
# What other programs use of the cores, in percent, that is worth a word.
_OTHERS = 15.0


class DataStarved(ProfileRule):
    """Fires when steps spend more than the share `threshold` of their time, and `least_seconds`
    altogether, waiting for the next batch.

    New. A session's first step, and the hundredth of the steps that waited longest, are left out:
    a loader that starts, and a single hiccup, are no lasting want.
    """

    name: ClassVar[str] = "data_starved"

    threshold: float = Field(0.25, gt=0, lt=1, description="Share of steps' time, 0 to 1.")
    least_seconds: float = Field(1.0, ge=0, le=1e6, description="Waiting that is let pass.")

    def applies(self, record: ProfileRecord) -> str | None:
        steps = len(timed_steps(record))
        if steps and steps < _FEWEST_STEPS:
            return f"it needs {_FEWEST_STEPS} steps, and {steps} were timed"
        return None if steps else NO_STEPS

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        steps = lasting(record, timed_steps(record))
        waits = phase_of(steps, "data_wait")
        waited, whole = float(waits.sum()), float(steps.seconds.sum())
        share = waited / whole if whole > 0 else 0.0
        if share <= self.threshold or waited < self.least_seconds:
            return
        work = next(iter(works(record)), None)
        worst = np.sort(np.argsort(waits)[::-1][:SHOWN])
        yield self.finding(
            f"Steps wait for data {100 * share:.0f} % of their time: {waited:.3g} of {whole:.3g} "
            f"seconds, {1000 * waited / len(steps):.3g} ms in a step of "
            f"{1000 * whole / len(steps):.3g} ms{_by_whom(work)}.",
            against_waiting(record, work, share),
            where="steps",
            measured=share,
            threshold=self.threshold,
            wait_seconds=waited,
            seconds=whole,
            workers=loader_workers(record, work),
            cores=work.cores if work is not None else None,
            cpu_percent=_known(work.use) if work is not None else None,
            steps=[int(one) for one in steps.step[worst]],
            seconds_from_start=since_start(record, steps.time[worst]),
        )


class Dataloader(ProfileRule):
    """Fires when loader processes are fewer than `min_threshold`, or more than `max_threshold`,
    percent of the cores.

    Deviations: few processes are told only where steps wait for data, for a loop that does not wait
    has enough; many only where more threads of the program than `max_threshold` percent of the
    cores really run or wait for one, for those that sleep harm nobody. Processes are those of the
    recipe, in loops that are not vizsla's those that come of the training's; where several
    processes train on a machine, all of theirs.
    """

    name: ClassVar[str] = "dataloader"

    min_threshold: float = Field(70.0, ge=0, le=1e4, description="Least percent of the cores.")
    max_threshold: float = Field(200.0, gt=0, le=1e6, description="Most percent of the cores.")

    def applies(self, record: ProfileRecord) -> str | None:
        if record.trunk is not None:
            return "steps read kept outputs of frozen layers, without loader processes"
        if not len(timed_steps(record)):
            return NO_STEPS
        return None if any(len(work) for work in works(record)) else NO_SAMPLES

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        work = next(one for one in works(record) if len(one))
        workers = loader_workers(record, work)
        if workers is None:
            return
        workers *= processes_on(record, work.node)
        percent = 100 * workers / work.cores
        steps = lasting(record, timed_steps(record))
        whole = float(steps.seconds.sum())
        share = float(phase_of(steps, "data_wait").sum()) / whole if whole > 0 else 0.0
        running = 100 * own_part(work) * percentile(work.column("runnable"), 50) / work.cores
        many = (
            counted(workers, "loader process", "loader processes")
            if workers
            else "no loader processes"
        )
        there = f"There {'is' if workers == 1 else 'are'} {many} for {work.cores} cores"
        if percent < self.min_threshold and share > _WELL_FED and len(steps) >= _FEWEST_STEPS:
            meaning = f"{there}, and steps wait for data {100 * share:.0f} % of the time."
            advice, threshold = against_waiting(record, work, share), self.min_threshold
        elif percent > self.max_threshold and running > self.max_threshold:
            meaning = f"{there}: they take turns, and the training waits among them."
            advice = f"Take fewer: {_flag(record, cores_each(record, work))}."
            threshold = self.max_threshold
        else:
            return
        yield self.finding(
            meaning, advice, severity="info", where=work.node, measured=percent,
            threshold=threshold, cause="few" if threshold == self.min_threshold else "many",
            workers=workers, cores=work.cores, wait_share=share,
        )  # fmt: skip


def lasting(record: ProfileRecord, steps: StepTimes) -> StepTimes:
    """The steps without the first of each session, and those that waited by far the longest."""
    fine = ~are_first(record, steps, 1)
    waits = np.where(fine, phase_of(steps, "data_wait"), -1.0)
    longest = np.argsort(waits)[::-1][: -(-int(fine.sum()) // 100)]
    fine[longest] = False
    phases = {name: values[fine] for name, values in steps.phases.items()}
    return StepTimes(steps.step[fine], steps.time[fine], steps.seconds[fine], phases)


def _by_whom(work: Work | None) -> str:
    use = _known(work.use) if work is not None else None
    return (
        ""
        if work is None or use is None
        else f"; meanwhile {work.cores} cores are used {use:.0f} %{_and_by_others(work)}"
    )


def _and_by_others(work: Work) -> str:
    others = mean(work.others)
    return f", of which {others:.0f} by other programs" if others > _OTHERS else ""


def _flag(record: ProfileRecord, workers: int) -> str:
    own = recipe_of(record) is not None
    return f"--workers {workers}" if own else f"DataLoader(num_workers={workers})"


def _known(values: Floats) -> float | None:
    value = percentile(values, 50)
    return value if np.isfinite(value) else None
