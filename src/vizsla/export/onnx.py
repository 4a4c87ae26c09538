"""A trained network as an ONNX file.

Tracing a network takes seconds to tens of seconds and depends on its shape alone, not on its
weights. So the traced graph is kept in the user's cache, without weights; an export fills in the
weights by name and lets the ONNX optimiser fold them (a batch norm into the convolution before
it, say). A second export of one architecture takes about a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxscript.optimizer
import torch
from torch import nn

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.data.archive import cache_folder
from vizsla.errors import StorageError, WorkError
from vizsla.runs.files import write_whole

# isort: split
import timm

_GRAPH_VERSION = 2
OPSET = 18


def export_onnx(
    module: nn.Module, architecture: str, arguments: dict[str, Any], size_px: int, path: Path
) -> None:
    """Write `module` to `path`: input `pixels` (batch, 3, size_px, size_px) float32, normalised;
    output `logits` (batch, classes) float32. Raises `WorkError` if it does not export."""
    module = module.eval().cpu().float()
    cached = _graph_path(architecture, arguments, _class_count(module), size_px)
    graph = _read(cached)
    if graph is None or not _fill(graph, module):
        graph = _traced(module, architecture, size_px)
        _write_bare(graph, set(module.state_dict()), cached)
    with _quiet():
        optimised = onnxscript.optimizer.optimize(graph)
    data = optimised.SerializeToString()
    write_whole(path, lambda file: file.write(data))


def _traced(module: nn.Module, architecture: str, size_px: int) -> onnx.ModelProto:
    example = torch.zeros(2, 3, size_px, size_px)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                optimize=False,  # keeps each weight under its own name
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["pixels"],
                output_names=["logits"],
                verbose=False,
            )
    # The exporter raises its own, torch.export's and the network's errors.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise WorkError(f"{architecture} could not be exported to ONNX: {why}") from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    # The exporter notes source lines of the machine in every node; they are of no use elsewhere.
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    return proto


def _fill(graph: onnx.ModelProto, module: nn.Module) -> bool:
    """Put the module's tensors into the graph by name; False if one is of another shape."""
    tensors = module.state_dict()
    for initializer in graph.graph.initializer:
        tensor = tensors.get(initializer.name)
        if tensor is None:
            continue  # a constant of the graph itself, kept in the cache
        if list(tensor.shape) != list(initializer.dims):
            return False
        initializer.raw_data = tensor.detach().cpu().contiguous().numpy().tobytes()
    return True


def _write_bare(graph: onnx.ModelProto, weights: set[str], path: Path) -> None:
    """Keep the graph without weights for the next export; a cache that fails only costs time."""
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    for initializer in bare.graph.initializer:
        if initializer.name in weights:  # the graph's own constants stay
            initializer.ClearField("raw_data")
    with contextlib.suppress(StorageError, OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = bare.SerializeToString()
        write_whole(path, lambda file: file.write(hashlib.sha256(data).digest() + data))


def _read(path: Path) -> onnx.ModelProto | None:
    """The kept graph, or None where there is none or it is damaged: tracing again cures that."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    # A damaged graph may well parse, and answer wrongly; so its hash stands before it.
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() != digest:
        return None
    return onnx.load_model_from_string(data)


def _graph_path(
    architecture: str, arguments: dict[str, Any], class_count: int, size_px: int
) -> Path:
    versions = [_GRAPH_VERSION, OPSET, torch.__version__, timm.__version__, onnxscript.__version__]
    key = json.dumps([architecture, arguments, class_count, size_px, versions], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:20]
    return cache_folder() / "graphs" / f"{architecture.replace(os.sep, '_')}-{digest}.graph"


def _class_count(module: nn.Module) -> int:
    return int(module.num_classes)  # type: ignore[arg-type]


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
