"""The archive for SageMaker: a bundle that answers by itself; and what its code takes."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from vizsla.bundle.format import check_files, read_facts
from vizsla.bundle.predictor import Predictor, load_bundle
from vizsla.cli import run as vizsla
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import BundleError, StorageError
from vizsla.exporting import inference_template
from vizsla.exporting.archive import write_archive
from vizsla.exporting.inference_template import Refused, input_fn, model_fn, output_fn, predict_fn
from vizsla.runs.folder import RunFolder

# Pillow would hand this to a program, Ghostscript.
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture(scope="module")
def archive(finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(finished_run.path, tmp_path_factory.mktemp("archive") / "model.tar.gz")


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive as SageMaker lays it out."""
    folder = tmp_path_factory.mktemp("opt") / "model"
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.path)


@pytest.fixture(scope="module")
def picture(dogs: DrawnDataset) -> bytes:
    return min((dogs.folder / "test").rglob("*.jpg")).read_bytes()


def _asked(model: Predictor, body: bytes | str, kind: str, accept: str | None = None) -> str:
    """The way of a request through the four functions."""
    return output_fn(predict_fn(input_fn(body, kind), model), accept)


def _same(answer: dict[str, Any], expected: dict[str, Any]) -> bool:
    """The answer, but for a confidence's last digits: batches of other sizes round otherwise."""
    classes = [[one["label"] for one in each["top_k"]] for each in (answer, expected)]
    near = answer["confidence"] == pytest.approx(expected["confidence"], abs=1e-6)
    return classes[0] == classes[1] and near


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def test_unpacked_archive_is_a_whole_bundle_without_weights_to_train_on(
    unpacked: Path, finished_run: RunFolder
) -> None:
    facts = read_facts(unpacked)
    check_files(unpacked, facts)
    there = {
        path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()
    }
    assert there == {*facts.files, "bundle.json"}
    assert {"model.onnx", "code/inference.py", "code/requirements.txt"} <= there
    left = set(read_facts(finished_run.bundle).files) - there
    assert left == {"model.pth", "model.safetensors"}


def test_unpacked_archive_answers_as_the_bundle(
    unpacked: Path, predictor: Predictor, picture: bytes
) -> None:
    assert load_bundle(unpacked, check=True).predict(picture) == predictor.predict(picture)


def test_same_bundle_gives_the_same_bytes(
    archive: Path, finished_run: RunFolder, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(finished_run.bundle, tmp_path / "copy"))
    for path in bundle.rglob("*"):
        os.utime(path, (time.time(), 1e9))
    (bundle / "code" / "__pycache__").mkdir()
    (bundle / "code" / "__pycache__" / "inference.pyc").write_bytes(b"left by a run")
    again = write_archive(bundle, tmp_path / "new" / "other-name.tar.gz")
    assert again.read_bytes() == archive.read_bytes()
    assert archive.read_bytes()[4:8] == bytes(4)  # when it was packed
    with tarfile.open(archive) as content:
        for entry in content.getmembers():
            assert (entry.mtime, entry.uid, entry.gid, entry.uname) == (0, 0, 0, "")


def test_code_in_the_archive_answers_without_vizsla_or_torch(
    unpacked: Path, predictor: Predictor, picture: bytes, tmp_path: Path
) -> None:
    (tmp_path / "dog.jpg").write_bytes(picture)
    child = (
        "import sys\n"
        "for name in ('torch', 'timm', 'pydantic', 'starlette', 'pandas'):\n"
        "    sys.modules[name] = None\n"
        "import inference, vizsla\n"
        "assert vizsla.__file__.startswith(sys.argv[1]), vizsla.__file__\n"
        "model = inference.model_fn(sys.argv[1])\n"
        "data = inference.input_fn(open('dog.jpg', 'rb').read(), 'image/jpeg')\n"
        "print(inference.output_fn(inference.predict_fn(data, model), 'application/json'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", child, str(unpacked)],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked / "code")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert _same(json.loads(result.stdout), predictor.predict(picture).to_dict())


def test_damaged_bundle_is_not_shipped(finished_run: RunFolder, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0")
    with pytest.raises(BundleError, match=r"model\.onnx is not the file"):
        write_archive(bundle, tmp_path / "model.tar.gz")
    assert not (tmp_path / "model.tar.gz").exists()


def test_bundle_without_code_is_not_shipped(finished_run: RunFolder, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))
    facts = json.loads((bundle / "bundle.json").read_text())
    del facts["files"]["code/inference.py"]
    (bundle / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=r"lacks code/inference\.py"):
        write_archive(bundle, tmp_path / "model.tar.gz")


