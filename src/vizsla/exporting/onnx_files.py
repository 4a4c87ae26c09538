"""An ONNX file or graph as a function from inputs to logits, on the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class OnnxAnswerer:
    """Logits (batch, classes) of prepared inputs (batch, 3, size, size)."""

    def __init__(self, source: Path | bytes, threads: int | None = None) -> None:
        """Opens a file, or a graph's bytes; `threads` are all cores unless given."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # As where it serves: threads that go on spinning take the cores from what comes next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = onnxruntime.InferenceSession(
            source if isinstance(source, bytes) else str(source),
            options,
            providers=["CPUExecutionProvider"],
        )

    def __call__(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        given: dict[str, Any] = {"pixels": inputs}
        logits: NDArray[np.float32] = self._session.run(["logits"], given)[0]
        return logits
