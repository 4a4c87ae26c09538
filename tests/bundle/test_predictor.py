"""A bundle answers: the same as the training's own evaluation, in whatever form a picture comes."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vizsla.bundle.format import read_facts
from vizsla.bundle.predictor import Predictor, load_bundle, prepared_batches
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import BundleError, PictureError, SettingError
from vizsla.models.build import build_network, rebuild
from vizsla.models.weights import read_weights
from vizsla.records import ClassLabel, Prediction
from vizsla.runs.folder import RunFolder


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.path)


@pytest.fixture(scope="module")
def pictures(dogs: DrawnDataset) -> list[Path]:
    return sorted((dogs.folder / "valid").rglob("*.jpg"))


def _close(left: Prediction, right: Prediction) -> bool:
    same = [one.label for one in left.top_k] == [one.label for one in right.top_k]
    return same and left.confidence == pytest.approx(right.confidence, abs=1e-6)


def test_answers_are_those_of_the_training_evaluation(
    predictor: Predictor, finished_run: RunFolder, dogs: DrawnDataset
) -> None:
    with (finished_run.path / "predictions-valid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == finished_run.facts()["data"]["pictures"]["valid"] > 0
    answers = predictor.predict([dogs.folder / row["path"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer.predicted_label == ClassLabel.from_folder(row["predicted"]).code
        assert answer.class_name == ClassLabel.from_folder(row["predicted"]).name
        assert answer.confidence == pytest.approx(float(row["confidence"]), abs=1e-4)


def test_answer_carries_code_name_confidence_and_ranking(
    predictor: Predictor, pictures: list[Path]
) -> None:
    answer = predictor.predict(pictures[0])
    classes = {label.code: label.name for label in predictor.facts.classes}
    assert answer.class_name == classes[answer.predicted_label]
    assert answer.path == str(pictures[0])
    assert {one.label: one.class_name for one in answer.top_k} == classes
    confidences = [one.confidence for one in answer.top_k]
    assert confidences == sorted(confidences, reverse=True)
    assert sum(confidences) == pytest.approx(1)
    assert answer.confidence == confidences[0]
    assert json.loads(json.dumps(answer.to_dict()))["predicted_label"] == answer.predicted_label


@pytest.mark.parametrize(("top_k", "shown"), [(1, 1), (2, 2), (5, 3)])
def test_ranking_is_as_long_as_asked_for(
    predictor: Predictor, pictures: list[Path], top_k: int, shown: int
) -> None:
    assert len(predictor.predict(pictures[0], top_k).top_k) == shown


def test_ranking_of_nothing_is_refused(predictor: Predictor, pictures: list[Path]) -> None:
    with pytest.raises(SettingError, match="top_k is 0, but must be at least 1"):
        predictor.predict(pictures[0], top_k=0)


def test_path_bytes_and_pillow_image_give_one_answer(
    predictor: Predictor, pictures: list[Path]
) -> None:
    expected = predictor.predict(pictures[0])
    assert _close(predictor.predict(str(pictures[0])), expected)
    from_bytes = predictor.predict(pictures[0].read_bytes())
    assert _close(from_bytes, expected)
    assert from_bytes.path is None
    assert "path" not in from_bytes.to_dict()
    with Image.open(pictures[0]) as image:
        assert _close(predictor.predict(image), expected)


def _encoded(image: Image.Image, **options: object) -> bytes:
    image.save(content := io.BytesIO(), "PNG", **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["transparent", "turned", "deep"])
def test_pillow_image_is_understood_as_its_file_is(predictor: Predictor, kind: str) -> None:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (70, 90, 4), dtype=np.uint8)
    if kind == "transparent":
        content = _encoded(Image.fromarray(noise, "RGBA"))
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        content = _encoded(Image.fromarray(noise[:, :, :3]), exif=exif)
    else:
        content = _encoded(Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257))
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(predictor.prepare(image), predictor.prepare(content))


def test_list_is_answered_in_order(predictor: Predictor, pictures: list[Path]) -> None:
    chosen = pictures[:5]
    answers = predictor.predict([chosen[0], chosen[1].read_bytes(), *chosen[2:]])
    assert [answer.path for answer in answers] == [str(chosen[0]), None, *map(str, chosen[2:])]
    for answer, picture in zip(answers, chosen, strict=True):
        assert _close(answer, predictor.predict(picture))
    assert predictor.predict([]) == []


@pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff\xe0 cut off"])
def test_what_does_not_decode_is_told(predictor: Predictor, content: bytes) -> None:
    with pytest.raises(PictureError):
        predictor.predict(content)


def test_missing_picture_is_told_by_its_path(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nowhere\.jpg: there is no such file"):
        predictor.predict(tmp_path / "nowhere.jpg")


def test_many_pictures_are_prepared_in_order_and_errors_stand_for_themselves(
    predictor: Predictor, pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(pictures[0].read_bytes()[:100])
    paths = [*pictures[:5], broken, *pictures[5:8]]
    batches = list(prepared_batches(predictor, paths, batch_size=2, threads=2))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    prepared = [one for batch in batches for one in batch]
    for path, one in zip(paths, prepared, strict=True):
        if path == broken:
            assert isinstance(one, PictureError)
        else:
            assert isinstance(one, np.ndarray)
            assert np.array_equal(one, predictor.prepare(path))


def test_threads_may_share_a_predictor(predictor: Predictor, pictures: list[Path]) -> None:
    expected = [predictor.predict(picture).confidence for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(predictor.predict, pictures * 3))
    assert [one.confidence for one in answers] == pytest.approx(expected * 3, abs=1e-6)


def test_temperature_softens_the_answers(
    predictor: Predictor, finished_run: RunFolder, pictures: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))
    facts = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**facts, "temperature": 1000.0}))
    soft = load_bundle(folder).predict(pictures[0])
    assert soft.predicted_label == predictor.predict(pictures[0]).predicted_label
    assert soft.confidence == pytest.approx(1 / 3, abs=1e-2)


def test_places_without_a_bundle_are_told(finished_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="There is no"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(tmp_path)
    shutil.copy(finished_run.path / "run.toml", tmp_path)
    with pytest.raises(BundleError, match="stopped before its end.*vizsla train --resume"):
        load_bundle(tmp_path)


_CHILD = """
import json, os, sys
for name in ("torch", "torchvision", "timm", "pydantic", "safetensors", "onnx", "filelock"):
    sys.modules[name] = None
