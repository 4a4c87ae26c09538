"""A server as a process: started, waited for, weighed, and ended with all of its helpers.

Memory is of the whole tree of processes, in 10^6 bytes: `rss` sums what is resident in each, so
that pages which several share count several times; `pss` shares those out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

from benchmarks.child_process import REPOSITORY

_POLL_S = 0.005
_END_S = 30.0


class ServerFailed(RuntimeError):  # noqa: N818
    """A server that ended or never answered; its last words are the message."""


class Server:
    """A running server. `start_s` is from its process's start to the first 200 at /ping."""

    def __init__(self, process: psutil.Process, port: int, start_s: float) -> None:
        self.port, self.start_s = port, start_s
        self._process = process

    def memory_mb(self) -> dict[str, float]:
        """`rss`, `pss` where the system tells it, and the number of `processes`."""
        rss = pss = 0.0
        tree = self._tree()
        for process in tree:
            with contextlib.suppress(psutil.Error):
                rss += process.memory_info().rss / 1e6
                pss += getattr(process.memory_full_info(), "pss", 0) / 1e6
        return {"rss": rss, "pss": pss, "processes": len(tree)}

    def rss_mb(self) -> float:
        """The sum alone: it costs the server nothing, while `pss` walks through its pages."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss / 1e6
        return total

    def cpu_seconds(self) -> float:
        """Processor time that its processes have taken so far."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                total += used.user + used.system
        return total

    def _tree(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


class MemoryWatch:
    """Reads a server's resident memory every second until it is left: `samples` of (s, MB)."""

    def __init__(self, server: Server, interval_s: float = 1.0) -> None:
        self.samples: list[tuple[float, float]] = []
        self._server, self._interval_s = server, interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        began = time.monotonic()
        while not self._done.wait(self._interval_s):
            self.samples.append((time.monotonic() - began, self._server.rss_mb()))


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str] | None = None,
    ready_path: str = "/ping",
    patience_s: float = 120.0,
) -> Iterator[Server]:
    """The server that `command` starts on `port`, once it is ready; it is ended on leaving.

    Raises `ServerFailed` where it ends or does not get ready.
    """
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
        process = psutil.Process(child.pid)
        try:
            while not _answers(port, ready_path):
                waited = time.perf_counter() - started
                if child.poll() is not None or waited > patience_s:
                    output.seek(0)
                    why = "ended" if child.poll() is not None else f"not ready in {patience_s:g} s"
                    raise ServerFailed(f"{command[0]}: {why}\n{output.read()[-3000:]}")
                time.sleep(_POLL_S)
            yield Server(process, port, time.perf_counter() - started)
        finally:
            _end(child, process)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def get(port: int, path: str, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """Status and body of a GET; status 0 where nobody listens or answers."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
            connection.sendall(request)
            answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body
    except (OSError, IndexError, ValueError):
        return 0, b""


def _answers(port: int, path: str) -> bool:
    return get(port, path)[0] == 200


def _end(child: subprocess.Popen[Any], process: psutil.Process) -> None:
    """Ask the server to end, then see to it that none of its helpers is left."""
    with contextlib.suppress(psutil.Error):
        helpers = process.children(recursive=True)
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_S)
        _, left = psutil.wait_procs([process, *helpers], timeout=3)
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
    if child.poll() is None:
        child.kill()
    child.wait()
