"""Where a run's time went and how its machines were used: the numbers that the command line prints
and that a report draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vizsla.profiling.clock import RunClock
from vizsla.profiling.format import SPANS, STARTUP, STEP_PHASES
from vizsla.profiling.recorded import Profile, StepTimes

_LABELS = {
    "import": "imports",
    "data": "finding pictures",
    "model": "building the network",
    "first_step": "first step",
    "cache": "filling caches",
    "setup": "other set-up",
    "data_wait": "waiting for data",
    "checkpoint": "checkpoints",
    "trace": "writing traces",
    "fit": "fitting the head",
    "probe": "measurements",
    "final": "final evaluation",
    "other": "other",
}
# A step is slow where it is so many standard deviations above the mean.
_SLOW_DEVIATIONS = 3.0


@dataclass(frozen=True)
class Part:
    """A part of the run's time; `parts` are its own parts, which add up to it."""

    name: str
    seconds: float
    parts: tuple[Part, ...] = ()

    @property
    def label(self) -> str:
        """What people read."""
        return _LABELS.get(self.name, self.name.replace("_", " "))

    @property
    def meaning(self) -> str:
        """What it is, in a few words; nothing for a name of the user's own."""
        return _MEANINGS.get(self.name, "")


_MEANINGS = {
    **SPANS,
    **STEP_PHASES,
    "start-up": "until the first step was over",
    "steps": "training, step after step",
    "unrecorded": "between what was recorded",
}


@dataclass(frozen=True)
class StepFigures:
    """How long steps took: seconds, and steps a second while there were any."""

    count: int
    median: float
    p95: float
    slowest: float
    slowest_step: int
    per_second: float


def parts_of(profile: Profile, clock: RunClock, rank: int = 0) -> list[Part]:
    """Where the time of the run went, by one process: in the order in which it happens, up to what
    was not recorded. Empty where no process told what it did."""
    spans = _span_seconds(profile, rank)
    steps = later_steps(profile, rank)
    phases = _phases_of(steps)
    found = [
        _sum_of("start-up", [Part(name, spans.pop(name)) for name in STARTUP if name in spans]),
        _sum_of("steps", phases),
        *(Part(name, spans.pop(name)) for name in list(SPANS) if name in spans),
        *(Part(name, seconds) for name, seconds in spans.items()),
    ]
    found = [part for part in found if part.seconds > 0]
    rest = clock.total - sum(part.seconds for part in found)
    if found and rest > 0.005 * clock.total:
        found.append(Part("unrecorded", rest))
    return found


def later_steps(profile: Profile, rank: int = 0) -> StepTimes:
    """The steps of a process without each start's first one, which belongs to the start."""
    steps = profile.steps(rank)
    kept = np.ones(len(steps), bool)
    for span in profile.spans(rank):
        if span.name == "first_step":
            kept &= ~((steps.time > span.time - 0.01) & (steps.time < span.time + span.seconds))
    return StepTimes(
        steps.step[kept], steps.time[kept], steps.seconds[kept],
        {name: column[kept] for name, column in steps.phases.items()},
    )  # fmt: skip


def step_figures(profile: Profile, rank: int = 0) -> StepFigures | None:
    """Of all steps of a process but the first ones, or of those where there are no others; all
    are counted."""
    later = later_steps(profile, rank)
    steps = later if len(later) else profile.steps(rank)
    if not len(steps):
        return None
    median, p95 = np.quantile(steps.seconds, (0.5, 0.95))
    at, whole = int(np.argmax(steps.seconds)), float(steps.seconds.sum())
    return StepFigures(
        len(profile.steps(rank)), float(median), float(p95), float(steps.seconds[at]),
        int(steps.step[at]), len(steps) / whole if whole else 0.0,
    )  # fmt: skip


def slow_steps(steps: StepTimes) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which steps took much longer than the others."""
    if len(steps) < 10:
        return np.zeros(len(steps), bool)
    limit = steps.seconds.mean() + _SLOW_DEVIATIONS * steps.seconds.std()
    return np.asarray(steps.seconds > max(limit, 1.2 * float(np.median(steps.seconds))), bool)


def _span_seconds(profile: Profile, rank: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for span in profile.spans(rank):
        found[span.name] = found.get(span.name, 0.0) + span.seconds
    return found


def _phases_of(steps: StepTimes) -> list[Part]:
    """The phases of steps, in the order in which a step has them; phases of a user's own too."""
    known = [name for name in STEP_PHASES if name != "other"]
    names = [*known, *(name for name in steps.phases if name not in STEP_PHASES), "other"]
    return [Part(name, seconds) for name in names if (seconds := steps.total(name)) > 0]


def _sum_of(name: str, parts: list[Part]) -> Part:
    return Part(name, sum(part.seconds for part in parts), tuple(parts))