code, picture = sys.argv[1:]
here = [path for path in sys.path if not os.path.isdir(os.path.join(path, "vizsla"))]
sys.path[:] = [code, *here]
import inference, vizsla
assert vizsla.__file__.startswith(code), vizsla.__file__
model = inference.model_fn(os.path.dirname(code))
with open(picture, "rb") as file:
    data = inference.input_fn(file.read(), "image/jpeg")
print(inference.output_fn(inference.predict_fn(data, model)))
try:
    inference.input_fn(b"a,b", "text/csv")
except ValueError as error:
    print(error)
"""


def test_code_in_the_bundle_answers_by_itself(
    predictor: Predictor, finished_run: RunFolder, pictures: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run.bundle, tmp_path / "bundle"))
    command = [sys.executable, "-I", "-c", _CHILD, str(folder / "code"), str(pictures[0])]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    answer, refusal = result.stdout.splitlines()
    expected = predictor.predict(pictures[0])
    assert json.loads(answer)["predicted_label"] == expected.predicted_label
    assert json.loads(answer)["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert "Unsupported content type 'text/csv'" in refusal


def test_pth_is_a_state_dict_without_code(finished_run: RunFolder) -> None:
    state = torch.load(finished_run.bundle / "model.pth", weights_only=True)
    facts = read_facts(finished_run.bundle)
    network = rebuild(facts.architecture, dict(facts.arguments), len(facts.classes))
    unfit = network.load_state_dict(state, strict=False)
    assert (unfit.missing_keys, unfit.unexpected_keys) == ([], [])


def test_safetensors_can_be_trained_on(finished_run: RunFolder) -> None:
    from vizsla.settings import Recipe

    path = finished_run.bundle / "model.safetensors"
    state = torch.load(finished_run.bundle / "model.pth", weights_only=True)
    assert all(tensor.equal(state[name]) for name, tensor in read_weights(path).tensors.items())
    recipe = Recipe(model="test_resnet", weights=str(path))
    network = build_network(recipe, recipe, 3)
    assert network.preprocessing == read_facts(finished_run.bundle).preprocessing
    assert all(one.equal(state[name]) for name, one in network.module.state_dict().items())
