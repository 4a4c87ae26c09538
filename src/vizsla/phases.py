"""What a loop is doing, said as it does it: `with phase("forward"): ...`.

Whoever listens is a clock, of this thread and for a while; most of the time nobody does, and saying
it costs a quarter of a microsecond. So a loop can be timed without hearing of who times it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

# Whether this process was begun for the one thing that it does, as a command line says.
is_command = False

_UNTIMED: AbstractContextManager[None] = contextlib.nullcontext()


class Clock(Protocol):
    """Times phases. They may lie within one another; each is entered and left in one thread."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...


_clock: ContextVar[Clock | None] = ContextVar("clock", default=None)


def phase(name: str) -> AbstractContextManager[None]:
    """Something that this thread is about to do."""
    clock = _clock.get()
    return _UNTIMED if clock is None else clock.phase(name)


@contextlib.contextmanager
def timed_by(clock: Clock) -> Iterator[None]:
    """Let `clock` hear this thread's phases inside."""
    token = _clock.set(clock)
    try:
        yield
    finally:
        _clock.reset(token)
