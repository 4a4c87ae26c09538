"""Whether an exported file answers as the network that it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla.exporting.onnx_files import OnnxAnswerer
from vizsla.findings import Finding

# Ten times the differences seen between the two runtimes in float32, a tenth of what could move
# a probability by the 1e-4 that a bundle promises.
LARGEST_DIFFERENCE = 1e-4


def verify_onnx(
    module: nn.Module,
    path: Path,
    inputs: NDArray[np.float32],
    threshold: float = LARGEST_DIFFERENCE,
) -> list[Finding]:
    """Compare the probabilities of `path` with the module's on real `inputs` (n, 3, h, w)."""
    with torch.inference_mode():
        expected = module.eval()(torch.from_numpy(inputs)).softmax(dim=1).numpy()
    logits = torch.from_numpy(OnnxAnswerer(path)(inputs))
    difference = float(np.abs(logits.softmax(dim=1).numpy() - expected).max())
    if difference <= threshold:
        return []
    return [
        Finding(
            rule="export_mismatch",
            severity="error",
            where=path.name,
            measured=difference,
            threshold=threshold,
            meaning="The exported network's probabilities differ from the trained network's.",
            advice="Do not deploy this file; use model.safetensors, and report the architecture.",
            evidence={"pictures": len(inputs)},
        )
    ]
