"""That a new bundle costs no request and leaves nothing of the old one, that SIGHUP ends nothing,
and how a server ends that has no time left."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from vizsla import load_bundle
from vizsla.bundle.format import FACTS_FILE
from vizsla.errors import SettingError
from vizsla.runs.files import write_json
from vizsla.runs.folder import RunFolder
from vizsla.serving import model
from vizsla.serving.app import Server, build_app
from vizsla.serving.fleet import Board, Fleet
from vizsla.serving.metrics import Metrics
from vizsla.serving.model import Holder
from vizsla.serving.process import BOARD_FILE, note_of
from vizsla.serving.settings import ServeSettings
from vizsla.serving.supervisor import Supervisor

TOKEN = "a-token-of-many-letters"


@pytest.fixture
def bundle(finished_run: RunFolder, tmp_path: Path) -> Path:
    """A copy of a bundle that a test may change."""
    return Path(shutil.copytree(finished_run.bundle, tmp_path / "dogs"))


def _change(bundle: Path, created: str = "later") -> None:
    """Make it another bundle that answers alike."""
    write_json(bundle / FACTS_FILE, replace(load_bundle(bundle).facts, created=created).to_dict())


def _until(true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def _begun(server: Any, picture: bytes) -> socket.socket:
    """A request whose last byte is not sent yet."""
    place = urlsplit(server.address)
    client = socket.create_connection((place.hostname, place.port), timeout=30)
    client.sendall(
        b"POST /invocations HTTP/1.1\r\nContent-Type: image/jpeg\r\nAuthorization: Bearer %s\r\n"
        b"Content-Length: %d\r\n\r\n" % (TOKEN.encode(), len(picture)) + picture[:-1]
    )
    return client


def test_request_that_is_still_coming_is_answered_after_a_swap(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, token=TOKEN)
    with _begun(server, picture) as client:
        time.sleep(0.2)
        _change(bundle)
        assert server.post(b"", path="/v1/model").json()["changed"] is True
        time.sleep(0.5)  # the old one, which has nothing to do, is closed by now
        client.sendall(picture[-1:])
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


def _threads(server: Any) -> int:
    with open(f"/proc/{server.process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Threads:"))


def test_replaced_bundle_is_let_go(bundle: Path) -> None:
    settings = ServeSettings(engine="onnxruntime")

    async def swapped() -> None:
        assert await holder.reload()
        await asyncio.gather(*holder._closing)
        await holder.close()

    holder = Holder(bundle, settings, Metrics())
    gone = weakref.ref(holder.current)
    gc.collect()
    gc.freeze()  # as a server does, whose first model is then out of the collector's sight
    try:
        _change(bundle)
        asyncio.run(swapped())
        assert gone() is None
    finally:
        gc.unfreeze()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no threads of its own")
def test_threads_of_a_replaced_network_end(start_server: Any, bundle: Path, picture: bytes) -> None:
    server = start_server(bundle, token=TOKEN)

    def swap(name: str) -> None:
        _change(bundle, name)
        assert server.post(b"", path="/v1/model").json()["changed"] is True
        assert server.post(picture).status_code == 200

    before = _threads(server)
    for name in ("one", "two", "three", "four"):
        swap(name)
    # The pool that loads bundles may have a few more by now, each network has six.
    _until(lambda: _threads(server) <= before + 4, 10)


def test_server_is_announced_once_each_process_has_said_that_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def announce(facts: dict[str, Any]) -> None:
        told.append(facts)
        supervisor._stop()

    with socket.socket() as listening:
        supervisor = Supervisor(listening, tmp_path, ServeSettings(workers=2))
        monkeypatch.setattr(supervisor, "_look_after", lambda *_, **__: None)
        board = Board.of_file(tmp_path / BOARD_FILE, 2)
        for row in range(2):
            board.write(row, time.monotonic(), 1)  # at work, and about to say so
        writing = [
            threading.Timer(0.4, note_of(tmp_path, row).write_text, [json.dumps({"row": row})])
            for row in range(2)
        ]
        for one in writing:
            one.start()
        supervisor._watch(tmp_path, announce)
        for one in writing:
            one.join()
    assert told == [{"row": 0}]


def test_hangup_ends_no_process_that_is_only_starting(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, "--workers", "2", token=TOKEN)
    with open(f"/proc/{server.process.pid}/task/{server.process.pid}/children") as file:
        victim = int(file.read().split()[0])
    os.kill(victim, signal.SIGKILL)
    _until(lambda: "another one starts" in server.said())
    _change(bundle)
    for _ in range(40):
        os.kill(server.process.pid, signal.SIGHUP)
        time.sleep(0.05)
    _until(lambda: server.get("/ping").status_code == 200)
    assert server.said().count("another one starts") == 1
    digests = {server.get("/v1/model").json()["sha256"] for _ in range(10)}
    assert len(digests) == 1
    assert server.end() == 0


def test_hangup_while_it_starts_does_not_end_it(start_server: Any, bundle: Path) -> None:
    def hang_up() -> None:
        while not stop.is_set():
            for child in _children(os.getpid()):
                if "serve" in _command(child) and _ignores_hangup(child):
                    os.kill(child, signal.SIGHUP)
                    hung_up.set()
            time.sleep(0.01)

    stop, hung_up = threading.Event(), threading.Event()
    thread = threading.Thread(target=hang_up)
    thread.start()
    try:
        server = start_server(bundle)
    finally:
        stop.set()
        thread.join()
    assert hung_up.is_set()
    assert server.end() == 0


def _children(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [int(one) for one in file.read().split()]


def _command(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")


def _ignores_hangup(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.split("SigIgn:")[1].split()[0], 16) & 1)


def test_request_past_the_last_moment_is_told_in_json(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, "--drain-s", "1", "--read-timeout-s", "30", token=TOKEN)
    with _begun(server, picture) as client:
        time.sleep(0.2)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        answer = b""
        while part := client.recv(65_536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"shutting_down"' in answer
    assert server.process.wait(10) == 0
    assert time.monotonic() - started < 8


def test_bundle_that_the_engine_does_not_answer_alike_for_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise SettingError("The engine openvino does not answer as ONNX Runtime does.")

    token = bundle.with_name("token")
    token.write_text(TOKEN)
    server = Server(
        bundle, ServeSettings(token_file=token, engine="onnxruntime"), Fleet(Board.alone())
    )
    _change(bundle)
    monkeypatch.setattr(model, "choose_engine", refuse)
    client = TestClient(build_app(server))
    response = client.post("/v1/model", headers={"Authorization": f"Bearer {TOKEN}"})
    asyncio.run(server.holder.close())
    assert (response.status_code, response.json()["error"]["code"]) == (422, "bundle_refused")
