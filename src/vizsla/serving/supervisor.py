"""Several processes that answer on one socket: started, watched, replaced when one dies.

The supervisor answers nothing itself. SIGTERM and SIGINT end the processes, each after its last
answer; SIGHUP has each of them take the new bundle.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

from vizsla.errors import WorkError
from vizsla.serving.fleet import Board
from vizsla.serving.metrics import SHARED_FOLDER_VARIABLE
from vizsla.serving.process import BOARD_FILE, note_of
from vizsla.serving.settings import ServeSettings

_GLANCE_S = 0.1
# Between the death of a process and its successor: longer each time it dies young.
_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
_GROWN_UP_S = 60.0
_KILL_AFTER_S = 3.0


class Supervisor:
    """The processes of one server. Use it in the main thread, since it handles signals."""

    def __init__(self, listening: socket.socket, folder: Path, settings: ServeSettings) -> None:
        self._listening, self._folder, self._settings = listening, folder, settings
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        self._deaths: dict[int, int] = dict.fromkeys(range(settings.workers), 0)
        self._due: dict[int, float] = dict.fromkeys(range(settings.workers), 0.0)
        self._to_reload: set[int] = set()
        self._stopping = False

    def run(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serve until a signal. Raises `WorkError` where no process gets to answer."""
        before = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, self._stop),
                (signal.SIGINT, self._stop),
                (signal.SIGHUP, self._pass_on),
            )
        }
        try:
            with tempfile.TemporaryDirectory(prefix="vizsla-serve-") as scratch:
                self._watch(Path(scratch), announce)
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _watch(self, scratch: Path, announce: Callable[[dict[str, Any]], None]) -> None:
        board = Board.of_file(scratch / BOARD_FILE, self._settings.workers)
        announced = False
        while not self._stopping:
            for row in self._due:
                self._look_after(row, scratch, board, may_fail=announced)
            self._have_reload(board)
            notes = [note_of(scratch, row) for row in self._due]
            if not announced and board.missing() == 0 and all(note.exists() for note in notes):
                announced = True
                announce(json.loads(notes[0].read_text(encoding="utf-8")))
            time.sleep(_GLANCE_S)

    def _look_after(self, row: int, scratch: Path, board: Board, may_fail: bool) -> None:
        process = self._processes.get(row)
        if process is None:
            if time.monotonic() >= self._due[row]:
                self._processes[row] = self._start(row, scratch)
                self._started[row] = time.monotonic()
            return
        if process.poll() is None:
            return
        del self._processes[row]
        board.write(row, 0.0, 0)
        multiprocess.mark_process_dead(process.pid, str(scratch))  # type: ignore[no-untyped-call]
        if not may_fail:
            raise WorkError(
                f"A process of the server ended with {process.returncode} before it answered; "
                "see above for its reason."
            )
        young = time.monotonic() - self._started[row] < _GROWN_UP_S
        self._deaths[row] = self._deaths[row] + 1 if young else 0
        pause = _PAUSES_S[min(self._deaths[row], len(_PAUSES_S) - 1)]
        self._due[row] = time.monotonic() + pause
        print(
            f"vizsla: process {process.pid} of the server ended with {process.returncode}; "
            f"another one starts in {pause:g} s.",
            file=sys.stderr,
            flush=True,
        )

    def _start(self, row: int, scratch: Path) -> subprocess.Popen[bytes]:
        descriptor = self._listening.fileno()
        command = [
            *(sys.executable, "-m", "vizsla.serving.process"),
            *(str(descriptor), str(row), str(scratch), str(os.getpid()), str(self._folder)),
            self._settings.model_dump_json(),
        ]
        return subprocess.Popen(
            command,
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            env={**os.environ, SHARED_FOLDER_VARIABLE: str(scratch)},
        )

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _pass_on(self, *_: object) -> None:
        self._to_reload.update(self._due)

    def _have_reload(self, board: Board) -> None:
        """Pass SIGHUP on to those at work; one that is only starting would die of it, and might
        have read the old bundle already, so its turn comes later."""
        for row, (beat, _) in enumerate(board.read()):
            if beat and row in self._to_reload and row in self._processes:
                self._to_reload.discard(row)
                self._processes[row].send_signal(signal.SIGHUP)

    def _end(self) -> None:
        """Have each process finish; those that do not in time are killed."""
        self._listening.close()
        for process in self._processes.values():
            process.terminate()
        until = time.monotonic() + self._settings.drain_s + _KILL_AFTER_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
