"""Where the time of each step goes, and what happens between steps.

A `Timeline` is told when phases begin and end and writes, every two seconds or so, the steps that
are over. Phases may lie within one another: each is given the time that is its own. On a GPU, which
computes later than it is told to, phases are timed by events of the device, not by waiting for it.
"""

from __future__ import annotations

import os
import time
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

from vizsla.profiling.columns import StepColumns
from vizsla.profiling.device_time import DeviceTime, StepMarks
from vizsla.profiling.format import SPANS, timeline_file
from vizsla.profiling.machine import process_started
from vizsla.runs.files import append_text, json_lines

Item = TypeVar("Item")
_FLUSH_S = 2.0
_MOST_HELD = 1000


class Annotator(Protocol):
    """Makes phases visible to another profiler as well."""

    def __call__(self, name: str) -> AbstractContextManager[Any]: ...


class Timeline:
    """Times one process, in the thread that says its phases. What happens before `open` says where
    to write is held."""

    def __init__(self) -> None:
        self.annotate: Annotator | None = None
        self._path: Path | None = None
        self._device: DeviceTime | None = None
        self._zero = time.time() - perf_counter()
        self._known: dict[str, _Phase] = {}
        self._parts: list[_Phase] = []  # those that are of steps
        self._stack: list[_Phase] = []
        self._made = self._last = self._began = self._flushed = perf_counter()
        self._between = 0.0  # seconds of the step so far that belong to spans
        self._number = 0
        self._over = StepColumns()
        self._awaited: deque[_Awaited] = deque()
        self._lines: list[dict[str, Any]] = []
        self._startup = 0.0
        self._is_set_up = self._has_stepped = False

    def open(self, run: Path, rank: int = 0, node: str = "algo-1", device: str = "cpu") -> None:
        """Write into a run folder from now on. Raises `StorageError` where it cannot be written."""
        self._path = timeline_file(run, rank)
        if device.startswith("cuda"):
            self._device = DeviceTime.of_cuda()
        facts = {"time": self._zero + self._made, "node": node, "rank": rank, "device": device}
        started = {"process_started": process_started()}
        self._lines.insert(0, {"kind": "session", **facts, **started})
        self.flush()

    def began_before(self, name: str, since: float) -> None:
        """What went on from `since` (seconds since 1970) until this timeline was made."""
        seconds = max(0.0, self._zero + self._made - since)
        self._span(name, since - self._zero, seconds)

    def begin_steps(self) -> None:
        """From now on it is the first step; what came before, in no phase, was setting up."""
        now = perf_counter()
        self._close_setup(now)
        self._began, self._between = now, 0.0
        for part in self._parts:
            part.total = 0.0

    def phase(self, name: str) -> _Phase:
        """Something that is about to be done: `with timeline.phase("forward"): ...`.

        Names of `format.SPANS` are times between steps, any other is a part of a step; `format`
        lists those that rules and reports know.
        """
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _Phase(self, str(name), self._over)
            if not known.is_span:
                self._parts.append(known)
        return known

    def loading(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; waiting for each is the phase `data_wait`, and so is the start of whatever
        loads them."""
        with self.phase("data_wait"):
            source = iter(batches)
        end = object()
        while True:
            with self.phase("data_wait"):
                batch = next(source, end)
            if batch is end:
                return
            yield batch  # type: ignore[misc]

    def step(self, number: int | None = None) -> None:
        """A step is over. Steps are numbered from 1 unless they are told."""
        now = perf_counter()
        self._number = number = self._number + 1 if number is None else number
        seconds = now - self._began - self._between
        if self._device is not None:
            marks = self._device.end_step()
            self._awaited.append(_Awaited(number, self._began, marks))
            for phase in self._parts:
                phase.total = 0.0
        else:
            over = self._over
            over.steps.append(number)
            over.starts.append(self._began)
            over.seconds.append(seconds)
            for phase in self._parts:
                phase.column.append(phase.total)
                phase.total = 0.0
        if not self._has_stepped:
            self._close_setup(now - seconds)
            self._has_stepped = True
            self._span("first_step", now - seconds, seconds)
        self._began, self._between = now, 0.0
        if now - self._flushed > _FLUSH_S or len(self._over) >= _MOST_HELD:
            self.flush()

    def fact(self, name: str, **facts: Any) -> None:
        """A measurement for the profile, plain numbers and texts."""
        self._lines.append({"kind": "fact", "name": name, **facts})

    def flush(self) -> None:
        """Write what is held. Raises `StorageError`."""
        self._flushed = perf_counter()
        if self._path is None:
            return
        while self._awaited and self._awaited[0].marks.are_reached():
            self._take(self._awaited.popleft())
        lines, self._lines = self._lines, []
        text = json_lines(lines) + (self._over.taken(self._zero) if len(self._over) else "")
        if text:
            append_text(self._path, text)

    def close(self) -> None:
        """Write the last steps too, once the device is done with them. Raises `StorageError`."""
        if self._device is not None:
            self._device.wait()
        self.flush()

    def give_up(self) -> None:
        """Hold nothing any more and ask the device nothing; phases do no harm from now on."""
        self.annotate = self._device = self._path = None
        self._awaited.clear()
        self._over.taken(0.0)
        self._lines = []

    def _take(self, step: _Awaited) -> None:
        """The device has passed a step; its times replace those of the host."""
        found = step.marks.seconds()
        self._over.steps.append(step.number)
        self._over.starts.append(step.start)
        self._over.seconds.append(sum(found.values()))
        for phase in self._parts:
            phase.column.append(found.get(phase.name, 0.0))

    def _mark(self) -> None:
        """Tell the device which phase of a step goes on."""
        assert self._device is not None
        name: str | None = "other"
        if self._stack:
            name = None if self._stack[-1].is_span else self._stack[-1].name
        try:
            self._device.mark(name)
        except Exception:  # a device that has failed, of which the loop hears by itself
            self._device = None

    def _leave_span(self, phase: _Phase, now: float) -> None:
        """Note a time between steps, and take it out of the step that it lies in."""
        seconds, phase.total = phase.total, 0.0
        self._startup += seconds
        self._between += seconds
        self._span(phase.name, phase.start, seconds)
        if not self._stack:
            # The step begins behind the span, with what was done of it before, if anything.
            is_begun = any(part.total for part in self._parts)
            done = now - self._began - self._between if is_begun else 0.0
            self._began, self._between = now - done, 0.0

    def _span(self, name: str, start: float, seconds: float) -> None:
        line = {"kind": "span", "name": name, "time": round(self._zero + start, 3)}
        self._lines.append({**line, "seconds": round(seconds, 6)})

    def _close_setup(self, now: float) -> None:
        """Before the first step: what was in no phase of its own."""
        if self._is_set_up:
            return
        self._is_set_up = True
        rest = now - self._made - self._startup
        if rest > 0:
            self._span("setup", now - rest, rest)


class _Phase:
    """One phase of a timeline, entered again and again; `total` is its own time so far."""

    __slots__ = ("_annotations", "_timeline", "column", "is_span", "name", "start", "total")

    def __init__(self, timeline: Timeline, name: str, over: StepColumns) -> None:
        self._timeline, self.name, self.is_span = timeline, name, name in SPANS
        self.column = array("d") if self.is_span else over.phase(name)
        self.total = self.start = 0.0
        self._annotations: list[AbstractContextManager[Any]] = []

    # Both are called ten times a step and more, which is why they are all in one piece.
    def __enter__(self) -> None:
        timeline = self._timeline
        if timeline.annotate is not None:
            self._annotations.append(timeline.annotate(self.name))
            self._annotations[-1].__enter__()
        now = perf_counter()
        stack, entered = timeline._stack, self
        if stack:
            stack[-1].total += now - timeline._last
            if stack[-1].is_span and not self.is_span:  # inside of a span it is a part of that
                entered = stack[-1]
        stack.append(entered)
        timeline._last = now
        if self.is_span and self.total == 0.0:
            self.start = now
        if timeline._device is not None:
            timeline._mark()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        timeline = self._timeline
        now = perf_counter()
        left = timeline._stack.pop()
        left.total += now - timeline._last
        timeline._last = now
        if self.is_span and self not in timeline._stack:
            timeline._leave_span(self, now)
        if timeline._device is not None:
            timeline._mark()
        if self._annotations:
            self._annotations.pop().__exit__(None, None, None)


class _Awaited(NamedTuple):
    """A step that is over here, but perhaps not on the device."""

    number: int
    start: float
    marks: StepMarks


def rank_here() -> int:
    """The number of this process among all of a training."""
    return int(os.environ.get("RANK", "0") or 0)


def processes_here() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)
