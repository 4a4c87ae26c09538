"""An exported network answers as the trained one, traced anew or from the kept graph."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla.errors import WorkError
from vizsla.export.onnx import export_onnx
from vizsla.export.verify import verify_onnx
from vizsla.models.build import rebuild

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
    export_onnx(module, architecture, ARGUMENTS[architecture], SIZE_PX, path)


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


def _refuse_tracing(*_: Any, **__: Any) -> None:
    raise AssertionError("traced again")


class Tracing:
    """One real trace, played back in place of tracing again, which takes seconds."""

    def __init__(self, cache: Path) -> None:
        self.module = _network("test_efficientnet", seed=1)
        self.traces = 0
        really_export = torch.onnx.export

        def export(*arguments: Any, **keywords: Any) -> Any:
            self._program = really_export(*arguments, **keywords)
            return self._program

        for kept in (cache / "graphs").glob("test_efficientnet-*"):
            kept.unlink()
        with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
            patch.setattr(torch.onnx, "export", export)
            _export(self.module, "test_efficientnet", Path(folder, "model.onnx"))

    def play_back(self, *_: Any, **__: Any) -> Any:
        self.traces += 1
        return self._program


@pytest.fixture(scope="module")
def one_trace(private_cache: Path) -> Tracing:
    return Tracing(private_cache)


@pytest.fixture
def tracing(one_trace: Tracing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracing:
    """The trace, played back, and a cache of the test's own in `tmp_path / "cache"`."""
    monkeypatch.setattr(torch.onnx, "export", one_trace.play_back)
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    one_trace.traces = 0
    return one_trace


def _kept(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "cache" / "graphs").iterdir()
    return path


@pytest.mark.parametrize("architecture", ARGUMENTS)
def test_export_answers_as_torch_and_the_kept_graph_serves_other_weights(
    architecture: str, one_trace: Tracing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    first = _network(architecture, seed=1)
    _export(first, architecture, path)
    _assert_equal_answers(first, path)

    monkeypatch.setattr(torch.onnx, "export", _refuse_tracing)
    second = _network(architecture, seed=2)
    _export(second, architecture, path)
    _assert_equal_answers(second, path)
    apart = _torch_answers(first, _pictures(5)) - _torch_answers(second, _pictures(5))
    assert np.abs(apart).max() > 1e-2


@pytest.mark.parametrize("damage", ["empty", "short", "changed", "garbage"])
def test_damaged_graph_is_made_again(tracing: Tracing, damage: str, tmp_path: Path) -> None:
    _export(tracing.module, "test_efficientnet", tmp_path / "model.onnx")
    content = _kept(tmp_path).read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "short": content[:middle],
        "changed": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "garbage": b"graph" * 100,
    }[damage]
    _kept(tmp_path).write_bytes(damaged)
    _export(tracing.module, "test_efficientnet", tmp_path / "model.onnx")
    assert tracing.traces == 2
    _assert_equal_answers(tracing.module, tmp_path / "model.onnx")
    assert len(_kept(tmp_path).read_bytes()) == len(content)
    _export(tracing.module, "test_efficientnet", tmp_path / "model.onnx")
    assert tracing.traces == 2


def test_graph_is_kept_without_weights(tracing: Tracing, tmp_path: Path) -> None:
    _export(tracing.module, "test_efficientnet", tmp_path / "model.onnx")
    weights = sum(one.numel() * 4 for one in tracing.module.parameters())
    assert _kept(tmp_path).stat().st_size < weights / 2 < (tmp_path / "model.onnx").stat().st_size


def test_graph_of_other_arguments_or_size_is_not_used(tracing: Tracing, tmp_path: Path) -> None:
    for count, (arguments, size_px) in enumerate([({}, 64), ({}, 96), ({"pad_type": "same"}, 64)]):
        assert tracing.traces == count
        path = tmp_path / "model.onnx"
        export_onnx(tracing.module, "test_efficientnet", arguments, size_px, path)
    assert tracing.traces == 3


def test_cache_that_cannot_be_written_costs_nothing_but_time(
    tracing: Tracing, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, and no folder")
    _export(tracing.module, "test_efficientnet", tmp_path / "model.onnx")
    assert verify_onnx(tracing.module, tmp_path / "model.onnx", _pictures(2)) == []


def test_network_that_does_not_export_is_told(tmp_path: Path) -> None:
    class Odd(nn.Module):
        num_classes = 3

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            raise ValueError("no way through")

    with pytest.raises(WorkError, match="odd could not be exported to ONNX"):
        export_onnx(Odd(), "odd", {}, SIZE_PX, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_verification_passes_an_export_and_finds_a_planted_mismatch(
    tracing: Tracing, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    module = copy.deepcopy(tracing.module)
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
