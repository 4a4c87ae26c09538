"""Waiting for one job: a probe, or the making of a bundle."""

from __future__ import annotations

from vizsla.engines.base import Engine, Event, Job
from vizsla.errors import Interrupted
from vizsla.training.stopping import StopRequest

_POLL_S = 0.25
_ENDS = ("finished", "pruned", "stopped", "failed", "crashed")


def wait_for(engine: Engine, job: Job, stop: StopRequest) -> Event:
    """Do a job while nothing else runs; how it ended. Raises `Interrupted` after a signal."""
    number = engine.submit(job)
    asked = False
    while True:
        for event in engine.events(_POLL_S):
            if event.kind == "epoch":
                engine.answer(number)
            elif event.kind in _ENDS:
                if stop.signal_number is not None:
                    raise Interrupted(stop.signal_number, "Stopped; every trial is saved.")
                return event
        if stop.signal_number is not None and not asked:
            engine.stop(number)
            asked = True
