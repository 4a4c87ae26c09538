"""The contract of SageMaker's hosting containers, kept by real servers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from vizsla.bundle.predictor import Predictor, load_bundle
from vizsla.errors import SettingError
from vizsla.exporting.archive import write_archive
from vizsla.runs.folder import RunFolder
from vizsla.serving.memory import free_memory_bytes
from vizsla.serving.metrics import Metrics
from vizsla.serving.model import ServedModel
from vizsla.serving.multi_model import MultiModelStore
from vizsla.serving.refusals import Refusal
from vizsla.serving.sagemaker import container_settings, execution_parameters, is_multi_model
from vizsla.serving.settings import ServeSettings

Start = Callable[..., "Container"]
_PLAIN = ServeSettings(engine="onnxruntime", sagemaker=True)


class Container:
    """`vizsla serve --sagemaker` in a process of its own, as a container runs it."""

    def __init__(self, folder: Path, log: Path, *flags: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        plain = {name: value for name, value in os.environ.items() if "SAGEMAKER" not in name}
        command = [sys.executable, "-m", "vizsla.cli", "serve", str(folder), "--sagemaker"]
        # Tests listen on loopback alone; flags that are spelled out come before the environment.
        command += ["--host", "127.0.0.1", "--engine", "onnxruntime", *flags]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT,
                env={**plain, "SAGEMAKER_BIND_TO_PORT": str(self.port), **environment},
            )  # fmt: skip
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False
        )

    def wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.http.get("/ping").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the container did not get ready: {self.log.read_text()}")

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(35)

    def load(self, name: str, url: object) -> httpx2.Response:
        return self.http.post("/models", json={"model_name": name, "url": str(url)})

    def invoke(self, name: str, picture: bytes, **headers: str) -> httpx2.Response:
        kind = {"Content-Type": "image/jpeg"}
        return self.http.post(f"/models/{name}/invoke", content=picture, headers=kind | headers)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[Container] = []

    def starting(folder: Path, *flags: str, **environment: str) -> Container:
        log = tmp_path_factory.mktemp("container") / "log.txt"
        started.append(Container(folder, log, *flags, **environment))
        started[-1].wait()
        return started[-1]

    yield starting
    for container in started:
        container.http.close()
        if container.process.poll() is None:
            container.process.kill()
            container.process.wait()


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.path)


@pytest.fixture(scope="module")
def models(finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`/opt/ml/models` with three models, each unpacked from its archive as SageMaker does it, a
    broken one, one that is none, and links that lead out."""
    root = tmp_path_factory.mktemp("opt") / "models"
    archive = write_archive(finished_run.path, tmp_path_factory.mktemp("archive") / "model.tar.gz")
    for name in ("a", "b", "c", "broken"):
        with tarfile.open(archive) as content:
            content.extractall(root / name / "model", filter="data")
    network = root / "broken" / "model" / "model.onnx"
    network.write_bytes(network.read_bytes()[:-1] + b"\0")
    (root / "empty" / "model").mkdir(parents=True)
    outside = tmp_path_factory.mktemp("outside") / "model"
    shutil.copytree(root / "a" / "model", outside)
    (root / "link").symlink_to(outside.parent)
    (root / "circle").symlink_to(root / "circle")
    run = root / "run" / "model"  # a run's folder whose bundle is a link that leads out
    run.mkdir(parents=True)
    (run / "run.toml").touch()
    (run / "bundle").symlink_to(outside)
    for name in ("network", "facts", "pipe"):  # what an archive can bring beside files
        shutil.copytree(root / "a", root / name)
    (root / "network" / "model" / "model.onnx").unlink()
    (root / "network" / "model" / "model.onnx").symlink_to(outside / "model.onnx")
    (root / "facts" / "model" / "bundle.json").unlink()
    (root / "facts" / "model" / "bundle.json").symlink_to("/dev/zero")
    (root / "pipe" / "model" / "bundle.json").unlink()
    os.mkfifo(root / "pipe" / "model" / "bundle.json")
    return root


@pytest.fixture(scope="module")
def several(start: Start, models: Path) -> Container:
    """A container of a multi-model endpoint."""
    return start(models, SAGEMAKER_MULTI_MODEL="true")


