"""The processes of one server, and what each knows of the others.

Each has a row on a board, a small file that all of them map: when it was last alive, and which
bundle it serves. So any of them can say whether the whole server is ready, and one that took a new
bundle can see the others follow. A server of one process has a board of one row in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from vizsla.errors import VizslaError
from vizsla.serving.refusals import Refusal

_ROW = struct.Struct("=dQ")  # seconds of time.monotonic, the first bits of the bundle's digest
_BEAT_S = 0.5
_SILENT_S = 5.0
_FOLLOW_S = 60.0


class Board:
    """A row a process: a beat and a bundle. Rows of processes that are not there are zero."""

    def __init__(self, memory: mmap.mmap, rows: int) -> None:
        self._memory, self._rows = memory, rows

    @classmethod
    def alone(cls) -> Board:
        return cls(mmap.mmap(-1, _ROW.size), 1)

    @classmethod
    def of_file(cls, path: Path, rows: int) -> Board:
        """The board in a file, which is made where it is not there."""
        with open(path, "a+b") as file:
            file.truncate(_ROW.size * rows)
            return cls(mmap.mmap(file.fileno(), _ROW.size * rows), rows)

    def write(self, row: int, beat: float, bundle: int) -> None:
        self._memory[row * _ROW.size : (row + 1) * _ROW.size] = _ROW.pack(beat, bundle)

    def read(self) -> list[tuple[float, int]]:
        """Beat and bundle of each row."""
        return [_ROW.unpack_from(self._memory, row * _ROW.size) for row in range(self._rows)]

    def missing(self) -> int:
        """How many processes have not been heard of lately."""
        now = time.monotonic()
        return sum(not beat or now - beat > _SILENT_S for beat, _ in self.read())


class Fleet:
    """This process among those of its server. `row` is its own on the board."""

    def __init__(self, board: Board, row: int = 0, leader: int | None = None) -> None:
        """`leader` is the process that started this one, where there is one."""
        self._board, self._row, self._leader = board, row, leader
        self._bundle = 0
        self._at_work = False

    def tell(self, digest: str) -> None:
        """Note which bundle this process serves now."""
        self._bundle = _short(digest)
        if self._at_work:
            self._beat()

    def is_ready(self) -> bool:
        """Whether every process is at work."""
        return self.reason() is None

    def reason(self) -> str | None:
        """Why the server is not ready, if it is not."""
        missing = self._board.missing()
        return f"{missing} of the server's processes do not answer." if missing else None

    @contextlib.asynccontextmanager
    async def at_work(
        self, reload: Callable[[], Awaitable[bool]], at_beat: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Beat until the end, calling `at_beat` each time, and on SIGHUP take the new bundle."""
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(self._go_on_beating(at_beat))}

        def begin() -> None:
            task = loop.create_task(_tried(reload))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_signal_handler(signal.SIGHUP, begin)
        self._at_work = True  # and from now on SIGHUP may come
        self._beat()
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # not to be cut short at its end
            for task in tasks:
                task.cancel()
            self._at_work = False
            self._board.write(self._row, 0.0, 0)

    async def follow(self, digest: str) -> None:
        """Have the other processes take the bundle too, and wait until they have.

        Raises `Refusal` where one of them does not.
        """
        if self._leader is None:
            return
        os.kill(self._leader, signal.SIGHUP)
        until = time.monotonic() + _FOLLOW_S
        while any(bundle != _short(digest) for _, bundle in self._board.read()):
            if time.monotonic() > until:
                raise Refusal(
                    "not_ready",
                    "This process serves the new bundle and another one does not yet; see the "
                    "server's log.",
                )
            await asyncio.sleep(0.05)

    def _beat(self) -> None:
        self._board.write(self._row, time.monotonic(), self._bundle)

    async def _go_on_beating(self, at_beat: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            self._beat()
            at_beat()
            if self._leader is not None and os.getppid() != self._leader:
                os.kill(os.getpid(), signal.SIGTERM)  # nobody is left to end this process


async def _tried(reload: Callable[[], Awaitable[bool]]) -> None:
    try:
        if await reload():
            print("vizsla: serving the new bundle", flush=True)
    except VizslaError as error:
        print(f"vizsla: the old bundle stays. {error}", file=sys.stderr, flush=True)


def _short(digest: str) -> int:
    return int(digest[:15], 16)
