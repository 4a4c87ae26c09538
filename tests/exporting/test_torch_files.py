"""A network as a file of torch's own answers as the network, in any program that has torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla.errors import WorkError
from vizsla.exporting.torch_files import torch_answerer, write_torch_export, write_torchscript
from vizsla.models.build import rebuild

SIZE_PX = 64
WRITERS = {".pt": write_torchscript, ".pt2": write_torch_export}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {"img_size": SIZE_PX, "depth": 1},
}
_ALONE = """
import sys, numpy, torch
sys.modules["timm"] = sys.modules["vizsla"] = None
path, pixels, answers = sys.argv[1:]
load = torch.jit.load if path.endswith(".pt") else lambda path: torch.export.load(path).module()
with torch.no_grad():
    numpy.save(answers, load(path)(torch.from_numpy(numpy.load(pixels))).numpy())
"""


def _network(architecture: str = "test_resnet") -> Any:
    torch.manual_seed(0)
    return rebuild(architecture, ARGUMENTS[architecture], 3)


def _pixels(count: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(count)
    return generator.normal(size=(count, 3, SIZE_PX, SIZE_PX)).astype(np.float32)


def _expected(module: nn.Module, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = module.eval()(torch.from_numpy(pixels)).numpy()
    return logits


@pytest.mark.parametrize("architecture", ARGUMENTS)
@pytest.mark.parametrize("suffix", WRITERS)
def test_file_answers_as_the_network_for_any_number_of_pictures(
    suffix: str, architecture: str, tmp_path: Path
) -> None:
    module = _network(architecture).train()
    path = tmp_path / f"model{suffix}"
    WRITERS[suffix](module, SIZE_PX, path)
    assert module.training  # the network itself is as it was
    answer = torch_answerer(path)
    for count in (1, 2, 5):
        answers = answer(_pixels(count))
        assert answers.dtype == np.float32
        assert np.allclose(answers, _expected(module, _pixels(count)), atol=1e-5)
    assert np.ptp(answers, axis=0).max() > 1e-4
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", WRITERS)
def test_file_needs_torch_alone(suffix: str, tmp_path: Path) -> None:
    module, path = _network(), tmp_path / f"model{suffix}"
    WRITERS[suffix](module, SIZE_PX, path)
    np.save(tmp_path / "pixels.npy", _pixels(3))
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ALONE, str(path), str(tmp_path / "pixels.npy"),
         str(tmp_path / "answers.npy")],
        check=True,
    )  # fmt: skip
    answers = np.load(tmp_path / "answers.npy")
    assert np.allclose(answers, _expected(module, _pixels(3)), atol=1e-5)


class _Deciding(nn.Module):
    """A network that decides by how many pictures there are: a trace keeps one way alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(pixels.mean((2, 3)))
        return -logits if float(pixels.sum()) > 0 or len(pixels) == 1 else logits


@pytest.mark.parametrize(("suffix", "name"), [(".pt", "TorchScript"), (".pt2", "torch.export")])
def test_network_that_cannot_be_written_truly_is_refused(
    suffix: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkError, match=rf"_Deciding could not be written as {name}.*onnx"):
        WRITERS[suffix](_Deciding(), SIZE_PX, tmp_path / f"model{suffix}")
    assert list(tmp_path.iterdir()) == []
