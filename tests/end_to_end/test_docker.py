"""The server image's own lines, replayed: no image can be built where tests run.

Each RUN of the Dockerfile is run, each COPY is copied, with the image's paths moved into a scratch
folder; then ENTRYPOINT and CMD start the server that the image would start.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from vizsla.bundle.predictor import load_bundle
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-enough-letters"


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in lines]


def _arguments(name: str) -> list[str]:
    return [arguments for instruction, arguments in _instructions() if instruction == name]


def _pins(path: Path) -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


@dataclass
class Image:
    """What the Dockerfile makes, in a scratch folder in place of `/`."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def moved(self, text: str) -> str:
        """The text with the image's own folders in the scratch folder."""
        return re.sub(r"(?<![\w.])/(opt/vizsla|src)(?![\w])", rf"{self.root}/\1", text)

    @property
    def python(self) -> Path:
        return self.root / "opt" / "vizsla" / "bin" / "python"

    def run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False,
            env=self.environment | environment, cwd=self.root,
        )  # fmt: skip

    def start(self, log: Path, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """The image's entry point with these arguments."""
        (entry,) = _arguments("ENTRYPOINT")
        command = [*map(self.moved, json.loads(entry)), *arguments]
        with log.open("wb") as output:
            return subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=self.root,
                env=self.environment | environment,
            )  # fmt: skip


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    probe = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "hatchling"],
        capture_output=True, text=True, check=False, cwd=tmp_path_factory.mktemp("probe"),
    )  # fmt: skip
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"pip cannot install here: {last}")
    made = Image(tmp_path_factory.mktemp("image"))
    # `python` is this interpreter, as it is the base image's in the image.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    replayed = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    folder = made.root
    for name, arguments in _instructions():
        if name == "FROM":
            folder = made.root
        elif name == "WORKDIR":
            folder = Path(made.moved(arguments))
            folder.mkdir(parents=True)
        elif name == "RUN":
            subprocess.run(
                ["sh", "-c", made.moved(arguments)], check=True, cwd=folder, timeout=400,
                env=replayed | {"PATH": path},
            )  # fmt: skip
        elif name == "COPY" and "--from=" not in arguments:
            *sources, target = arguments.split()
            for source in sources:
                _copy(ROOT / source, folder / made.moved(target), target.endswith("/"))
    for arguments in _arguments("ENV"):
        for pair in shlex.split(made.moved(arguments)):
            name, _, value = pair.partition("=")
            made.environment[name] = value.replace("$PATH", "/usr/bin:/bin")
    return made


def _copy(source: Path, target: Path, into: bool) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
        return
    target = target / source.name if into else target
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def picture(dogs: DrawnDataset) -> bytes:
    return min((dogs.folder / "test").rglob("*.jpg")).read_bytes()


def _ready(process: subprocess.Popen[bytes], port: int, log: Path) -> httpx2.Client:
    http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            if http.get("/ping").status_code == 200:
                return http
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"the server did not get ready: {log.read_text()}")


def test_versions_are_those_of_the_constraints() -> None:
    pins, constraints = _pins(ROOT / "docker" / "requirements.txt"), _pins(ROOT / "constraints.txt")
    assert pins
    assert {name: constraints.get(name) for name in pins} == pins
    assert not {"torch", "torchvision", "timm", "pandas", "optuna"} & set(pins)


