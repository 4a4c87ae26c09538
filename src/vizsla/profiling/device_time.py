"""Times on a device that computes later than it is told to: marks in its own queue.

A mark is an event between two pieces of work; how long the device took from one to the next is
asked for later, when it has passed both. Nothing waits. It is written for CUDA and tried by its
arithmetic alone where there is no such device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Event(Protocol):
    """What torch's events do."""

    def record(self) -> Any: ...
    def query(self) -> bool: ...
    def synchronize(self) -> Any: ...
    def elapsed_time(self, end: Any, /) -> float: ...  # milliseconds


class DeviceTime:
    """Marks what the device is told to do. `make` gives a new event."""

    def __init__(self, make: Callable[[], Event]) -> None:
        self._make = make
        self._marks = StepMarks()
        self._last: Event | None = None

    @classmethod
    def of_cuda(cls) -> DeviceTime:
        import torch

        make: Any = torch.cuda.Event
        return cls(lambda: make(enable_timing=True))

    def mark(self, name: str | None) -> None:
        """From here on the device does what is called `name`; None is of no step."""
        event = self._last = self._make()
        event.record()
        self._marks.add(name, event)

    def end_step(self) -> StepMarks:
        """The marks of the step that is over; the next begins here."""
        self.mark("other")
        ended, self._marks = self._marks, StepMarks()
        if self._last is not None:
            self._marks.add("other", self._last)
        return ended

    def wait(self) -> None:
        """Until the device has passed the last mark."""
        if self._last is not None:
            self._last.synchronize()


class StepMarks:
    """The marks of one step, in order."""

    def __init__(self) -> None:
        self._marks: list[tuple[str | None, Event]] = []

    def add(self, name: str | None, event: Event) -> None:
        self._marks.append((name, event))

    def are_reached(self) -> bool:
        return not self._marks or self._marks[-1][1].query()

    def seconds(self) -> dict[str, float]:
        """Seconds of the device by name."""
        found: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:]):
            if name is not None:
                found[name] = found.get(name, 0.0) + start.elapsed_time(end) / 1000
        return found
