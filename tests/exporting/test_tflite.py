"""A TFLite file answers as the network it was made from, in float and in int8."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla.errors import DependencyError, WorkError
from vizsla.exporting.tflite import tflite_answerer, write_tflite
from vizsla.models.build import rebuild

SIZE_PX = 64
needs_litert = pytest.mark.skipif(
    find_spec("litert_torch") is None,
    reason="litert-torch is not installed: pip install -c constraints-tflite.txt 'vizsla[tflite]'",
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network whose answers differ from picture to picture, as a trained one's do."""
    torch.manual_seed(0)
    module: Any = rebuild("test_resnet", {}, 3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.5, 1.0)
    with torch.no_grad():
        module.get_classifier().weight.normal_(std=0.3)
        module.train()(torch.from_numpy(_pictures(16)))
    trained: nn.Module = module.eval()
    return trained


def _pictures(count: int) -> NDArray[np.float32]:
    blocks = np.random.default_rng(count).normal(size=(count, 3, 4, 4)).astype(np.float32)
    return blocks.repeat(SIZE_PX // 4, axis=2).repeat(SIZE_PX // 4, axis=3)


def _expected(module: nn.Module, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = module(torch.from_numpy(pixels)).numpy()
    return logits


def _interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    return interpreter


@needs_litert
def test_float_file_answers_as_the_network_channels_last(
    network: nn.Module, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.tflite"
    notes = write_tflite(network, SIZE_PX, path)
    assert capfd.readouterr().out == ""
    assert f"float32 (1, {SIZE_PX}, {SIZE_PX}, 3)" in notes[0]
    (taken,) = _interpreter(path).get_input_details()
    assert taken["shape"].tolist() == [1, SIZE_PX, SIZE_PX, 3]
    answers = tflite_answerer(path)(_pictures(5))
    assert answers.dtype == np.float32
    assert np.allclose(answers, _expected(network, _pictures(5)), atol=1e-4)
    assert np.ptp(answers, axis=0).max() > 0.1


@needs_litert
def test_int8_file_is_whole_per_channel_and_answers_nearly_as_the_network(
    network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "model.tflite"
    notes = write_tflite(network, SIZE_PX, path, _pictures(48))
    assert "48 pictures" in notes[1]
    interpreter = _interpreter(path)
    tensors = interpreter.get_tensor_details()
    assert {one["dtype"] for one in tensors if one["index"] >= 0} <= {np.int8, np.int32}
    scales = [len(one["quantization_parameters"]["scales"]) for one in tensors]
    assert max(scales) >= 64  # as many as a convolution has channels
    floats = sum(parameter.numel() for parameter in network.parameters()) * 4
    assert path.stat().st_size < 0.35 * floats
    answer = tflite_answerer(path)
    answers, expected = answer(_pictures(12)), _expected(network, _pictures(12))
    assert np.abs(answers - expected).mean() < 0.05 * np.ptp(expected)
    assert np.mean(answers.argmax(axis=1) == expected.argmax(axis=1)) >= 0.8
    # The surest answers among the calibration pictures are within the range that was read.
    answers, expected = answer(_pictures(48)), _expected(network, _pictures(48))
    assert answers.max() > 0.85 * expected.max()
    assert answers.min() < 0.85 * expected.min()


@needs_litert
def test_network_that_does_not_convert_is_told(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            raise ValueError("no way through")

    with pytest.raises(WorkError, match=r"Odd could not be written as TFLite: .*no way through"):
        write_tflite(Odd(), SIZE_PX, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_the_install_line_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(DependencyError, match=r"vizsla\[tflite\]"):
        write_tflite(nn.Identity(), SIZE_PX, tmp_path / "model.tflite")
    with pytest.raises(DependencyError, match=r"vizsla\[tflite\]"):
        tflite_answerer(tmp_path / "model.tflite")
