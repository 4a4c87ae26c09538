"""A trained network as one file that torch itself loads: TorchScript, or a `torch.export` program.

Either is for programs that have torch and not this package or timm. Such files hold a program, and
loading one runs it: nothing here loads a file that came from elsewhere, and nobody should.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla.errors import WorkError
from vizsla.runs.files import write_whole

Answerer = Callable[[NDArray[np.float32]], NDArray[np.float32]]

TORCHSCRIPT_SUFFIX = ".pt"
TORCH_EXPORT_SUFFIX = ".pt2"
# Of another number of pictures than the traced one's, 2.
_CHECKED_COUNTS = (1, 3)


def write_torchscript(module: nn.Module, size_px: int, path: Path) -> None:
    """Write `module` as TorchScript: `torch.jit.load(path)` takes pixels (n, 3, size_px, size_px)
    float32, normalised, any n, and gives logits (n, classes).

    The network is traced in eval mode and frozen (its weights become constants, and batch norms
    fold into convolutions), and its answers are held against the module's. Raises `WorkError`
    where it does not trace, or where the trace answers otherwise; `StorageError`.
    """
    module = copy.deepcopy(module).eval().cpu().float()
    example = _pixels(2, size_px)
    try:
        with _quiet(), torch.no_grad():
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                module, example, check_trace=False
            )
            frozen = torch.jit.freeze(traced)
            _check(frozen, module, size_px)
    # A network that does not trace raises whatever it likes.
    except Exception as error:
        raise _failure(module, "TorchScript", error) from error
    with _quiet():
        write_whole(path, lambda file: torch.jit.save(frozen, file))


def write_torch_export(module: nn.Module, size_px: int, path: Path) -> None:
    """Write `module` as a `torch.export` program (.pt2): `torch.export.load(path).module()` takes
    and gives the same as the TorchScript.

    Raises `WorkError` where the network does not export with a free number of pictures, or where
    the program answers otherwise; `StorageError`.
    """
    module = copy.deepcopy(module).eval().cpu().float()
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                module, (_pixels(2, size_px),), dynamic_shapes=({0: batch},)
            )
            _check(program.module(), module, size_px)
    # The exporter raises its own errors and the network's.
    except Exception as error:
        raise _failure(module, "torch.export", error) from error
    with _quiet():
        write_whole(path, lambda file: torch.export.save(program, file))


def torch_answerer(path: Path) -> Answerer:
    """What the file answers: pixels (n, 3, s, s) float32 to logits (n, classes) float32.

    Loading runs what is in the file. It is meant for a file that this process has just written,
    to verify it, and for no other.
    """
    with _quiet():
        if path.suffix == TORCH_EXPORT_SUFFIX:
            network: nn.Module = torch.export.load(path).module()
        else:
            network = torch.jit.load(  # type: ignore[no-untyped-call]
                path, map_location="cpu"
            )

    def answer(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():  # a frozen TorchScript refuses inference mode's tensors
            logits: NDArray[np.float32] = network(torch.from_numpy(pixels)).numpy()
        return logits

    return answer


def _pixels(count: int, size_px: int) -> torch.Tensor:
    """Inputs that differ from one another, and are the same every time."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(size_px, size_px))


def _check(made: Callable[[torch.Tensor], torch.Tensor], module: nn.Module, size_px: int) -> None:
    """Raise `ValueError` unless what was made answers as the module does, for other numbers of
    pictures: a network that decides by its input's shape or values traces wrongly in silence."""
    for count in _CHECKED_COUNTS:
        pixels = _pixels(count, size_px)
        expected = module(pixels)
        answered = made(pixels)
        if answered.shape != expected.shape:
            raise ValueError(f"it answers {count} pictures with {tuple(answered.shape)}")
        scale = float(expected.abs().max()) + 1e-6
        difference = float((answered - expected).abs().max())
        if not difference <= 1e-3 * scale:
            raise ValueError(f"its logits differ by {difference:.3g} of {scale:.3g}")


def _failure(module: nn.Module, what: str, error: Exception) -> WorkError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    return WorkError(
        f"{type(module).__name__} could not be written as {what}: {why}. Export it to onnx instead."
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch has deprecated torch.jit, which stays until its users have moved on; the tracer and
    the exporter warn of what the check above looks at."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit.*", category=DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
