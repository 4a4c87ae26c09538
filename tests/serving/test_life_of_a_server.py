"""Start, readiness, new bundles, dead workers, full queues, departed clients, and a calm end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from vizsla import load_bundle
from vizsla.bundle.format import FACTS_FILE, describe_files
from vizsla.runs.files import write_json
from vizsla.runs.folder import RunFolder

TOKEN = "a-token-of-many-letters"


def _until(true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


@pytest.fixture
def bundle(finished_run: RunFolder, tmp_path: Path) -> Path:
    """A copy of a bundle that a test may change."""
    return Path(shutil.copytree(finished_run.bundle, tmp_path / "dogs"))


def _rename_classes(bundle: Path, name: str) -> None:
    """Make of a bundle another one that answers alike, in place by rename."""
    facts = load_bundle(bundle).facts
    classes = tuple(replace(label, name=name) for label in facts.classes)
    scratch = bundle.with_name("new-one")
    shutil.copytree(bundle, scratch)
    changed = replace(facts, classes=classes, files=describe_files(scratch))
    write_json(scratch / FACTS_FILE, changed.to_dict())
    old = bundle.with_name("old-one")
    shutil.rmtree(old, ignore_errors=True)
    bundle.rename(old)
    scratch.rename(bundle)


class Load:
    """Clients that ask without a pause until told to stop; it keeps what went wrong."""

    def __init__(self, server: Any, picture: bytes, clients: int = 4) -> None:
        self.answers: list[str] = []
        self.troubles: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(server, picture)) for _ in range(clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, server: Any, picture: bytes) -> None:
        headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {server.token}"}
        with httpx2.Client(base_url=server.address, headers=headers, timeout=30) as client:
            while not self._stop.is_set():
                try:
                    response = client.post("/invocations", content=picture)
                except httpx2.HTTPError as error:
                    self.troubles.append(repr(error))
                    continue
                if response.status_code != 200:
                    self.troubles.append(response.text)
                else:
                    self.answers.append(response.json()["class_name"])


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("way", ["request", "signal"])
def test_new_bundle_is_swapped_in_without_a_lost_request(
    start_server: Any, bundle: Path, picture: bytes, workers: int, way: str
) -> None:
    server = start_server(bundle, "--workers", str(workers), token=TOKEN)
    with Load(server, picture) as load:
        _until(lambda: len(load.answers) > 20)
        _rename_classes(bundle, "renamed")
        if way == "request":
            answer = httpx2.post(
                server.address + "/v1/model",
                headers={"Authorization": f"Bearer {TOKEN}"},
                timeout=60,
            )
            assert answer.json()["changed"] is True
            # Every process has it once the request is answered.
            assert {server.post(picture).json()["class_name"] for _ in range(20)} == {"renamed"}
        else:
            os.kill(server.process.pid, signal.SIGHUP)
        _until(lambda: load.answers[-1] == "renamed")
        count = len(load.answers)
        _until(lambda: len(load.answers) > count + 40)
        if workers == 1:
            assert set(load.answers[count:]) == {"renamed"}
    assert load.troubles == []
    assert load.answers[0] != "renamed"
    assert server.end() == 0


def test_damaged_new_bundle_is_refused_and_the_old_one_stays(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, token=TOKEN)
    _rename_classes(bundle, "renamed")
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")
    response = server.post(b"", path="/v1/model")
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "bundle_refused"
    assert "model.onnx" in response.json()["error"]["message"]
    assert server.post(picture).json()["class_name"] != "renamed"
    os.kill(server.process.pid, signal.SIGHUP)
    _until(lambda: "the old bundle stays" in server.said())
    assert server.get("/ping").status_code == 200


def test_same_bundle_again_changes_nothing(start_server: Any, bundle: Path) -> None:
    server = start_server(bundle, token=TOKEN)
    assert server.post(b"", path="/v1/model").json()["changed"] is False


def test_dead_worker_makes_it_unready_until_it_is_replaced(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, "--workers", "2")
    children = _children(server.process.pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    _until(lambda: _ping(server) == 503, 10)
    _until(lambda: _ping(server) == 200)
    assert server.post(picture).status_code == 200
    assert "another one starts" in server.said()
    fresh = _children(server.process.pid)
    assert len(fresh) == 2
    assert children[0] not in fresh
    assert server.end() == 0
    assert not any(_lives(child) for child in fresh)


def test_workers_end_with_a_supervisor_that_is_killed(start_server: Any, bundle: Path) -> None:
    server = start_server(bundle, "--workers", "2")
    children = _children(server.process.pid)
    assert all(_lives(child) for child in children)
    server.process.kill()
    server.process.wait()
    _until(lambda: not any(_lives(child) for child in children))
    assert not any(_lives(child) for child in children)


def test_figures_of_all_workers_are_added_up(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, "--workers", "2")
    for _ in range(12):
        assert server.post(picture).status_code == 200
    line = 'vizsla_requests_total{route="/invocations",status="200"} 12.0'
    assert line in server.get("/metrics").text
    _until(lambda: "vizsla_ready_processes 2.0" in server.get("/metrics").text)


def test_sigterm_gives_every_answer_that_is_under_way(
    start_server: Any, bundle: Path, pictures: list[bytes]
) -> None:
    server = start_server(bundle)
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(server.post, pictures[at % len(pictures)]) for at in range(16)]
        _until(lambda: any(one.done() for one in asked))
        server.process.send_signal(signal.SIGTERM)
        codes = [one.exception() or one.result().status_code for one in asked]
    answered = [code for code in codes if code == 200]
    # One that came after the signal finds nobody; whoever was let in is answered.
    assert all(code == 200 or isinstance(code, httpx2.TransportError) for code in codes)
    assert answered
    assert server.process.wait(30) == 0


def test_full_queue_answers_503_and_says_when_to_come_again(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, "--queue", "2")
    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda _: server.post(picture), range(72)))
    codes = {response.status_code for response in responses}
    assert codes == {200, 503}
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "overloaded"
    assert server.post(picture).status_code == 200


def test_deadline_of_a_request(server: Any, picture: bytes) -> None:
    late = server.post(picture * 1, headers={"X-Deadline-Ms": "1"})
    if late.status_code != 200:  # a millisecond may be enough for so small a network
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    for bad in ("0", "-5", "soon", "1.5"):
        refused = server.post(picture, headers={"X-Deadline-Ms": bad})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_request")


def test_pictures_of_clients_that_left_are_not_answered(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle)
    place = urlsplit(server.address)
    request = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    os.kill(server.process.pid, signal.SIGSTOP)
    for _ in range(30):
        with socket.create_connection((place.hostname, place.port), timeout=10) as client:
            client.sendall(request)
    os.kill(server.process.pid, signal.SIGCONT)
    assert server.post(picture).status_code == 200
    _until(lambda: "vizsla_queue_pictures 0.0" in server.get("/metrics").text)
    assert server.end() == 0


def test_token_is_wanted_for_all_but_health_and_page(
    start_server: Any, bundle: Path, picture: bytes
) -> None:
    server = start_server(bundle, token=TOKEN)
    for path in ("/ping", "/", "/page.css", "/page.js"):
        assert httpx2.get(server.address + path).status_code == 200
    for path in ("/v1/model", "/metrics", "/openapi.json"):
        assert httpx2.get(server.address + path).status_code == 401
        assert server.get(path).status_code == 200
    assert server.post(picture).status_code == 200
    for wrong in ("", "Bearer", "Bearer x", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer é"):
        headers = {"Authorization": wrong.encode("latin-1"), "Content-Type": "image/jpeg"}
        response = httpx2.post(server.address + "/invocations", content=picture, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"


def test_without_a_token_no_bundle_is_taken_by_request(server: Any) -> None:
    response = server.post(b"", path="/v1/model")
    assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")


def test_no_path_of_a_request_reaches_the_disk(server: Any) -> None:
    for path in ("/../../etc/passwd", "/page.css/../app.py", "/%2e%2e/%2e%2e/etc/passwd", "//"):
        response = server.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"
    refused = server.get("/invocations")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def _refused(*arguments: str) -> str:
    """What the command says where it ends with exit code 2."""
    done = subprocess.run(
        [sys.executable, "-m", "vizsla.cli", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def test_bad_usage_is_one_sentence(bundle: Path, tmp_path: Path) -> None:
    at = str(bundle)
    assert "no token" in _refused(at, "--host", "0.0.0.0", "--port", "0")
    short = tmp_path / "token"
    short.write_text("short")
    assert "at least 16" in _refused(at, "--token-file", str(short), "--port", "0")
    assert "cannot be read" in _refused(at, "--token-file", str(tmp_path / "none"), "--port", "0")
    assert "There is no" in _refused(str(tmp_path / "nothing"), "--port", "0")
    assert "is not a bundle" in _refused(str(tmp_path), "--port", "0")
    assert "allow_url" in _refused(at, "--allow-url", "https://a.example", "--port", "0")
    assert "workers is 0" in _refused(at, "--workers", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen" in _refused(at, "--port", str(taken.getsockname()[1]))


@pytest.mark.parametrize(
    ("name", "workers"),
    [("model.onnx", "1"), ("card.md", "1"), ("code/inference.py", "1"), ("model.onnx", "2")],
)
def test_damaged_bundle_is_refused_by_its_files_name(bundle: Path, name: str, workers: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b" ")
    assert name in _refused(str(bundle), "--port", "0", "--workers", workers)


def test_listens_elsewhere_with_a_token_or_when_it_is_spelled_out(
    start_server: Any, bundle: Path
) -> None:
    assert start_server(bundle, "--host", "0.0.0.0", token=TOKEN).get("/ping").status_code == 200
    assert start_server(bundle, "--host", "0.0.0.0", "--no-auth").get("/ping").status_code == 200


def test_ctrl_c_ends_it_well(start_server: Any, bundle: Path) -> None:
    server = start_server(bundle)
    assert server.end(signal.SIGINT) == 0
    assert "Traceback" not in server.said()


def test_facts_are_json_for_whoever_scripts_it(server: Any) -> None:
    assert json.loads(server.get("/ping").text) == {"status": "ready"}


def _ping(server: Any) -> int:
    try:
        return int(server.get("/ping").status_code)
    except httpx2.TransportError:
        return 0


def _children(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [int(one) for one in file.read().split()]


def _lives(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