def test_bundle_cannot_pull_in_files_from_outside(finished_run: RunFolder, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))
    facts = json.loads((bundle / "bundle.json").read_text())
    shutil.copy(bundle / "card.md", tmp_path / "secret.md")
    facts["files"]["../secret.md"] = facts["files"]["card.md"]
    (bundle / "bundle.json").write_text(json.dumps(facts))
    with pytest.raises(BundleError, match=r"\.\./secret\.md, which lies outside"):
        write_archive(bundle, tmp_path / "model.tar.gz")


def test_place_that_cannot_be_written_is_told(finished_run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        write_archive(finished_run.bundle, tmp_path / "file" / "model.tar.gz")


def test_command_writes_the_archive_of_the_bundle_as_it_is(
    archive: Path, finished_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.tar.gz"
    before = sorted(finished_run.path.rglob("*"))
    assert vizsla(["export", str(finished_run.path), "--archive", str(path)]) == 0
    assert capsys.readouterr().out.split() == ["archive", str(path)]
    assert path.read_bytes() == archive.read_bytes()
    assert sorted(finished_run.path.rglob("*")) == before


def test_command_writes_the_archive_of_the_export_it_made(
    finished_run: RunFolder, picture: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = shutil.copytree(finished_run.path, tmp_path / "run"), tmp_path / "model.tar.gz"
    flags = ["--quantize", "int8", "--max-loss", "1", "--archive", str(path)]
    assert vizsla(["export", str(run), *flags]) == 0
    assert str(path) in capsys.readouterr().out
    with tarfile.open(path) as content:
        content.extractall(tmp_path / "model", filter="data")
    exported, shipped = load_bundle(run / "bundle-int8"), model_fn(str(tmp_path / "model"))
    assert shipped.facts.export["quantized"] == "int8"
    network = (run / "bundle-int8" / "model.onnx").read_bytes()
    assert (tmp_path / "model" / "model.onnx").read_bytes() == network
    answer = json.loads(_asked(shipped, picture, "image/jpeg"))
    assert _same(answer, exported.predict(picture).to_dict())


@pytest.mark.parametrize(
    "kind",
    [
        "image/jpeg", "image/png", "application/x-image", "application/octet-stream",
        "IMAGE/JPEG; name=dog",
    ],
)  # fmt: skip
def test_raw_picture_is_answered(predictor: Predictor, picture: bytes, kind: str) -> None:
    answer = json.loads(_asked(predictor, picture, kind))
    expected = predictor.predict(picture).to_dict()
    assert {name: answer[name] for name in expected} == expected
    assert answer["ms"] > 0


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_kind_of_file_is_read(predictor: Predictor, format_name: str) -> None:
    content = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(content, format_name)
    answer = json.loads(_asked(predictor, content.getvalue(), f"image/{format_name.lower()}"))
    assert _same(answer, predictor.predict(content.getvalue()).to_dict())


@pytest.mark.parametrize("form", ["text", "data URL", "object", "lines"])
def test_picture_in_json_is_answered(predictor: Predictor, picture: bytes, form: str) -> None:
    text = _text(picture)
    item = {
        "text": text,
        "data URL": f"data:image/jpeg;base64,{text}",
        "object": {"b64": text},
        "lines": base64.encodebytes(picture).decode(),
    }[form]
    answer = json.loads(_asked(predictor, json.dumps({"image": item}), "application/json"))
    assert _same(answer, predictor.predict(picture).to_dict())


@pytest.mark.parametrize("key", ["images", "instances", None])
def test_one_bad_picture_costs_no_other_its_answer(
    predictor: Predictor, dogs: DrawnDataset, key: str | None
) -> None:
    contents = [path.read_bytes() for path in sorted((dogs.folder / "test").rglob("*.jpg"))]
    texts: list[Any] = [_text(content) for content in contents * 3]
    texts[1:1] = [_text(b"no picture"), "%%%", {"url": "http://127.0.0.1/dog.jpg"}]
    body = json.dumps({key: texts} if key else texts).encode()
    told = json.loads(_asked(predictor, body, "application/json; charset=utf-8"))["predictions"]
    assert len(told) == len(texts) > 32
    codes = [one["error"]["code"] for one in told[1:4]]
    assert codes == ["not_a_picture", "bad_base64", "bad_json"]
    answers = told[:1] + told[4:]
    for answer, content in zip(answers, contents * 3, strict=True):
        assert _same(answer, predictor.predict(content).to_dict())


def test_top_k_travels_in_the_json(predictor: Predictor, picture: bytes) -> None:
    body = json.dumps({"image": _text(picture), "top_k": 1})
    assert len(json.loads(_asked(predictor, body, "application/json"))["top_k"]) == 1
    unsaid = json.dumps({"image": _text(picture), "top_k": None})
    assert len(json.loads(_asked(predictor, unsaid, "application/json"))["top_k"]) == 3


def test_csv_has_a_line_for_each_picture(predictor: Predictor, picture: bytes) -> None:
    expected = predictor.predict(picture)
    row = [expected.predicted_label, expected.class_name, f"{expected.confidence:.6f}"]
    answer = _asked(predictor, picture, "image/jpeg", "text/csv")
    assert list(csv.reader(io.StringIO(answer))) == [row]
    body = json.dumps({"images": [_text(b"no picture"), _text(picture)]})
    lines = list(csv.reader(io.StringIO(_asked(predictor, body, "application/json", "text/csv"))))
    assert lines[0] == ["", "", "", "not_a_picture"]
    assert lines[1][:2] == row[:2]


@pytest.mark.parametrize(
    ("body", "kind", "accept", "status", "sentence"),
    [
        (b"a,b", "text/csv", None, 415, "Unsupported content type 'text/csv'"),
        (b"<svg/>", "image/svg+xml", None, 415, "Unsupported content type"),
        (b"", "image/jpeg", None, 400, "The body is empty"),
        (b"{", "application/json", None, 400, "The body is no JSON"),
        (b"\xff\xfe\x00", "application/json", None, 400, "The body is no JSON"),
        (b"[" * 100_000, "application/json", None, 400, "The body is no JSON"),
        (b"{}", "application/json", None, 400, "The JSON must be"),
        (b'{"images": []}', "application/json", None, 400, "The JSON must be"),
        (b'{"image": 3}', "application/json", None, 400, "must be a base64 text"),
        (b'{"image": "%"}', "application/json", None, 400, "not in base64"),
        (b'{"image": "aGk=", "top_k": 0}', "application/json", None, 400, "top_k is 0"),
        (json.dumps(["aGk="] * 65).encode(), "application/json", None, 413, "has 65 pictures"),
        (b"no picture", "image/jpeg", None, 422, "is not a picture"),
        (EPS, "image/jpeg", None, 422, "is not a picture"),
        (b"{}", "image/jpeg", "image/png", 422, "is not a picture"),
    ],
)
def test_bad_request_is_told_in_a_sentence(
    predictor: Predictor, body: bytes, kind: str, accept: str | None, status: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        _asked(predictor, body, kind, accept)
    assert isinstance(caught.value, Refused)
    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, True), ("*/*", True), ("application/json", True), ("text/csv", False),
        ("text/csv;q=0.9, application/json", False), ("image/png, text/*", False),
    ],
)  # fmt: skip
def test_accept_chooses_json_or_csv(
    predictor: Predictor, picture: bytes, accept: str | None, is_json: bool
) -> None:
    assert _asked(predictor, picture, "image/jpeg", accept).startswith("{") is is_json


def test_other_accept_is_refused(predictor: Predictor, picture: bytes) -> None:
    with pytest.raises(ValueError, match="and not 'image/png'"):
        _asked(predictor, picture, "image/jpeg", "image/png")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.binary(max_size=300).map(lambda body: ("image/jpeg", body)),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.sampled_from(["image", "images", "instances", "b64", "url", "top_k"]), inner
                )
            ),
        ).map(lambda facts: ("application/json", json.dumps(facts).encode())),
    )
)
def test_no_body_gives_anything_but_an_answer_or_a_sentence(
    predictor: Predictor, body: tuple[str, bytes]
) -> None:
    told = _told(predictor, body[1], body[0])
    if isinstance(told, Refused):
        assert 400 <= told.status_code < 500
        assert len(str(told)) > 10
    else:
        assert "predictions" in told or "predicted_label" in told


