"""Rules on what a GPU, or the loop, waits for: the processor, or the disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from pydantic import Field

from vizsla.findings import Finding, Severity
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.cures import against_waiting
from vizsla.profiling.rules.measures import (
    NO_GPU,
    NO_STEPS,
    Bools,
    Work,
    mean,
    ranges,
    too_few,
    works,
)
from vizsla.profiling.samples import Floats

# A sample whose time goes to waiting for data by this share was spent waiting.
_WAITING = 0.5
# Cores of whose use other programs make up so much are not busy with the loop's data.
_MOSTLY = 0.5
# Less of one core's time that waits for a disk, in percent, is noise.
_LEAST_IOWAIT = 20.0


class CPUBottleneck(ProfileRule):
    """Fires when for more than `threshold` percent of the time the cores are used by more than
    `cpu_threshold` and the GPUs by less than `gpu_threshold` percent.

    Without a GPU: when for so much of the time the cores are that busy while the loop waits for its
    data, so that decoding is what takes them and not the network. Busy cores alone are no fault: a
    training on a processor is meant to use it. Deviations: samples are those of steps, and not
    those in which other programs do most of what the cores do; `patience` has the documented 100
    (SageMaker's code: 1000).
    """

    name: ClassVar[str] = "cpu_bottleneck"

    threshold: float = Field(50.0, gt=0, le=100, description="Share of the time, percent.")
    gpu_threshold: float = Field(10.0, gt=0, le=100, description="Use of the GPUs, percent.")
    cpu_threshold: float = Field(90.0, ge=0, lt=100, description="Use of the cores, percent.")
    patience: int = Field(100, ge=0, le=10**9, description="First samples that are left out.")

    def applies(self, record: ProfileRecord) -> str | None:
        return _unless_waiting(record, self.patience)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in (one.after(self.patience) for one in works(record)):
            there = (work.use > self.cpu_threshold) & _idle(work, self.gpu_threshold)
            there &= ~(work.others > _MOSTLY * work.use)  # NaN, where nobody can tell, is fine
            share = _percent(there)
            if len(work) and share > self.threshold:
                who = "the GPU is idle" if work.gpus else "the loop waits for its data"
                severity: Severity = "warning" if work.gpus else "info"
                yield self.finding(
                    f"For {share:.0f} % of the time all {work.cores} cores are busy while {who}: "
                    "the preparation of batches takes longer than the network.",
                    against_waiting(record, work, mean(work.waiting)),
                    severity=severity,
                    where=work.node,
                    measured=share,
                    threshold=self.threshold,
                    cpu_percent=mean(work.use),
                    seconds_from_start=ranges(record, work.time, there),
                )


class IOBottleneck(ProfileRule):
    """Fires when for more than `threshold` percent of the time I/O wait exceeds `io_threshold`
    while the GPUs are used by less than `gpu_threshold` percent.

    Without a GPU: while the loop waits for its data. Deviations: I/O wait is the share that waits
    for a disk of the cores that are not idle, since one program that waits takes one core of many;
    `gpu_threshold` has the documented 70 (SageMaker's code: 10); samples are those of steps.
    """

    name: ClassVar[str] = "io_bottleneck"

    threshold: float = Field(50.0, gt=0, le=100, description="Share of the time, percent.")
    gpu_threshold: float = Field(70.0, gt=0, le=100, description="Use of the GPUs, percent.")
    io_threshold: float = Field(50.0, ge=0, lt=100, description="I/O wait, percent.")
    patience: int = Field(1000, ge=0, le=10**9, description="First samples that are left out.")

    def applies(self, record: ProfileRecord) -> str | None:
        reason = _unless_waiting(record, self.patience)
        known = any(np.isfinite(work.iowait).any() for work in works(record))
        return reason if reason or known else "this system does not tell I/O wait"

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        for work in (one.after(self.patience) for one in works(record)):
            there = (_iowait(work) > self.io_threshold) & _idle(work, self.gpu_threshold)
            share = _percent(there)
            if len(work) and share > self.threshold:
                who = "the GPU has little to do" if work.gpus else "the loop waits for its data"
                speed = mean(work.column("read_bytes")) / 1e6
                read = f", which reads {speed:.3g} MB a second" if np.isfinite(speed) else ""
                yield self.finding(
                    f"For {share:.0f} % of the time cores wait for the disk{read}, while {who}.",
                    against_waiting(record, work, mean(work.waiting), slow_disk=True),
                    where=work.node,
                    measured=share,
                    threshold=self.threshold,
                    iowait_percent=mean(work.iowait),
                    seconds_from_start=ranges(record, work.time, there),
                )


def _iowait(work: Work) -> Floats:
    """The share, in percent, of the cores that are not idle that wait for a disk."""
    waited, busy = work.iowait, work.samples.cpu_mean
    if len(busy) != len(work):
        return np.full(len(work), np.nan)
    count = work.samples.cpu.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 100 * waited / (waited + busy)
    return np.where(waited * count >= _LEAST_IOWAIT, share, 0.0)


def _idle(work: Work, gpu_threshold: float) -> Bools:
    """Whether the GPUs, or without them the loop, had little to do at each sample."""
    if work.gpus:
        return np.asarray(work.of_gpus("utilization") < gpu_threshold)
    return np.asarray(work.waiting >= _WAITING)


def _percent(there: Bools) -> float:
    return 100 * float(there.mean()) if len(there) else 0.0


def _unless_waiting(record: ProfileRecord, patience: int) -> str | None:
    found = works(record)
    if found and not any(work.gpus or work.has_steps for work in found):
        return f"{NO_GPU}, and {NO_STEPS}"
    return too_few(found, patience)
