"""The time of a run: seconds since it began, without the hours in which it did not run.

A run that was stopped and taken up again the next day has a night in its middle, in which nothing
was recorded. Left in, it would be most of the run's time and all that its figures show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vizsla.profiling.recorded import Profile
from vizsla.thinning import Floats

_LONGEST_SILENCE_S = 60.0


@dataclass(frozen=True)
class RunClock:
    """Turns seconds since 1970 into seconds of a run. `total` is how long it ran, and `pauses` how
    long each time that nothing was recorded was, which is left out."""

    start: float
    total: float
    pauses: tuple[float, ...]
    _from: Floats
    _cut: Floats

    @classmethod
    def of(cls, profile: Profile) -> RunClock:
        """From everything that was recorded of all machines and processes."""
        starts, ends = _extents(profile)
        if not len(starts):
            return cls(0.0, 0.0, (), np.zeros(0), np.zeros(0))
        order = np.argsort(starts, kind="stable")
        starts, reached = starts[order], np.maximum.accumulate(ends[order])
        silences = starts[1:] - reached[:-1]
        broken = silences > _LONGEST_SILENCE_S
        pauses = silences[broken]
        total = float(reached[-1] - starts[0] - pauses.sum())
        return cls(
            float(starts[0]), total, tuple(pauses.tolist()), starts[1:][broken], np.cumsum(pauses)
        )

    def seconds(self, times: Floats) -> Floats:
        """Seconds of the run at these times."""
        cut = np.concatenate([[0.0], self._cut])
        since: Floats = times - self.start - cut[np.searchsorted(self._from, times, side="right")]
        return since


def _extents(profile: Profile) -> tuple[Floats, Floats]:
    """When each thing that was recorded began and ended."""
    starts, ends = [np.zeros(0)], [np.zeros(0)]
    for node in profile.nodes:
        samples = profile.samples(node)
        starts.append(samples.time)
        ends.append(samples.time + (samples.interval_s if len(samples) > 1 else 0.0))
    for rank in profile.ranks:
        steps, spans = profile.steps(rank), profile.spans(rank)
        starts += [steps.time, np.array([span.time for span in spans])]
        ends += [steps.time + steps.seconds, np.array([span.time + span.seconds for span in spans])]
    return np.concatenate(starts), np.concatenate(ends)
