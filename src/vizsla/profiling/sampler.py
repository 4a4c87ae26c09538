"""Samples the machine at a steady interval, in a thread of its own.

It never disturbs the program that it samples: nothing is raised into it, and what fails is left
out. Of one core it takes a fifth of a percent at 500 ms: what is slow to read is read seldom, and
samples are written every two seconds. A kill loses those, no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from vizsla.errors import SettingError, StorageError
from vizsla.profiling.counters import (
    Cores,
    Disks,
    Guarded,
    Heat,
    Memory,
    Network,
    Power,
    Runnable,
    Sample,
    Source,
)
from vizsla.profiling.format import DEFAULT_INTERVAL_MS, INTERVALS_MS, samples_file
from vizsla.profiling.gpus import Gpus
from vizsla.profiling.lines import Lines
from vizsla.profiling.machine import describe_machine, node_here, torch_threads
from vizsla.profiling.tree import Tree

_log = logging.getLogger("vizsla")
_SELDOM_S = 5.0  # between two looks at what is slow to read
_LEAST_S = 0.05  # processor time is counted in 10 ms: a sample of less would say nothing
_PATIENCE_S = 10.0  # a disk that hangs must not hang the program

_SOURCES: tuple[tuple[str, Callable[[], Source]], ...] = (
    ("use of the cores", Cores),
    ("memory", Memory),
    ("disk operations and bytes", Disks),
    ("network bytes", Network),
    ("runnable threads", Runnable),
    ("power of the processor", Power),
)


class Sampler:
    """Samples this machine, and a process with its descendants, from `start` to `stop`.

    run:         the run folder, in which `profile-NODE.jsonl` is begun or gone on with
    interval_ms: between two samples, 100 to 60,000; `SettingError` for others
    pid:         the process to follow; this one unless told
    node:        what this machine is called; by default as SageMaker or torchrun count
    tell:        called once, in another thread, where sampling has to end early

    A sample describes the interval before it. `stop` takes the last one, so that a program
    shorter than the interval has one too.
    """

    def __init__(
        self,
        run: Path,
        *,
        interval_ms: int = DEFAULT_INTERVAL_MS,
        pid: int | None = None,
        node: str | None = None,
        tell: Callable[[str], None] = _log.warning,
    ) -> None:
        low, high = INTERVALS_MS
        if not low <= interval_ms <= high:
            raise SettingError(
                f"The sampling interval is {interval_ms} ms; it can be {low} to {high:,} ms."
            )
        self.node = node or node_here()
        self.samples = 0
        self.cpu_seconds = 0.0  # processor time that sampling took, up to the last sample
        self._interval_s = interval_ms / 1000
        self._owner = os.getpid()
        self._pid = pid or self._owner
        self._tell = tell
        self._lines = Lines(samples_file(run, self.node))
        self._about: dict[str, Any] = {"kind": "about", "node": self.node, "pid": self._pid}
        self._about |= {"interval_ms": interval_ms}
        self._at_the_end: dict[str, Any] = {}
        self._sources: list[Guarded] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Sampler:
        """Begin; a second call changes nothing."""
        if self._thread is None:
            self._about |= self._torch()
            thread = threading.Thread(target=self._work, name="vizsla-sampler", daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError as error:  # the system gives no more threads
                self._tell(f"profile: nothing is sampled. {error}")
        return self

    def stop(self) -> None:
        """Take the last sample, write what is held, and end; a second call changes nothing."""
        if self._thread is None or os.getpid() != self._owner:  # in a fork it does not run
            return
        if not self._stop.is_set():
            self._at_the_end = self._torch()
            self._stop.set()
        self._thread.join(_PATIENCE_S)

    def __enter__(self) -> Sampler:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _work(self) -> None:
        try:
            with contextlib.closing(self._lines), contextlib.closing(Gpus()) as gpus:
                self._begin(gpus)
                self._sample_until_stopped()
                self._write_about(self._at_the_end)
        except StorageError as error:
            self._tell(f"profile: sampling ended. {error}")
        except Exception as error:  # a fault of ours must not end the program
            self._tell(f"profile: sampling ended. {type(error).__name__}: {error}")

    def _begin(self, gpus: Gpus) -> None:
        """Read the counters that rates begin at, and describe the machine."""
        pairs = [*_SOURCES, ("processes", lambda: Tree(self._pid))]
        self._sources = [Guarded(what, make) for what, make in pairs]
        for source in self._sources:
            source.read({})
        self._sources.append(Guarded("GPUs", lambda: gpus))
        self._sources.append(Guarded("heat of the processor", Heat, every_s=_SELDOM_S))
        self._write_about(describe_machine() | {"gpus": gpus.describe()})
        self._lines.flush()

    def _sample_until_stopped(self) -> None:
        due = last = looked = time.monotonic()
        while not self._stop.is_set() or not self.samples:
            due = _next_after(due, self._interval_s)
            self._stop.wait(due - time.monotonic())
            too_early = last + _LEAST_S - time.monotonic()
            if too_early > 0 and self.samples and self._stop.is_set():
                return
            time.sleep(max(0.0, too_early))  # the one before it may have come late
            last = time.monotonic()
            self._take()
            if last - looked >= _SELDOM_S:
                looked = last
                self._write_about({} if "torch_threads" in self._about else self._torch())

    def _take(self) -> None:
        sample: Sample = {"kind": "sample", "time": round(time.time(), 3)}
        for source in self._sources:
            source.read(sample)
        self._lines.append(sample)
        self.samples += 1
        self.cpu_seconds = time.thread_time()

    def _write_about(self, facts: dict[str, Any]) -> None:
        """Write the description of the machine, if there is something new to tell; readers take
        the last one."""
        missing = [words for source in self._sources for words in source.missing]
        news = self._about | facts | {"missing": missing}
        if news != self._about:
            self._about = news
            self._lines.append(dict(news))

    def _torch(self) -> dict[str, Any]:
        """How many threads torch computes with, if that is known by now, and it is our process
        that is followed."""
        threads = torch_threads() if self._pid == self._owner else None
        return {} if threads is None else {"torch_threads": threads}


def _next_after(due: float, interval_s: float) -> float:
    """When the next sample is due. Intervals add up without drift; those that were missed, while
    the machine slept, are not made up for."""
    due += interval_s
    now = time.monotonic()
    return due if due > now else now + interval_s
