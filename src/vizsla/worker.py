"""Working on jobs: one alone, or as they come in lines, telling of each in lines.

The other end of `engines/local.py`. A job's run folder holds its result; the lines only tell how
it goes, so that whoever leads several of them can stop one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from vizsla.data.cores import available_cores, limit_cores
from vizsla.debugging.observer import TrainingDebugger
from vizsla.debugging.settings import DebugSettings
from vizsla.engines.base import Job
from vizsla.errors import Interrupted, RunError, VizslaError, WorkError
from vizsla.exporting.footprint import footprint_of
from vizsla.pipeline import TrainingJob
from vizsla.records import EpochRecord
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.training.events import Observer, TrainingFacts
from vizsla.training.stopping import StopRequest

_WATCH_S = 0.5
_PROGRESS_S = 0.5
_MEMORY_WORDS = ("can't allocate memory", "out of memory", "bad alloc", "not enough memory")


def run_job(job: Job, observers: Iterable[Observer] = ()) -> RunFolder:
    """Do what the job says, in this process.

    Raises whatever a training does, and `RunError` where the folder holds another run.
    """
    if job.debug is not None:
        judge = TrainingDebugger(DebugSettings(**job.debug), at_epochs=not job.bundle)
        observers = [judge, *observers]
    use_cores(job.cores_before if job.cores_before is not None else job.cores)
    folder, recipe = Path(job.folder), job.to_recipe()
    if (folder / "run.toml").is_file():
        run = RunFolder.open(folder)
        if Recipe(**run.facts()["recipe"]) != recipe:
            raise RunError(
                f"{folder} holds a run of another recipe than the job's; name another folder."
            )
        task = TrainingJob.resumed(run, observers)
    else:
        task = TrainingJob.started(job.data, recipe, folder.parent, observers, folder)
    if job.footprint is not None:  # first, since a network that does not export needs no training
        notes = Path(job.footprint)
        figures = footprint_of(task.network, len(task.catalogue.classes), notes)
        task.run_folder.write_footprint(figures)
    return task.complete(job.train, job.bundle)


def use_cores(count: int | None) -> None:
    """Compute with `count` threads, and load with as many processes; None takes every core."""
    limit_cores(None)
    count = min(count or available_cores(), available_cores())
    limit_cores(count)
    torch.set_num_threads(count)


def serve(jobs: TextIO, events: TextIO) -> None:
    """Work on jobs from lines until there are no more; tell of each in lines."""
    _leave_with_the_parent()
    for line in jobs:
        _attend(Job.from_json(line), jobs, events)
        gc.collect()


class _Reporter(Observer):
    """Tells of a job in lines, and waits after each epoch for the answer."""

    def __init__(self, job: Job, answers: TextIO, events: TextIO) -> None:
        self._answers, self._events = answers, events
        self._stop: StopRequest | None = None
        self._cores = job.cores
        self._begun, self._next_progress = time.perf_counter(), 0.0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._begun

    @property
    def asked_to_stop(self) -> str | None:
        """Why an observer asked to end the training, if one did."""
        return self._stop.reason if self._stop is not None else None

    def tell(self, event: str, **facts: Any) -> None:
        try:
            self._events.write(json.dumps({"event": event, **facts}) + "\n")
            self._events.flush()
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """Whoever leads is gone: save what there is."""
        if self._stop is not None and self._stop.signal_number is None:
            self._stop.signal_number = signal.SIGTERM

    def on_note(self, note: str, **more: Any) -> None:
        self.tell("note", text=note)

    def on_trunk_progress(self, passes: int, of: int, found: int, **more: Any) -> None:
        now = time.monotonic()
        if now >= self._next_progress or passes == of:
            self._next_progress = now + _PROGRESS_S
            self.tell("trunk", done=passes, of=of)

    def on_start(self, facts: TrainingFacts, stop: StopRequest, **more: Any) -> None:
        self._stop = stop
        use_cores(self._cores)
        self.tell("started", epochs=facts.epochs, seconds=self.seconds)

    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        self.tell("epoch", record=asdict(record))
        line = self._answers.readline()
        if not line:
            self._leave()
            return
        answer = json.loads(line)
        if answer["stop"] and self._stop is not None:
            self._stop.ask(answer["stop"])
        if answer["cores"] not in (None, self._cores):
            self._cores = answer["cores"]
            use_cores(self._cores)


def _attend(job: Job, answers: TextIO, events: TextIO) -> None:
    """Do one job and tell how it ended; nothing but the process's own end gets past."""
    reporter = _Reporter(job, answers, events)
    try:
        run = run_job(job, [reporter])
    except Interrupted:
        reporter.tell("stopped", seconds=reporter.seconds)
    except Exception as error:  # whatever a job raises ends that job alone
        kind, reason = _named(error)
        found = reporter.asked_to_stop
        if found is not None and isinstance(error, WorkError):  # it diverged, as a rule had said
            RunFolder(Path(job.folder)).write_outcome("pruned", found)
            reporter.tell("pruned", reason=found, seconds=reporter.seconds)
            return
        if not isinstance(error, VizslaError):
            traceback.print_exc()
        if kind not in ("StorageError", "RunError") and (Path(job.folder) / "run.toml").is_file():
            RunFolder(Path(job.folder)).write_outcome("failed", reason)
        reporter.tell("failed", error=kind, reason=reason, seconds=reporter.seconds)
    else:
        outcome = run.outcome() or {}
        if job.train and outcome.get("status") == "pruned":
            reporter.tell("pruned", reason=outcome["reason"], seconds=reporter.seconds)
        else:
            reporter.tell("finished", seconds=reporter.seconds)


def _named(error: Exception) -> tuple[str, str]:
    """The error's kind and its words."""
    text = " ".join(str(error).split())
    if isinstance(error, VizslaError):
        return type(error).__name__, text
    starved = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if starved or any(words in text.lower() for words in _MEMORY_WORDS):
        return "OutOfMemory", f"it ran out of memory: {text or 'a Python object did not fit'}"
    return type(error).__name__, f"{type(error).__name__}: {text}"


def _leave_with_the_parent() -> None:
    """Save and leave once the process that started this one is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
