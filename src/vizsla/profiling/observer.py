"""The profiler of vizsla's own trainings: an observer of the loop.

The loop says what it does (`vizsla.phases`), from the first look at the pictures on; here is who
listens, samples the machine beside it, and judges both in the end.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from vizsla import phases
from vizsla.errors import StorageError
from vizsla.findings import Finding
from vizsla.phases import timed_by
from vizsla.profiling.machine import process_started
from vizsla.profiling.probes import Probe
from vizsla.profiling.profiler import Profiler, device_here
from vizsla.profiling.recorded import NotProfiled
from vizsla.profiling.settings import ProfileSettings, read_settings, write_settings
from vizsla.profiling.timeline import processes_here, rank_here
from vizsla.records import EpochRecord
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.training.events import Observer, Observers, StepFacts, TrainingFacts, TrainingParts
from vizsla.training.stopping import StopRequest


class TrainingProfiler(Observer):
    """Times and samples one training. `tell` is called with each finding, `note` with what went
    wrong with the profiler itself."""

    def __init__(
        self,
        settings: ProfileSettings,
        tell: Callable[[Finding], None],
        note: Callable[[str], None],
    ) -> None:
        self._settings, self._tell, self._note = settings, tell, note
        self._profiler = Profiler(settings, note)
        self.timeline = self._profiler.timeline
        self._run: RunFolder | None = None
        self._probe: Probe | None = None
        self._epochs: list[EpochRecord] = []
        self._say_what_was_before()

    def on_run(self, run: RunFolder, **more: Any) -> None:
        self._run = run
        if rank_here() == 0:
            try:
                write_settings(run, self._settings)
            except StorageError as error:  # which is no reason not to train
                self._note(str(error))
        self._profiler.open(run.path, device_here())

    def on_start(
        self, facts: TrainingFacts, stop: StopRequest, *, parts: TrainingParts, **more: Any
    ) -> None:
        if processes_here() == 1:
            self._probe = Probe(facts, parts)
        self._profiler.begin(parts.step)

    def on_step(self, facts: StepFacts, **more: Any) -> None:
        self._profiler.step(facts.step)

    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        self._epochs.append(record)

    def on_end(self, **more: Any) -> None:
        probe, self._probe = self._probe, None
        if probe is None:
            return
        probe.close()
        if sys.exc_info()[0] is None:  # the loop has come to its end, whichever
            with self.timeline.phase("probe"):
                self._measure(probe)

    def close(self) -> None:
        """End, and judge what was recorded."""
        self._profiler.close()
        if self._run is not None and rank_here() == 0:
            self._judge(self._run)

    def _say_what_was_before(self) -> None:
        if phases.is_command:
            self.timeline.began_before("import", process_started())

    def _measure(self, probe: Probe) -> None:
        assert self._run is not None
        try:
            facts = self._run.facts()
            gain = probe.bf16_gain(self._epochs)
            # Of a run that was gone on with, the epochs before count as well.
            frozen = probe.frozen_work(
                Recipe(**facts["recipe"]), facts["model"], self._run.epochs()
            )
        except Exception as error:  # a measurement less is no harm
            self._note(f"the profiler could not measure: {type(error).__name__}: {error}")
            return
        for name, found in (("bf16_gain", gain), ("frozen_work", frozen)):
            if found is not None:
                self.timeline.fact(name, **found)

    def _judge(self, run: RunFolder) -> None:
        try:
            from vizsla.profiling.judging import judge_profile

            findings = judge_profile(run).findings
            found = [finding for finding in findings if finding.severity != "info"]
            run.append_findings(found)
        except NotProfiled:  # the folder could not be written, which was said
            return
        except Exception as error:  # whatever it is, the training is done
            self._note(f"the profile could not be judged: {type(error).__name__}: {error}")
            return
        for finding in found:
            self._tell(finding)


@contextlib.contextmanager
def profiled(
    wanted: ProfileSettings | bool | RunFolder, observers: Iterable[Observer]
) -> Iterator[list[Observer]]:
    """The observers with a profiler among them: by settings, as it comes for True, or as the run
    that is taken up again had one. It ends with the block."""
    others = list(observers)
    settings: ProfileSettings | bool | None
    settings = read_settings(wanted) if isinstance(wanted, RunFolder) else wanted
    if isinstance(settings, ProfileSettings) and not settings.is_on:
        settings = None
    if not settings:
        yield others
        return
    everyone = Observers(others)
    chosen = settings if isinstance(settings, ProfileSettings) else ProfileSettings(profile=True)
    profiler = TrainingProfiler(chosen, everyone.on_finding, everyone.on_note)
    try:
        with timed_by(profiler.timeline):
            yield [*others, profiler]
    finally:
        profiler.close()
