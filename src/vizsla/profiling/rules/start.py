"""Rules on how long a training takes to come to its first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from pydantic import Field

from vizsla.findings import Finding
from vizsla.profiling.clock import RunClock
from vizsla.profiling.format import SPANS
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.rules.cures import recipe_of
from vizsla.profiling.rules.measures import NO_STEPS, timed_steps

# Work that steps would have to do else, and no delay.
_WORK = "cache"
_FIRST, _END = "first_step", "final"
# Of vizsla's own trainings. What the first run alone has to do says so: then nothing needs a cure.
_CURES = {
    "import": "The first run after an installation compiles its libraries, later ones do not. If "
    "it stays slow, have Python and its libraries on a local disk.",
    "data": "An archive is unpacked once: the next run finds its pictures, if the cache "
    "(VIZSLA_CACHE) lasts. A folder of pictures is found sooner on a local disk.",
    "model": "A smaller network is built sooner; vizsla tune builds it once for all trials of a "
    "process.",
    "weights": "Weights are downloaded once: the next run finds them, if the hub's cache (HF_HOME) "
    "lasts. A file is read sooner from a local disk: --weights FILE.safetensors.",
    "setup": "Start fewer loader processes: --workers.",
    "first_step": "The first batch is slow to load, or kernels are chosen in it: store pictures "
    "smaller, start fewer loader processes (--workers).",
}
_CURES_OF_A_LOOP = {
    "import": "Have Python and its libraries on a local disk, and import only what is needed.",
    "data": "Keep the data on a local disk, unpacked, with an index of its files.",
    "model": "Build the network once, on the device where it trains.",
    "weights": "Keep the weights on a local disk. What was downloaded now the next run may find.",
    "setup": "Do before the first step only what it needs; start fewer loader processes "
    "(DataLoader(num_workers=...)).",
    "first_step": "The first batch is slow to load, or kernels are chosen and compiled in it: make "
    "loading cheaper, start fewer loader processes (DataLoader(num_workers=...)).",
}
_COMPILED = "torch.compile takes its time in the first step: leave out --compile in short runs."


class MaxInitializationTime(ProfileRule):
    """Fires when the first step begins later than `threshold` minutes after the training began,
    with its process where that was started for it.

    Deviation: what is made ready so that steps need not do it (outputs of frozen layers, decoded
    pictures) is work, and its time is left out.
    """

    name: ClassVar[str] = "max_initialization_time"

    threshold: float = Field(20.0, gt=0, le=1e6, description="Minutes that are let pass.")

    def applies(self, record: ProfileRecord) -> str | None:
        return _unless_begun(record)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        if self.applies(record) is not None:
            return
        parts = {name: part for name, part in _parts(record).items() if name != _FIRST}
        seconds = sum(parts.values())
        if seconds <= 60 * self.threshold:
            return
        longest = max(parts, key=lambda name: parts[name])
        yield self.finding(
            f"The first step began {seconds / 60:.0f} minutes after the training began; "
            f"{parts[longest] / 60:.0f} of them went to {SPANS[longest]}.",
            _cure(record, longest),
            where="start",
            measured=seconds / 60,
            threshold=self.threshold,
            cause=longest,
            seconds=seconds,
            parts=parts,
        )


class SlowStart(ProfileRule):
    """Fires when it takes more than `threshold` seconds, and more than a `share` of the run's time,
    until the first step is done.

    New. It names the part that took longest and what cures that. What is made ready so that steps
    need not do it (outputs of frozen layers, decoded pictures) is work, and is left out. A hint,
    and a warning where the start takes more time than everything that follows. Of a training of
    vizsla's that is not over, the epochs that are to come count as well.
    """

    name: ClassVar[str] = "slow_start"

    threshold: float = Field(30.0, gt=0, le=1e6, description="Seconds that are let pass.")
    share: float = Field(0.1, ge=0, lt=1, description="Share of the run's time let pass, 0 to 1.")

    def applies(self, record: ProfileRecord) -> str | None:
        if _seconds_after_start(record) is None:
            return "the first epoch is not over"
        return _unless_begun(record)

    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        after = _seconds_after_start(record)
        if self.applies(record) is not None or after is None:
            return
        parts = _parts(record)
        seconds, longest = sum(parts.values()), max(parts, key=lambda name: parts[name])
        if seconds <= self.threshold:
            return
        share = seconds / (seconds + after)
        if share <= self.share:
            return
        yield self.finding(
            f"It took {seconds:.3g} seconds until the first step was done, {100 * share:.0f} % of "
            f"the run; {parts[longest]:.3g} of them went to {SPANS[longest]}.",
            _cure(record, longest),
            severity="warning" if share > 0.5 else "info",
            where="start",
            measured=seconds,
            threshold=self.threshold,
            cause=longest,
            share=share,
            parts=parts,
        )


def _parts(record: ProfileRecord) -> dict[str, float]:
    """Seconds of each part of the start, without what is work."""
    found = record.profile.startup()
    return {
        name: seconds
        for name, seconds in found.items()
        if name != _WORK and np.isfinite(seconds) and seconds > 0
    }


def _unless_begun(record: ProfileRecord) -> str | None:
    """Why there is no start to judge; None where the first step is over."""
    if not len(timed_steps(record)):
        return NO_STEPS
    return None if _FIRST in _parts(record) else "its start was not timed"


def _cure(record: ProfileRecord, part: str) -> str:
    recipe = recipe_of(record)
    if recipe is None:
        return _CURES_OF_A_LOOP.get(part, _CURES_OF_A_LOOP["setup"])
    return _COMPILED if part == _FIRST and recipe.compile else _CURES.get(part, _CURES["setup"])


def _seconds_after_start(record: ProfileRecord) -> float | None:
    """From the end of the first step to the end of what was recorded, or of what there will be by
    the epochs so far; None where none is over."""
    steps, spans = timed_steps(record), record.profile.spans()
    if not len(steps):
        return 0.0
    ends = [*(steps.time + steps.seconds), *(one.time + one.seconds for one in spans)]
    moments = np.array([*ends, steps.time[0] + steps.seconds[0]])
    at = RunClock.of(record.profile).seconds(moments[np.isfinite(moments)])
    after = max(0.0, float(at.max() - at[-1]))
    recipe = recipe_of(record)
    if recipe is None or any(one.name == _END for one in spans):
        return after
    done = len(record.epochs)
    return after * max(1.0, recipe.epochs / done) if done else None
