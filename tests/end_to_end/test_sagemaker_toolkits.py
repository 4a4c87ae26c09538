"""The archive inside SageMaker's own inference toolkits, which know nothing of vizsla.

The general toolkit runs in an environment of its own with what `code/requirements.txt` names and
neither torch nor vizsla. PyTorch's toolkit needs torch, so it runs with this environment's; the
code that answers is the archive's there, too. Both environments are kept in pytest's cache.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from vizsla.bundle.predictor import Predictor, load_bundle
from vizsla.data.synthetic import DrawnDataset
from vizsla.exporting.archive import write_archive
from vizsla.runs.folder import RunFolder

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
TOOLKIT = ["sagemaker-inference==1.10.1", "six==1.17.0"]
PYTORCH_TOOLKIT = ["sagemaker-pytorch-inference==2.0.25", "six==1.17.0"]

# What the model server does with a request, in the toolkit's own terms.
DRIVER = """
import base64, json, os, sys
from pathlib import Path

cases, results, service_of = sys.argv[1:]
model_dir = os.path.join(os.environ["SAGEMAKER_BASE_DIR"], "model")


class Context:
    def __init__(self, headers):
        self.headers, self.status, self.kind = headers, 200, None
        self.system_properties = {"model_dir": model_dir}
        self.request_processor, self.model_name = [self], "model"

    def get_request_properties(self):
        return self.headers

    def set_response_content_type(self, index, kind):
        self.kind = kind

    def set_response_status(self, code, phrase):
        self.status = code


if service_of == "general":
    from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
    from sagemaker_inference.transformer import Transformer

    service = Transformer(default_inference_handler=DefaultInferenceHandler())
    service.validate_and_initialize(model_dir=model_dir)
    handle = service.transform
else:
    from sagemaker_pytorch_serving_container.handler_service import HandlerService

    service = HandlerService()
    service.initialize(Context({}))
    handle = service.handle

told = []
for case in json.loads(Path(cases).read_text()):
    context = Context(case["headers"])
    (body,) = handle([{"body": bytearray(base64.b64decode(case["body"]))}], context)
    told.append({"status": context.status, "kind": context.kind, "body": body})
import vizsla

known = sorted(name for name in ("torch", "pydantic", "starlette") if name in sys.modules)
facts = {"vizsla": vizsla.__file__, "known": known, "answers": told}
Path(results).write_text(json.dumps(facts))
"""

Ask = Callable[[list[dict[str, Any]]], dict[str, Any]]


@pytest.fixture(scope="module")
def base(finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`/opt/ml` of a hosting container, with the archive unpacked in `model`."""
    folder = tmp_path_factory.mktemp("opt") / "ml"
    archive = write_archive(finished_run.path, tmp_path_factory.mktemp("archive") / "model.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder / "model", filter="data")
    return folder


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.path)


@pytest.fixture(scope="module")
def pictures(dogs: DrawnDataset) -> list[bytes]:
    return [path.read_bytes() for path in sorted((dogs.folder / "test").rglob("*.jpg"))]


def _installed(folder: Path, *commands: list[str]) -> None:
    """Run pip once for `folder`, which is then kept; skip where pip cannot install."""
    done = folder / "installed"
    if done.is_file():
        return
    for command in commands:
        result = subprocess.run(
            [sys.executable, "-m", "pip", *command, "--quiet", "--disable-pip-version-check"],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if result.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            last = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            pytest.skip(f"pip cannot install the toolkit here: {last}")
    done.touch()


def _place(config: pytest.Config, name: str, *what: object) -> Path:
    """A folder in pytest's cache for these packages, this Python and these versions."""
    key = hashlib.sha256(f"{what}{sys.version}{CONSTRAINTS.read_text()}".encode()).hexdigest()[:12]
    return Path(config.cache.mkdir(f"{name}-{key}")) if config.cache else Path()


def _asker(base: Path, python: Path, paths: Iterable[Path], service: str, scratch: Path) -> Ask:
    def ask(cases: list[dict[str, Any]]) -> dict[str, Any]:
        (scratch / "cases.json").write_text(json.dumps(cases))
        (scratch / "driver.py").write_text(DRIVER)
        environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONHOME"},
            "SAGEMAKER_BASE_DIR": str(base),
            "SAGEMAKER_PROGRAM": "inference.py",
            "PYTHONPATH": os.pathsep.join(map(str, (base / "model" / "code", *paths))),
        }
        results = scratch / "results.json"
        command = [str(python), "driver.py", "cases.json", str(results), service]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False,
            cwd=scratch, env=environment,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        facts: dict[str, Any] = json.loads(results.read_text())
        return facts

    return ask


