"""Jobs in processes of this machine.

Each process takes one job after the other, so that torch is imported once for many jobs, and a
job that crashes or takes all memory brings down itself alone: its process is replaced. Jobs go in
and events come out as JSON lines. A process whose engine is gone saves and leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from vizsla.engines.base import Event, Job

# Exit codes of a process that was asked to stop, by whomever, rather than crashed.
_ASKED = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_END_S = 60.0
_LAST = ("finished", "pruned", "stopped", "failed", "crashed")


class _Process:
    """A process that works on one job at a time."""

    def __init__(self, log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "vizsla.cli", "job", "--lines"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is the engine's to hear
                # A module beside the pictures must not pass for one of Python's.
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._commands: IO[bytes] = self._child.stdin
        self.events: IO[bytes] = self._child.stdout
        os.set_blocking(self.events.fileno(), False)
        self._rest = b""
        self.job: int | None = None

    @property
    def is_alive(self) -> bool:
        return self._child.poll() is None

    def send(self, message: str) -> None:
        """Send a line; one that is gone is noticed when its events end."""
        with contextlib.suppress(OSError):
            self._commands.write(message.encode() + b"\n")
            self._commands.flush()

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The events that are there, and whether the process has left."""
        try:
            chunk = os.read(self.events.fileno(), 1 << 20)
        except BlockingIOError:
            return [], False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines if line], not chunk

    def terminate(self, now: bool = False) -> None:
        with contextlib.suppress(OSError):
            self._child.kill() if now else self._child.terminate()

    def end(self, timeout_s: float = _END_S) -> int:
        """Let it leave, or make it; its exit code."""
        with contextlib.suppress(OSError):
            self._commands.close()
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._child.kill()
            code = self._child.wait()
        self.events.close()
        return code

    def last_words(self) -> str:
        """The last line that it wrote to its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


class LocalEngine:
    """An `Engine` of `slots` processes, whose output goes to files in `logs`."""

    def __init__(self, slots: int, logs: Path) -> None:
        self._slots, self._logs = slots, logs
        self._processes: list[_Process] = []
        self._selector = selectors.DefaultSelector()
        self._count = self._started = 0

    @property
    def slots(self) -> int:
        return self._slots

    def warm_up(self) -> None:
        """Start every process now, to import while the first job is made ready."""
        while len(self._processes) < self._slots:
            self._start()

    def submit(self, job: Job) -> int:
        for gone in [one for one in self._processes if one.job is None and not one.is_alive]:
            self._dismiss(gone)
        idle = [process for process in self._processes if process.job is None]
        if not idle and len(self._processes) >= self._slots:
            raise RuntimeError(f"All {self._slots} processes are at work.")
        process = idle[0] if idle else self._start()
        self._count += 1
        process.job = self._count
        process.send(job.to_json())
        return self._count

    def events(self, timeout_s: float) -> list[Event]:
        happened: list[Event] = []
        for key, _ in self._selector.select(timeout_s):
            process: _Process = key.data
            messages, gone = process.read()
            happened += [self._event(process, message) for message in messages]
            if gone:
                happened += self._bury(process)
        return happened

    def answer(self, job: int, stop: str | None = None, cores: int | None = None) -> None:
        for process in self._processes:
            if process.job == job:
                process.send(json.dumps({"stop": stop, "cores": cores}))

    def stop(self, job: int, now: bool = False) -> None:
        for process in self._processes:
            if process.job == job:
                process.terminate(now)

    def close(self) -> None:
        for process in self._processes:
            if process.job is not None:
                process.terminate()
        deadline = time.monotonic() + _END_S
        for process in self._processes:
            self._selector.unregister(process.events)
            process.end(max(deadline - time.monotonic(), 1.0))
        self._processes.clear()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> _Process:
        self._started += 1
        process = _Process(self._logs / f"worker-{self._started}.log")
        self._processes.append(process)
        self._selector.register(process.events, selectors.EVENT_READ, process)
        return process

    def _event(self, process: _Process, message: dict[str, Any]) -> Event:
        job = process.job
        assert job is not None
        kind = message.pop("event")
        if kind in _LAST:
            process.job = None
        if message.get("error") == "OutOfMemory":  # what it holds is best given back whole
            self._dismiss(process)
        return Event(job, kind, message)

    def _bury(self, process: _Process) -> list[Event]:
        """The process has left: what became of its job."""
        job = process.job
        code = self._dismiss(process)
        if job is None:
            return []
        if code in _ASKED:
            return [Event(job, "stopped")]
        return [Event(job, "crashed", {"reason": _why(code, process.last_words())})]

    def _dismiss(self, process: _Process) -> int:
        if process not in self._processes:
            return 0
        self._processes.remove(process)
        self._selector.unregister(process.events)
        return process.end()


def _why(code: int, last_words: str) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), as the system does where memory runs out"
    if code < 0:
        return f"its process crashed ({signal.Signals(-code).name})"
    return f"its process left with exit code {code}: {last_words or 'no word why'}"
