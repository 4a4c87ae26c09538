"""An exported network answers as the trained one, by either exporter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla.errors import WorkError
from vizsla.exporting import onnx as export
from vizsla.exporting.onnx import export_onnx
from vizsla.exporting.verify import verify_onnx
from vizsla.models.build import rebuild
from vizsla.models.onnx_graph import quick_graph

SIZE_PX = 64
ARGUMENTS: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {"img_size": SIZE_PX, "depth": 1},
    "test_efficientnet": {},
    "test_byobnet": {},
}


def _network(architecture: str, seed: int = 0) -> nn.Module:
    """A network whose answers differ from picture to picture, as a trained one's do."""
    torch.manual_seed(seed)
    module = rebuild(architecture, ARGUMENTS[architecture], 3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        module.get_classifier().weight.normal_(std=0.3)
        module.train()(torch.from_numpy(_pictures(8)))  # fills batch norm's statistics
    return module.eval()


def _pictures(count: int) -> NDArray[np.float32]:
    """Pictures of four by four blocks: unlike noise, they stay apart when they are averaged."""
    blocks = np.random.default_rng(count).normal(size=(count, 3, 4, 4)).astype(np.float32)
    return blocks.repeat(SIZE_PX // 4, axis=2).repeat(SIZE_PX // 4, axis=3)


def _export(module: nn.Module, architecture: str, path: Path) -> None:
    export_onnx(module, architecture, SIZE_PX, path)


def _answers(path: Path, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(["logits"], {"pixels": pictures})[0])
    answers: NDArray[np.float32] = logits.softmax(dim=1).numpy()
    return answers


def _torch_answers(module: nn.Module, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        answers: NDArray[np.float32] = module(torch.from_numpy(pictures)).softmax(dim=1).numpy()
    return answers


def _assert_equal_answers(module: nn.Module, path: Path) -> None:
    for count in (1, 5):
        pictures = _pictures(count)
        expected = _torch_answers(module, pictures)
        assert np.abs(_answers(path, pictures) - expected).max() <= 1e-4
    assert np.ptp(expected, axis=0).max() > 1e-2  # answers that are all alike would prove nothing


@pytest.mark.parametrize("architecture", ARGUMENTS)
def test_export_answers_as_torch(architecture: str, tmp_path: Path) -> None:
    module = _network(architecture)
    _export(module, architecture, tmp_path / "model.onnx")
    _assert_equal_answers(module, tmp_path / "model.onnx")


def _fail(*_: Any) -> bytes:
    raise RuntimeError("no such operator")


def _of_another_network(*rest: Any) -> bytes:
    return quick_graph(_network("test_efficientnet", seed=5), *rest[1:])


@pytest.mark.parametrize("quick", [_fail, _of_another_network])
def test_the_thorough_exporter_steps_in_where_the_quick_one_fails_or_is_wrong(
    quick: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "quick_graph", quick)
    module = _network("test_efficientnet", seed=1)
    _export(module, "test_efficientnet", tmp_path / "model.onnx")
    _assert_equal_answers(module, tmp_path / "model.onnx")


def test_network_that_does_not_export_is_told(tmp_path: Path) -> None:
    class Odd(nn.Module):
        num_classes = 3

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            raise ValueError("no way through")

    with pytest.raises(WorkError, match="odd could not be exported to ONNX"):
        export_onnx(Odd(), "odd", SIZE_PX, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_verification_passes_an_export_and_finds_a_planted_mismatch(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    module = _network("test_efficientnet")
    _export(module, "test_efficientnet", path)
    assert verify_onnx(module, path, _pictures(4)) == []
    with torch.no_grad():
        module.classifier.bias[0] += 0.1
    (finding,) = verify_onnx(module, path, _pictures(4))
    assert (finding.rule, finding.severity, finding.where) == (
        "export_mismatch",
        "error",
        "model.onnx",
    )
    assert finding.measured is not None
    assert finding.threshold is not None
    assert finding.measured > finding.threshold
    assert finding.evidence == {"pictures": 4}
