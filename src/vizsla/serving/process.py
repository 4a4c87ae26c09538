"""One process that answers: uvicorn around the application, on a socket that is open already.

    python -m vizsla.serving.process SOCKET_FD ROW SCRATCH_FOLDER LEADER_PID BUNDLE SETTINGS_JSON

is how the supervisor starts one of several.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from vizsla.errors import VizslaError
from vizsla.serving.app import Server, build_app
from vizsla.serving.description import describe
from vizsla.serving.fleet import Board, Fleet
from vizsla.serving.protocol import patient_protocol
from vizsla.serving.settings import ServeSettings

_KEEP_ALIVE_S = 75
_SWITCH_S = 0.0005
BOARD_FILE = "board"


def answer_with_bundle(
    listening: socket.socket,
    folder: Path,
    settings: ServeSettings,
    fleet: Fleet,
    announce: Callable[[dict[str, Any]], None],
) -> None:
    """Serve the bundle in `folder` as `answer_on` does. `announce` is told what GET /v1/model says.
    Raises what loading the bundle raises."""
    server = Server(folder, settings, fleet)

    def told() -> None:
        announce(describe(server.holder.current, settings))

    answer_on(listening, build_app(server), settings, told)


def answer_on(
    listening: socket.socket,
    app: ASGIApp,
    settings: ServeSettings,
    announce: Callable[[], None],
) -> None:
    """Serve `app` until SIGTERM or SIGINT, then finish what is under way; `announce` is called
    once it answers."""
    # What is there now stays: the collector of garbage need not look at it again and again.
    gc.collect()
    gc.freeze()
    # A thread that comes back from native code asks for the interpreter's lock, and by default gets
    # it only after 5 ms from one that is in Python all the time, while its core lies idle.
    sys.setswitchinterval(_SWITCH_S)
    # Every problem of a client's making is answered and counted; a log of them helps nobody.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=patient_protocol(settings.read_timeout_s),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
    )
    _Uvicorn(config, announce).run([listening])


class _Uvicorn(uvicorn.Server):
    """Uvicorn that says when it answers, and that ends well on SIGTERM: it has done its work."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._announce()


def note_of(scratch: Path, row: int) -> Path:
    """Where the process of a row says that it answers, and what it serves."""
    return scratch / f"serving-{row}.json"


def main(arguments: list[str]) -> int:
    """One of several processes, as the supervisor starts it."""
    descriptor, row, scratch, leader, folder, settings_json = arguments
    settings = ServeSettings(**json.loads(settings_json))
    fleet = Fleet(
        Board.of_file(Path(scratch) / BOARD_FILE, settings.workers), int(row), int(leader)
    )

    def announce(facts: dict[str, Any]) -> None:
        note = note_of(Path(scratch), int(row))
        note.with_suffix(".part").write_text(json.dumps(facts), encoding="utf-8")
        note.with_suffix(".part").rename(note)

    try:
        listening = socket.socket(fileno=int(descriptor))
        answer_with_bundle(listening, Path(folder), settings, fleet, announce)
    except VizslaError as error:
        print(f"vizsla: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
