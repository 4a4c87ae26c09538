"""Which engine a server takes, and that every engine answers alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla import load_bundle
from vizsla.bundle.predictor import Predictor
from vizsla.errors import SettingError
from vizsla.places import cache_folder
from vizsla.runs.folder import RunFolder
from vizsla.serving import engine_choice
from vizsla.serving.engine_choice import LARGEST_DIFFERENCE, choose_engine, measure
from vizsla.serving.engines import KINDS, OnnxEngine, OpenVinoEngine

pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def predictor(finished_run: RunFolder) -> Predictor:
    return load_bundle(finished_run.bundle, threads=1)


@pytest.mark.parametrize("kind", [OnnxEngine, OpenVinoEngine])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("alone", [True, False])
def test_engine_answers_as_the_predictor_for_any_batch(
    predictor: Predictor, kind: Any, threads: int, alone: bool
) -> None:
    engine = kind(predictor, threads)
    rng = np.random.default_rng(1)
    for count in (1, 3, 8, 2):
        inputs = rng.normal(size=(count, 3, 64, 64)).astype(np.float32)
        expected = predictor.probabilities(inputs)
        logits = engine(inputs, alone)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        assert np.abs(probabilities - expected).max() < LARGEST_DIFFERENCE


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without notes of earlier choices."""
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path))
    return tmp_path


def test_auto_measures_once_and_takes_the_fastest(
    predictor: Predictor, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = choose_engine(predictor.folder, "auto", threads=1, batch=4)
    each = {name: one["batch_ms"] for name, one in choice.found.items()}
    assert set(each) == set(KINDS)
    assert min(each.values()) > 0
    assert choice.name == min(each, key=each.__getitem__)
    # The next start reads the note, and measures nothing.
    monkeypatch.setattr(engine_choice.subprocess, "run", lambda *_, **__: pytest.fail("again"))
    assert choose_engine(predictor.folder, "auto", threads=1, batch=4) == choice


def _note(found: dict[str, Any]) -> None:
    """Have the note of the earlier choice say something else."""
    (note,) = (cache_folder() / "serving").iterdir()
    note.write_text(json.dumps(found))


def test_engine_that_answers_otherwise_is_not_taken(predictor: Predictor, own_cache: Path) -> None:
    found = choose_engine(predictor.folder, "auto", threads=1, batch=4).found
    found["openvino"] |= {"batch_ms": 0.0, "largest_difference": 2 * LARGEST_DIFFERENCE}
    _note(found)
    assert choose_engine(predictor.folder, "auto", threads=1, batch=4).name == "onnxruntime"
    with pytest.raises(SettingError, match="openvino does not answer as ONNX Runtime"):
        choose_engine(predictor.folder, "openvino", threads=1, batch=4)


def test_measuring_sees_an_engine_that_answers_otherwise(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(OnnxEngine):
        def __call__(self, inputs: Any, alone: bool = False) -> Any:
            return np.roll(super().__call__(inputs), 1, axis=1)

    monkeypatch.setitem(KINDS, "openvino", Wrong)
    found = measure(predictor.folder, threads=1, batch=4)
    assert found["openvino"]["largest_difference"] > LARGEST_DIFFERENCE
    assert found["onnxruntime"]["largest_difference"] == 0


def test_without_a_measurement_onnx_runtime_serves(
    predictor: Predictor, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_choice.sys, "executable", "/nowhere/python")
    choice = choose_engine(predictor.folder, "auto", threads=1, batch=4)
    assert choice.name == "onnxruntime"
    assert not (own_cache / "serving").exists()


def test_onnx_runtime_by_name_is_not_measured_against_others(
    predictor: Predictor, own_cache: Path
) -> None:
    assert choose_engine(predictor.folder, "onnxruntime", threads=1, batch=4).found == {}
    assert not (own_cache / "serving").exists()