@pytest.fixture(scope="module")
def toolkit(
    base: Path, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Ask:
    """The general toolkit, with what the archive's requirements name and nothing else of ours."""
    requirements = base / "model" / "code" / "requirements.txt"
    folder = _place(pytestconfig, "sagemaker-inference", TOOLKIT, requirements.read_text())
    python = folder / "bin" / "python"
    if not python.is_file():
        venv.create(folder, with_pip=False, symlinks=True)
    limited = ["-c", str(CONSTRAINTS)]
    into = ["--python", str(python), "install"]
    _installed(
        folder,
        [*into, *limited, "-r", str(requirements), "scipy"],
        [*into, "--no-deps", *TOOLKIT],  # it names boto3, for a server that is not started here
    )
    return _asker(base, python, [], "general", tmp_path_factory.mktemp("toolkit"))


@pytest.fixture(scope="module")
def pytorch_toolkit(
    base: Path, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Ask:
    """PyTorch's toolkit with the torch of this environment."""
    folder = _place(pytestconfig, "sagemaker-pytorch-inference", PYTORCH_TOOLKIT)
    _installed(folder, ["install", "--no-deps", "--target", str(folder), *PYTORCH_TOOLKIT])
    scratch = tmp_path_factory.mktemp("pytorch-toolkit")
    return _asker(base, Path(sys.executable), [folder], "pytorch", scratch)


@pytest.fixture(params=["toolkit", "pytorch_toolkit"])
def ask(request: pytest.FixtureRequest) -> Ask:
    asker: Ask = request.getfixturevalue(request.param)
    return asker


def _case(body: bytes, kind: str, accept: str | None = None) -> dict[str, Any]:
    headers = {"Content-Type": kind} | ({"Accept": accept} if accept else {})
    return {"headers": headers, "body": base64.b64encode(body).decode()}


def _json(*contents: bytes) -> bytes:
    return json.dumps({"images": [base64.b64encode(one).decode() for one in contents]}).encode()


def _same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    near = answer["confidence"] == pytest.approx(expected["confidence"], abs=1e-6)
    return near and [one["label"] for one in answer["top_k"]] == [
        one["label"] for one in expected["top_k"]
    ]


def test_archive_answers_in_the_toolkit_as_the_bundle_does(
    ask: Ask, base: Path, predictor: Predictor, pictures: list[bytes]
) -> None:
    bad = b"no picture"
    facts = ask(
        [
            *(_case(one, "image/jpeg") for one in pictures),
            _case(_json(pictures[0], bad, pictures[1]), "application/json", "*/*"),
            _case(pictures[2], "application/x-image", "text/csv"),
            _case(bad, "image/jpeg"),
            _case(b"a,b", "text/csv"),
            _case(pictures[0], "image/jpeg", "image/png"),
            _case(pictures[0], "application/octet-stream", "application/json"),
        ]
    )
    assert facts["vizsla"].startswith(str(base / "model" / "code"))
    answers = facts["answers"]
    expected = [predictor.predict(one).to_dict() for one in pictures]
    for answer, one in zip(answers, expected):
        assert (answer["status"], answer["kind"]) == (200, "application/json")
        assert _same(json.loads(answer["body"]), one)
    several, as_csv, undecodable, wrong, unacceptable, after = answers[len(pictures) :]

    told = json.loads(several["body"])["predictions"]
    assert told[1]["error"]["code"] == "not_a_picture"
    assert _same(told[0], expected[0])
    assert _same(told[2], expected[1])

    assert (as_csv["status"], as_csv["kind"]) == (200, "text/csv")
    label, name, confidence = as_csv["body"].strip().split(",")
    assert (label, name) == (expected[2]["predicted_label"], expected[2]["class_name"])
    assert float(confidence) == pytest.approx(expected[2]["confidence"], abs=2e-6)

    # A client's mistake is told as one, in a sentence, and the model goes on answering.
    assert (undecodable["status"], wrong["status"], unacceptable["status"]) == (422, 415, 406)
    assert "is not a picture" in undecodable["body"]
    assert "Unsupported content type 'text/csv'" in wrong["body"]
    assert _same(json.loads(after["body"]), expected[0])


def test_toolkit_needs_no_torch_for_our_code(toolkit: Ask, pictures: list[bytes]) -> None:
    assert toolkit([_case(pictures[0], "image/jpeg")])["known"] == []