@pytest.fixture(autouse=True)
def _nothing_loaded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test of the multi-model container leaves it empty."""
    yield
    if "several" in request.fixturenames:
        container: Container = request.getfixturevalue("several")
        for one in container.http.get("/models").json()["models"]:
            assert container.http.delete(f"/models/{one['modelName']}").status_code == 200


def _code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_a_container_answers_ping_and_invocations_without_a_token(
    start: Start, finished_run: RunFolder, predictor: Predictor, picture: bytes
) -> None:
    container = start(finished_run.bundle)
    started = time.monotonic()
    assert container.http.get("/ping").status_code == 200
    assert time.monotonic() - started < 2
    answer = container.http.post(
        "/invocations", content=picture, headers={"Content-Type": "application/x-image"}
    )
    assert answer.json()["predicted_label"] == predictor.predict(picture).predicted_label
    parameters = container.http.get("/execution-parameters").json()
    assert parameters["BatchStrategy"] == "SINGLE_RECORD"
    assert parameters["MaxPayloadInMB"] * parameters["MaxConcurrentTransforms"] <= 100
    too_large = container.http.post(
        "/invocations",
        content=b"x" * (6 * 2**20 + 1),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert _code(too_large) == (413, "body_too_large")
    assert _code(container.load("a", "/opt/ml/models/a/model")) == (404, "not_found")
    assert container.end() == 0


def test_batch_transform_takes_bodies_of_100_mb(
    start: Start, finished_run: RunFolder, picture: bytes
) -> None:
    container = start(finished_run.bundle, SAGEMAKER_BATCH="true")
    kind = {"Content-Type": "application/octet-stream"}
    padded = picture + b"\0" * (7 * 2**20)  # what follows a JPEG's end is no part of it
    assert container.http.post("/invocations", content=padded, headers=kind).status_code == 200
    above = container.http.post("/invocations", content=b"\0" * (100 * 2**20 + 1), headers=kind)
    assert _code(above) == (413, "body_too_large")


def test_what_is_under_way_is_answered_after_sigterm(
    start: Start, finished_run: RunFolder, picture: bytes
) -> None:
    container = start(finished_run.bundle)
    head = (
        f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(picture)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", container.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert b"100 Continue" in connection.recv(1000)  # so the request is under way
        connection.sendall(picture[:100])
        started = time.monotonic()
        container.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert container.process.poll() is None
        connection.sendall(picture[100:])
        answer = connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 200")
    assert container.process.wait(30) == 0
    assert time.monotonic() - started < 30


def test_a_container_without_a_model_says_why(tmp_path: Path) -> None:
    container = Container(tmp_path / "nowhere", tmp_path / "log.txt")
    assert container.process.wait(60) == 2
    assert "nowhere" in container.log.read_text()
    container.http.close()


def test_models_are_loaded_listed_asked_and_unloaded(
    several: Container, models: Path, predictor: Predictor, picture: bytes
) -> None:
    assert several.http.get("/ping").status_code == 200
    assert several.http.get("/models").json() == {"models": []}
    assert _code(several.invoke("a", picture)) == (404, "not_found")
    for name in ("a", "b"):
        assert several.load(name, models / name / "model").status_code == 200
    assert _code(several.load("a", models / "a" / "model")) == (409, "already_loaded")
    entry = {"modelName": "a", "modelUrl": str(models / "a" / "model")}
    assert several.http.get("/models").json()["models"][0] == entry
    assert several.http.get("/models/a").json() == entry
    assert _code(several.http.get("/models/c")) == (404, "not_found")
    answer = several.invoke("a", picture, **{"X-Amzn-SageMaker-Target-Model": "a.tar.gz"})
    assert answer.status_code == 200
    assert answer.json()["model"] == "a"
    expected = predictor.predict(picture)
    assert answer.json()["predicted_label"] == expected.predicted_label
    assert answer.json()["confidence"] == pytest.approx(expected.confidence, abs=1e-5)
    csv = several.invoke("b", picture, Accept="text/csv")
    assert csv.text.startswith(f"{expected.predicted_label},{expected.class_name},")
    assert several.http.delete("/models/a").status_code == 200
    assert _code(several.http.delete("/models/a")) == (404, "not_found")
    assert _code(several.invoke("a", picture)) == (404, "not_found")
    assert several.invoke("b", picture).status_code == 200
    assert several.load("a", models / "a" / "model").status_code == 200


def test_a_token_that_is_spelled_out_is_wanted_here_too(
    start: Start, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("a-token-of-enough-letters")
    flags = ["--token-file", str(tmp_path / "token")]
    container = start(models, *flags, SAGEMAKER_MULTI_MODEL="true")
    assert container.http.get("/ping").status_code == 200
    assert _code(container.load("a", models / "a" / "model")) == (401, "unauthorized")
    assert _code(container.http.get("/models")) == (401, "unauthorized")
    for token, status in (("another-token-altogether", 401), ("a-token-of-enough-letters", 200)):
        headers = {"Authorization": f"Bearer {token}"}
        assert container.http.get("/models", headers=headers).status_code == status


def test_a_list_of_models_comes_in_pages(several: Container, models: Path) -> None:
    names = [f"m{number:03}" for number in range(25)]
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda name: several.load(name, models / "a" / "model"), names))
    assert {one.status_code for one in codes} == {200}
    first = several.http.get("/models").json()
    assert len(first["models"]) == 20
    token = {"next_page_token": first["nextPageToken"]}
    second = several.http.get("/models", params=token).json()
    assert "nextPageToken" not in second
    assert [one["modelName"] for one in first["models"] + second["models"]] == names


def test_only_one_of_two_loads_at_once_wins(several: Container, models: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: several.load("a", models / "a" / "model"), range(6)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 5]


def test_a_model_is_unloaded_without_a_lost_answer(
    several: Container, models: Path, picture: bytes
) -> None:
    several.load("a", models / "a" / "model")
    ended = threading.Event()
    seen: list[httpx2.Response] = []

    def ask() -> None:
        while not ended.is_set():
            seen.append(several.invoke("a", picture))

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        for _ in range(5):
            time.sleep(0.1)
            assert several.http.delete("/models/a").status_code == 200
            assert several.load("a", models / "a" / "model").status_code == 200
        ended.set()
    assert {answer.status_code for answer in seen} <= {200, 404}
    assert sum(answer.status_code == 200 for answer in seen) > 10


@pytest.mark.parametrize(
    "url",
    [
        "/etc", "/", "", "a/model", ".", "link/model", "../outside/model", "circle", "nowhere",
        "a\0b", "run/model", "~", "file:///opt/ml/models/a", "a/../../../etc", "/proc/self/root",
        "/proc/self/cwd", "network/model", "facts/model", "pipe/model",
    ],
)  # fmt: skip
def test_only_folders_of_the_root_are_loaded(several: Container, models: Path, url: str) -> None:
    for asked in {url, f"{models}/{url}"} - {f"{models}/a/model"}:
        answer = several.load("x", asked)
        assert answer.status_code in (400, 422), asked
        if url in ("network/model", "facts/model", "pipe/model"):
            assert answer.status_code == 400
        if answer.status_code == 422:  # below the root, and nothing there to be served
            assert (models / url).resolve().is_relative_to(models.resolve())
    assert several.http.get("/models").json()["models"] == []


@pytest.mark.parametrize(("name", "sentence"), [("broken", "damaged"), ("empty", "not a bundle")])
def test_a_model_that_is_no_whole_bundle_is_refused(
    several: Container, models: Path, name: str, sentence: str
) -> None:
    answer = several.load(name, models / name / "model")
    assert answer.status_code in (400, 422)
    assert sentence in answer.json()["error"]["message"] or "is no bundle" in answer.text
    assert several.http.get("/ping").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b'{"model_name": "a"}', b'{"model_name": 3, "url": "/"}',
        b'{"model_name": "", "url": "/x"}', b'{"model_name": "a/b", "url": "/x"}',
        b'{"model_name": "a\\nb", "url": "/x"}', b"[" * 9000, b"\xff",
    ],
)  # fmt: skip
def test_an_order_that_makes_no_sense_is_told(several: Container, body: bytes) -> None:
    answer = several.http.post("/models", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].endswith(".")


def test_an_order_that_does_not_come_is_not_waited_for(start: Start, models: Path) -> None:
    flags = ["--read-timeout-s", "0.5"]
    container = start(models, *flags, SAGEMAKER_MULTI_MODEL="true")
    head = b"POST /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", container.port), timeout=10) as connection:
        connection.sendall(head)
        answer = b""
        while part := connection.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answer


def test_other_paths_and_methods_have_json_errors(several: Container) -> None:
    assert _code(several.http.post("/invocations", content=b"x")) == (404, "not_found")
    assert _code(several.http.put("/models")) == (405, "method_not_allowed")
    assert _code(several.http.post("/models", content=b"x" * 20_000)) == (413, "body_too_large")


async def _load_order(store: MultiModelStore, root: Path, names: str) -> list[str]:
    told = []
    try:
        for name in names:
            try:
                await store.load(name, str(root / name / "model"))
                told.append("loaded")
            except Refusal as refusal:
                told.append(f"{refusal.status} {refusal.code}")
    finally:
        await store.close()
    return told


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"most_models": 2}, ["loaded", "loaded", "507 no_memory"]),
        ({"free_bytes": lambda: 10 << 20}, ["507 no_memory"] * 3),
        ({"free_bytes": lambda: None}, ["loaded"] * 3),
        ({}, ["loaded"] * 3),
    ],
)
def test_no_more_is_loaded_than_fits(
    models: Path, limits: dict[str, Any], expected: list[str]
) -> None:

    async def loaded() -> list[str]:
        store = MultiModelStore(_PLAIN, Metrics(), models, **limits)
        return await _load_order(store, models, "abc")

    assert asyncio.run(loaded()) == expected


def test_a_model_for_which_there_are_no_threads_is_no_memory(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> ServedModel:
        raise RuntimeError("can't start new thread")

    async def loaded() -> list[str]:
        return await _load_order(MultiModelStore(_PLAIN, Metrics(), models), models, "a")

    monkeypatch.setattr(ServedModel, "load", load)
    assert asyncio.run(loaded()) == ["507 no_memory"]


def test_free_memory_is_what_the_system_tells() -> None:
    free = free_memory_bytes()
    assert free is not None
    assert 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"port": 8080, "body_mb": 6, "host": "0.0.0.0", "workers": 1, "deadline_s": 55}),
        ({"SAGEMAKER_BIND_TO_PORT": "9000"}, {"port": 9000}),
        ({"SAGEMAKER_BATCH": "true"}, {"body_mb": 100, "deadline_s": 570}),
        ({"SAGEMAKER_BATCH": "false"}, {"body_mb": 6}),
        ({"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "20"}, {"body_mb": 20}),
        ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}, {"body_mb": 1024}),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "3"}, {"workers": 3}),
        (
            {"SAGEMAKER_MODEL_SERVER_WORKERS": "3", "SAGEMAKER_MULTI_MODEL": "true"},
            {"workers": 1},
        ),
    ],
)
def test_environment_becomes_settings(environ: dict[str, str], expected: dict[str, object]) -> None:
    told = ServeSettings(**container_settings(environ))
    assert {name: getattr(told, name) for name in expected} == expected
    assert told.sagemaker
    assert told.token() is None
    assert told.drain_s < 30


def test_a_batch_transform_is_never_told_of_no_limit() -> None:
    small = _PLAIN.model_copy(update={"body_mb": 0.5})
    told = asyncio.run(execution_parameters(small, 4)(Request({"type": "http"})))
    assert json.loads(bytes(told.body))["MaxPayloadInMB"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "http"),
        ("SAGEMAKER_BIND_TO_PORT", "0"),
        ("SAGEMAKER_BIND_TO_PORT", "70000"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "-1"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "6.5"),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "0000000001025"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "0"),
        ("SAGEMAKER_BATCH", "maybe"),
        ("SAGEMAKER_MULTI_MODEL", "2"),
    ],
)
def test_a_variable_that_cannot_be_meant_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"{name} is '{value}', but must be"):
        container_settings({name: value})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_BATCH", "SAGEMAKER_MAX_PAYLOAD_IN_MB",
                "SAGEMAKER_MODEL_SERVER_WORKERS", "SAGEMAKER_MULTI_MODEL",
            ]
        ),
        st.text(max_size=8) | st.integers(-5, 100_000).map(str) | st.just("true"),
    )
)  # fmt: skip
def test_any_environment_gives_valid_settings_or_a_sentence(environ: dict[str, str]) -> None:
    try:
        told = ServeSettings(**container_settings(environ))
    except SettingError:
        return
    assert told.sagemaker
    assert isinstance(is_multi_model(environ), bool)
