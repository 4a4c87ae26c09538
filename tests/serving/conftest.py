"""Real servers in processes of their own, on free ports of 127.0.0.1."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder

_START_S = 60.0
_END_S = 40.0


@dataclass
class ServerProcess:
    """A running server: its address, its process, what it printed, and requests to it."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str = ""
    token: str | None = None

    def wait_until_ready(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            found = re.search(r"^address +(\S+)", self.said(), re.MULTILINE)
            if found:
                self.address = found[1]
                if httpx2.get(self.address + "/ping").status_code == 200:
                    return
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}")
            time.sleep(0.05)
        raise AssertionError("the server did not get ready")

    def said(self) -> str:
        """Everything it printed so far."""
        return self.log.read_text(encoding="utf-8")

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return httpx2.get(self.address + path, timeout=60, **self._with_token(more))

    def post(self, body: bytes, kind: str = "image/jpeg", **more: Any) -> httpx2.Response:
        path = more.pop("path", "/invocations")
        more = self._with_token(more)
        more["headers"] = {"Content-Type": kind, **more.get("headers", {})}
        return httpx2.post(self.address + path, content=body, timeout=60, **more)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_END_S)

    def _with_token(self, more: dict[str, Any]) -> dict[str, Any]:
        if self.token is not None:
            own = {"Authorization": f"Bearer {self.token}"}
            more["headers"] = {**own, **more.get("headers", {})}
        return more


StartServer = Callable[..., ServerProcess]


def _started(log: Path, bundle: Path, *flags: str, token: str | None = None) -> ServerProcess:
    command = [sys.executable, "-m", "vizsla.cli", "serve", str(bundle), "--port", "0", *flags]
    if "--engine" not in flags:
        command += ["--engine", "onnxruntime"]
    if token is not None:
        log.with_suffix(".token").write_text(token)
        command += ["--token-file", str(log.with_suffix(".token"))]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "200"}
        )
    return ServerProcess(process, log, token=token)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """`start_server(bundle, "--flag", …, token=None)` gives a server that is ready; all end with
    the test."""
    started: list[ServerProcess] = []

    def start(bundle: Path, *flags: str, token: str | None = None) -> ServerProcess:
        log = tmp_path / f"server-{len(started)}.log"
        server = _started(log, bundle, *flags, token=token)
        started.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="session")
def server(
    finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One server of `finished_run` with default settings, for tests that leave it as it is."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    running = _started(log, finished_run.bundle)
    try:
        running.wait_until_ready()
        yield running
        code = running.end()
        assert code == 0, f"the server ended with {code}: {running.said()}"
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def elsewhere() -> Iterator[Callable[[type[http.server.BaseHTTPRequestHandler]], str]]:
    """`elsewhere(handler)` gives the address of another server, which answers by `handler`."""
    with contextlib.ExitStack() as stack:

        def answering(handler: type[http.server.BaseHTTPRequestHandler]) -> str:
            running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            thread = threading.Thread(target=running.serve_forever)
            thread.start()
            for end in (running.server_close, thread.join, running.shutdown):  # last one first
                stack.callback(end)
            return f"http://127.0.0.1:{running.server_port}"

        yield answering


@pytest.fixture(scope="session")
def picture(dogs: DrawnDataset) -> bytes:
    """A drawn dog as a file's bytes."""
    return sorted((dogs.folder / "test").rglob("*.jpg"))[0].read_bytes()


@pytest.fixture(scope="session")
def pictures(dogs: DrawnDataset) -> list[bytes]:
    """Six drawn dogs of several breeds."""
    files = sorted((dogs.folder / "test").rglob("*.jpg"))
    return [file.read_bytes() for file in files[:: max(1, len(files) // 6)][:6]]


@pytest.fixture(scope="session")
def as_format() -> Callable[[bytes, str], bytes]:
    """A picture's bytes in another of Pillow's formats."""

    def convert(picture: bytes, name: str) -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(picture)).save(file, name)
        return file.getvalue()

    return convert
