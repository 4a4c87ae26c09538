"""A trained network as an ONNX file.

By torch's quick exporter where the result answers as the network does, else by the thorough one,
whose graph the ONNX optimiser then folds (a batch norm into the convolution before it, say).
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vizsla.errors import WorkError
from vizsla.exporting.onnx_files import OnnxAnswerer
from vizsla.models.onnx_graph import OPSET, quick_graph
from vizsla.runs.files import write_whole


def export_onnx(module: nn.Module, architecture: str, size_px: int, path: Path) -> None:
    """Write `module` to `path`: input `pixels` (batch, 3, size_px, size_px) float32, normalised;
    output `logits` (batch, classes) float32. Raises `WorkError` if it does not export."""
    module = module.eval().cpu().float()
    graph = _quick(module, size_px) or _thorough(module, architecture, size_px)
    write_whole(path, lambda file: file.write(graph))


def _quick(module: nn.Module, size_px: int) -> bytes | None:
    """The quick exporter's graph; None where it fails or answers otherwise than the network."""
    try:
        graph = quick_graph(module, torch.zeros(2, 3, size_px, size_px), "logits")
        answers = OnnxAnswerer(graph)
        for count in (1, 3):  # of other sizes than the example's
            pixels = torch.linspace(-2, 2, count * 3 * size_px**2).view(count, 3, size_px, size_px)
            logits = answers(pixels.numpy())
            with torch.inference_mode():
                expected = module(pixels).numpy()
            if not np.allclose(logits, expected, rtol=1e-3, atol=1e-4):
                return None
    # Exporter, runtime and network each raise whatever they like.
    except Exception:
        return None
    return graph


def _thorough(module: nn.Module, architecture: str, size_px: int) -> bytes:
    import onnxscript.optimizer  # takes a second, and is seldom needed

    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (torch.zeros(2, 3, size_px, size_px),),
                dynamo=True,
                optimize=False,  # the optimiser below folds more
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["pixels"],
                output_names=["logits"],
                verbose=False,
            )
            assert program is not None
            graph = program.model_proto
            # The exporter notes source lines of this machine in every node.
            for node in graph.graph.node:
                del node.metadata_props[:]
                node.doc_string = ""
            data: bytes = onnxscript.optimizer.optimize(graph).SerializeToString()
    # The exporter raises its own, torch.export's and the network's errors.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise WorkError(f"{architecture} could not be exported to ONNX: {why}") from error
    return data


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress notes and deprecations of its own making are not the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
