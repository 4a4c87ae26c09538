"""What runs a bundle's network for the server: ONNX Runtime, or OpenVINO where it is installed.

Every engine has two ways: `alone`, one picture with all threads, and a batch with one thread of its
own, which several lanes may run side by side. Which one is taken is `engine_choice.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vizsla.bundle.format import ONNX_FILE
from vizsla.bundle.predictor import Predictor, open_session
from vizsla.extras import require

Pixels = NDArray[np.float32]


class Engine(Protocol):
    """Runs one network, from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str:
        """What it computes in, in a word."""
        ...

    def __call__(self, inputs: Pixels, alone: bool = False) -> NDArray[np.float32]:
        """Logits (batch, classes) of prepared pictures (batch, 3, size, size)."""
        ...


class OnnxEngine:
    """ONNX Runtime on the processor, in the precision of the file."""

    name = "onnxruntime"

    def __init__(self, predictor: Predictor, threads: int) -> None:
        self.precision = "as exported"
        self._narrow = predictor.logits
        self._wide = None if threads == 1 else open_session(predictor.folder / ONNX_FILE, threads)

    def __call__(self, inputs: Pixels, alone: bool = False) -> NDArray[np.float32]:
        if not alone or self._wide is None:
            return self._narrow(inputs)
        logits: NDArray[np.float32] = self._wide.run(["logits"], {"pixels": inputs})[0]
        return logits


class OpenVinoEngine:
    """OpenVINO on the processor, in bf16 where that is native; int8 stays int8."""

    name = "openvino"

    def __init__(self, predictor: Predictor, threads: int) -> None:
        openvino = require("openvino", "openvino", "The engine openvino")
        self._core = openvino.Core()
        native = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if native else "f32"
        self._model = self._core.read_model(str(predictor.folder / ONNX_FILE))
        # A stream a thread: each lane has one of its own.
        self._narrow = self._compiled(threads, streams=threads)
        self._wide = self._compiled(threads, streams=1) if threads > 1 else self._narrow

    def __call__(self, inputs: Pixels, alone: bool = False) -> NDArray[np.float32]:
        request = (self._wide if alone else self._narrow).create_infer_request()
        answers = request.infer([inputs], share_inputs=True)
        logits: NDArray[np.float32] = np.array(next(iter(answers.values())), np.float32)
        return logits

    def _compiled(self, threads: int, streams: int) -> Any:
        return self._core.compile_model(
            self._model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
            },
        )


KINDS: dict[str, Callable[[Predictor, int], Engine]] = {
    "onnxruntime": OnnxEngine,
    "openvino": OpenVinoEngine,
}
