"""Runs a command as its user would and measures it from outside: seconds and memory.

Time is from start to exit, imports included. Memory is read from the system ten times a second;
a process that forks loader workers shares pages with them, so the sum over the tree counts those
pages several times and the main process's own figure stands beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERVAL_S = 0.1
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class MeasuredChild:
    """A finished command: wall seconds, peak resident megabytes (10^6 bytes), what it printed."""

    seconds: float
    peak_main_mb: float
    peak_tree_mb: float
    output: str


class ChildFailed(RuntimeError):  # noqa: N818
    """A measured command left with another exit code than 0; its last words are the message."""


def vizsla_command() -> str:
    """The `vizsla` script of the environment that runs the benchmarks."""
    script = Path(sys.executable).with_name("vizsla")
    if not script.exists():
        raise SystemExit(
            "There is no vizsla command beside this Python; install it first: make setup"
        )
    return str(script)


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> MeasuredChild:
    """Run `command` to its end. Raises `ChildFailed` if it fails."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=REPOSITORY,
        )
        with _MemoryWatch(child.pid) as watch:
            code = child.wait()
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if code != 0:
        raise ChildFailed(f"{Path(command[0]).name} left with exit code {code}:\n{text[-2000:]}")
    return MeasuredChild(seconds, watch.peak_main_mb, watch.peak_tree_mb, text)


class _MemoryWatch:
    """Samples the resident memory of a process and its descendants until it is left."""

    def __init__(self, pid: int) -> None:
        self.peak_main_mb = 0.0
        self.peak_tree_mb = 0.0
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(_INTERVAL_S):
            try:
                main = _resident_mb(self._process)
                children = self._process.children(recursive=True)
            except psutil.Error:  # it has just ended
                continue
            self.peak_main_mb = max(self.peak_main_mb, main)
            self.peak_tree_mb = max(self.peak_tree_mb, main + sum(map(_resident_mb, children)))


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 1e6
    except psutil.Error:
        return 0.0