def test_image_is_not_root_and_sees_only_what_it_is_built_from() -> None:
    (user,) = _arguments("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert "com.amazonaws.sagemaker.capabilities.multi-models=true" in _arguments("LABEL")
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in ignored
    sources = [
        source
        for arguments in _arguments("COPY")
        if "--from=" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert sources
    assert all(f"!{source.split('/')[0]}" in ignored for source in sources)


def test_image_holds_the_requirements_and_no_torch(image: Image) -> None:
    listed = image.run([str(image.python), "-m", "pip", "list", "--format", "json"])
    assert listed.returncode == 0, listed.stderr
    there = {
        one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listed.stdout)
    }
    for tool in ("pip", "setuptools", "vizsla"):
        there.pop(tool, None)
    assert there == _pins(ROOT / "docker" / "requirements.txt")
    # Nothing that is installed lacks what it needs, but for vizsla, whose trainer stays out.
    unmet = image.run([str(image.python), "-m", "pip", "check"]).stdout.splitlines()
    assert [line for line in unmet if not line.startswith("vizsla ")] == []
    for module in ("torch", "timm", "pandas", "optuna"):
        tried = image.run([str(image.python), "-c", f"import {module}"])
        assert "ModuleNotFoundError" in tried.stderr


def test_command_of_the_image_answers_who_brings_the_token(
    image: Image,
    finished_run: RunFolder,
    picture: bytes,
    port: int,
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (command,) = _arguments("CMD")
    places = {
        "/model": str(finished_run.bundle),
        "/run/secrets/token": str(tmp_path / "token"),
        "0.0.0.0": "127.0.0.1",
    }
    arguments = [places.get(one, one) for one in json.loads(command)]
    assert set(places.values()) <= set(arguments)
    started.append(image.start(tmp_path / "log", *arguments, "--port", str(port)))
    http = _ready(started[0], port, tmp_path / "log")
    kind = {"Content-Type": "image/jpeg"}
    assert http.post("/invocations", content=picture, headers=kind).status_code == 401
    answer = http.post(
        "/invocations", content=picture, headers=kind | {"Authorization": f"Bearer {TOKEN}"}
    ).json()
    expected = load_bundle(finished_run.path).predict(picture)
    assert answer["predicted_label"] == expected.predicted_label
    assert answer["confidence"] == pytest.approx(expected.confidence, abs=1e-5)

    (health,) = _arguments("HEALTHCHECK")
    check = json.loads(health.partition("CMD")[2])
    assert image.run(check, SAGEMAKER_BIND_TO_PORT=str(port)).returncode == 0
    proxy = "http://127.0.0.1:9"  # Docker hands on a proxy of the machine's to every container
    asked = image.run(check, SAGEMAKER_BIND_TO_PORT=str(port), http_proxy=proxy, HTTP_PROXY=proxy)
    assert asked.returncode == 0
    started[0].send_signal(signal.SIGTERM)
    assert started[0].wait(30) == 0
    assert image.run(check, SAGEMAKER_BIND_TO_PORT=str(port)).returncode != 0
    http.close()


def test_without_a_token_the_image_says_what_to_do(
    image: Image, finished_run: RunFolder, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    missing = str(tmp_path / "nowhere")
    flags = ["--host", "127.0.0.1", "--token-file", missing, "--port", "0"]
    started.append(image.start(tmp_path / "log", str(finished_run.bundle), *flags))
    assert started[0].wait(60) == 2
    assert f"The token file {missing} cannot be read" in (tmp_path / "log").read_text()


def test_serve_is_sagemakers_container(
    image: Image,
    finished_run: RunFolder,
    picture: bytes,
    port: int,
    tmp_path: Path,
    started: list[subprocess.Popen[bytes]],
) -> None:
    # SageMaker gives `serve` alone; place and address are spelled out to stay in the scratch.
    arguments = ["serve", str(finished_run.bundle), "--host", "127.0.0.1"]
    variables = {"SAGEMAKER_BIND_TO_PORT": str(port)}
    started.append(image.start(tmp_path / "log", *arguments, **variables))
    http = _ready(started[0], port, tmp_path / "log")
    answer = http.post(
        "/invocations", content=picture, headers={"Content-Type": "application/x-image"}
    )
    assert answer.status_code == 200
    assert http.get("/execution-parameters").status_code == 200
    http.close()
    if not Path("/opt/ml/model").exists():
        alone = image.start(tmp_path / "alone", "serve", **variables)
        started.append(alone)
        assert alone.wait(60) == 2
        assert "/opt/ml/model" in (tmp_path / "alone").read_text()
