"""Waiting for one job: a probe, or the making of a bundle."""

from __future__ import annotations

import time

from vizsla.engines.base import Engine, Event, Job
from vizsla.errors import Interrupted
from vizsla.training.stopping import StopRequest

_POLL_S = 0.25
_DRAIN_S = 90.0
_STOPS_AT_MOST = 3
_ENDS = ("finished", "pruned", "stopped", "failed", "crashed")


def wait_for(engine: Engine, job: Job, stop: StopRequest) -> Event:
    """Do a job while nothing else runs; how it ended. One that somebody else stopped goes on.

    Raises `Interrupted` after a signal.
    """
    for _ in range(_STOPS_AT_MOST):
        end = _end_of(engine, engine.submit(job), stop)
        if end.kind == "stopped":
            time.sleep(_POLL_S)  # a signal to everyone may be on its way to this process, too
        if stop.signal_number is not None:
            raise Interrupted(stop.signal_number, "Stopped; every trial is saved.")
        if end.kind != "stopped":
            break
    return end


def _end_of(engine: Engine, number: int, stop: StopRequest) -> Event:
    deadline = None
    while True:
        for event in engine.events(_POLL_S):
            if event.kind == "epoch":
                engine.answer(number)
            elif event.kind in _ENDS:
                return event
        if stop.signal_number is not None and deadline is None:
            deadline = time.monotonic() + _DRAIN_S
            engine.stop(number)
        elif deadline is not None and time.monotonic() > deadline:  # it does not hear
            engine.stop(number, now=True)
