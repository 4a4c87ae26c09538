"""What can run a frozen trunk: torch, ONNX Runtime, OpenVINO. All answer alike, not all as fast.

Every engine takes pictures in bytes and gives the trunk's outputs with channels last, as the
tail's layers want them in memory. Normalisation is a part of the network that is compiled.
"""

from __future__ import annotations

import io
from functools import cache
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from torch import nn

from vizsla.data.transforms import Preprocessing
from vizsla.extras import require
from vizsla.models.onnx_graph import quick_graph

# All engines see batches of this size; a shorter one is filled up. So the outputs of a picture
# do not depend on how many others were left to compute, and a compiled shape always fits.
BATCH = 32


class TrunkEngine(Protocol):
    """Runs one trunk. Called from one thread at a time; keeps nothing between calls."""

    @property
    def name(self) -> str:
        """As the setting `trunk_engine` calls it."""
        ...

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Bytes (BATCH, height, width, 3) to outputs (BATCH, …), channels last, on the host."""
        ...


class PixelTrunk(nn.Module):
    """The trunk with its normalisation: bytes in, outputs with channels last out."""

    def __init__(self, trunk: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        scale, shift = preprocessing.scale_and_shift()
        device = next(trunk.parameters()).device
        self.trunk = trunk
        self.size_px = preprocessing.size_px
        self._scale = torch.from_numpy(scale).to(device).view(1, 3, 1, 1)
        self._shift = torch.from_numpy(shift).to(device).view(1, 3, 1, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        inputs = pixels.permute(0, 3, 1, 2).to(torch.float32) * self._scale - self._shift
        outputs: torch.Tensor = self.trunk(inputs)
        return outputs.permute(0, 2, 3, 1) if outputs.ndim == 4 else outputs


class TorchTrunk:
    """The trunk as it is, on its device; in bf16 where asked."""

    name = "torch"

    def __init__(self, module: PixelTrunk, bf16: bool = False) -> None:
        self._module = module
        self._device = next(module.parameters()).device
        self._bf16 = bf16

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            outputs: torch.Tensor = self._module(pixels.to(self._device, non_blocking=True))
        return outputs.cpu()


class OnnxTrunk:
    """The trunk in ONNX Runtime, on the processor, in float32."""

    name = "onnxruntime"

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        # Threads that spin between batches take the cores from those that decode pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        (outputs,) = self._session.run(None, {"pixels": pixels.numpy()})
        return torch.from_numpy(outputs)


class OpenVinoTrunk:
    """The trunk in OpenVINO, on the processor; in bf16 where asked and native."""

    name = "openvino"

    def __init__(self, graph: bytes, size_px: int, bf16: bool = False) -> None:
        core = _core(require("openvino", "openvino", "The trunk engine openvino"))
        native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        threads = torch.get_num_threads()
        # Several streams of one thread or few, each with its own part of the batch, keep all
        # cores busier than all threads on one part.
        self._parts = next(count for count in (8, 4, 2, 1) if count <= threads)
        model = core.read_model(io.BytesIO(graph))
        model.reshape([BATCH // self._parts, size_px, size_px, 3])
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if bf16 and native else "f32",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": self._parts,
            },
        )
        self._compiled = compiled
        self._requests = [compiled.create_infer_request() for _ in range(self._parts)]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        parts = np.split(pixels.numpy(), self._parts)
        for request, part in zip(self._requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        outputs = []
        for request in self._requests:
            request.wait()
            outputs.append(request.get_output_tensor().data.copy())
        return torch.from_numpy(np.concatenate(outputs))


@cache
def _core(openvino: ModuleType) -> Any:
    """One for the process, and never given up: when the last goes, OpenVINO unloads its plugins,
    and a process that has used them crashes some time later (seen with 2026.4)."""
    return openvino.Core()


def to_onnx(module: PixelTrunk) -> bytes:
    """The trunk as an ONNX graph with input `pixels`; hold its answers against the trunk's."""
    example = torch.zeros(2, module.size_px, module.size_px, 3, dtype=torch.uint8)
    return quick_graph(module, example, "features")


def full_batch(pixels: torch.Tensor) -> torch.Tensor:
    """The pictures, filled up with the first one to BATCH."""
    missing = BATCH - len(pixels)
    return torch.cat([pixels, pixels[:1].expand(missing, -1, -1, -1)]) if missing else pixels