def _told(model: Predictor, body: bytes, kind: str) -> dict[str, Any] | Refused:
    try:
        answer: dict[str, Any] = json.loads(_asked(model, body, kind))
        return answer
    except Refused as refused:
        return refused


def test_model_beside_the_code_is_found(unpacked: Path, tmp_path: Path) -> None:
    assert model_fn(str(unpacked)).folder == unpacked


@pytest.mark.parametrize(
    ("environment", "in_toolkit", "expected"),
    [
        ({}, False, None),
        ({}, True, 1),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "2"}, True, 4),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "99"}, True, 1),
        ({"SAGEMAKER_MODEL_SERVER_WORKERS": "0"}, True, 1),
        ({"SAGEMAKER_MULTI_MODEL": "true"}, True, 8),
    ],
)
def test_workers_of_a_container_share_its_cores(
    monkeypatch: pytest.MonkeyPatch,
    unpacked: Path,
    environment: dict[str, str],
    in_toolkit: bool,
    expected: int | None,
) -> None:
    for name in ("SAGEMAKER_MODEL_SERVER_WORKERS", "SAGEMAKER_MULTI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    if in_toolkit:
        monkeypatch.setattr(inference_template, "_ToolkitError", RuntimeError)
    taken: list[int | None] = []
    load = inference_template.load_bundle

    def loaded(folder: Path, threads: int | None) -> Predictor:
        taken.append(threads)
        return load(folder, threads=threads)

    monkeypatch.setattr(inference_template, "load_bundle", loaded)
    assert model_fn(str(unpacked)).folder == unpacked
    assert taken == [expected]
