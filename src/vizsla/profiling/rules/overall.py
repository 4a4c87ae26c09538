"""Statistics in the form of findings: what the machine, and the loop, did on the whole."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from vizsla.findings import Finding
from vizsla.profiling.format import STEP_PHASES
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.measures import (
    NO_SAMPLES,
    NO_STEPS,
    cores_of,
    mean,
    percentile,
    timed_steps,
)
from vizsla.profiling.samples import Floats, Samples


class OverallSystemUsage(ProfileRule):
    """Statistics of each machine over the whole run, always as a hint: mean, median, 95th and 99th
    percentile and largest value of what was sampled."""

    name: ClassVar[str] = "overall_system_usage"

    def applies(self, record: ProfileRecord) -> str | None:
        nodes = record.profile.nodes
        return None if any(len(record.profile.samples(node)) for node in nodes) else NO_SAMPLES

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        for node in record.profile.nodes:
            samples = record.profile.samples(node)
            figures = {
                name: _statistics(values)
                for name, values in _series(samples).items()
                if np.isfinite(values).any()
            }
            if figures:
                said = [f"{name} {one['mean']:.0f} % ({one['p95']:.0f} %)"
                        for name, one in figures.items()]  # fmt: skip
                yield self.finding(
                    f"Use on average (95th percentile), of {len(samples):,} samples and "
                    f"{cores_of(samples)} cores: {', '.join(said)}.",
                    "These are statistics, for comparison.",
                    severity="info",
                    where=node,
                    figures=figures,
                )


class OverallFrameworkMetrics(ProfileRule):
    """Where the steps' time went, always as a hint: seconds and share of each phase."""

    name: ClassVar[str] = "overall_framework_metrics"

    def applies(self, record: ProfileRecord) -> str | None:
        return None if len(timed_steps(record)) else NO_STEPS

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        steps = timed_steps(record)
        whole = float(steps.seconds.sum())
        if not whole:
            return
        seconds = {name: steps.total(name) for name in steps.phases}
        largest = sorted(seconds, key=lambda name: -seconds[name])
        said = [f"{STEP_PHASES.get(name, name)} {100 * seconds[name] / whole:.0f} %"
                for name in largest if seconds[name]]  # fmt: skip
        yield self.finding(
            f"{len(steps):,} steps took {whole:.3g} seconds, {1000 * whole / len(steps):.3g} ms "
            f"each: {', '.join(said)}.",
            "These are statistics, for comparison.",
            severity="info",
            where="steps",
            seconds=seconds,
            step_seconds=_statistics(steps.seconds),
        )


def _series(samples: Samples) -> dict[str, Floats]:
    """What is measured in percent."""
    found = {"cores": samples.cpu_mean, "I/O wait": samples.iowait_mean}
    found["memory"] = samples.columns.get("memory", np.zeros(0))
    for number, gpu in enumerate(samples.gpus):
        found[f"GPU {number}"] = gpu.get("utilization", np.zeros(0))
        found[f"memory of GPU {number}"] = gpu.get("memory", np.zeros(0))
    return found


def _statistics(values: Floats) -> dict[str, float]:
    percents = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {"mean": mean(values)} | {name: percentile(values, p) for name, p in percents.items()}
