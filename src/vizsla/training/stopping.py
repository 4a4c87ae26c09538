"""Stopping in time: a signal asks and the loop finishes its step, saves and leaves; an observer
asks and the epoch in progress is the last, or the step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """Why an observer ended a training, and whether in the midst of it."""

    reason: str
    at_once: bool


@dataclass
class StopRequest:
    """Who asked to stop, if anyone: a signal by its number, an observer by its reason.

    After a signal training can be taken up again, and after an observer's request to stop at once;
    else it is over after that, as after early stopping. `checkpoint` asks for one after this step.
    Another thread may ask.
    """

    signal_number: int | None = None
    ended: Ended | None = None  # one value, since another thread may ask while the loop looks
    checkpoint: bool = False

    def ask(self, reason: str, at_once: bool = False) -> None:
        """Let the epoch in progress be the last; `at_once`, the step, with a checkpoint."""
        if self.ended is None:
            self.ended = Ended(reason, at_once)

    @property
    def reason(self) -> str | None:
        """Why an observer asked, if one did."""
        return self.ended.reason if self.ended is not None else None

    @property
    def at_once(self) -> bool:
        return self.ended is not None and self.ended.at_once


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request while inside; a second Ctrl-C stops at once, while
    SIGTERM, which a job's scheduler and its parent may both send, may come again.

    Outside the main thread, where Python delivers no signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signal_number: int, _frame: FrameType | None) -> None:
        if request.signal_number is None:
            request.signal_number = signal_number
        elif signal_number == signal.SIGINT:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
