"""What every rival server runs for a batch of bodies: vizsla's own decoding, the same ONNX file.

Only the server around it differs. Imports of vizsla are its NumPy-only modules, found by
PYTHONPATH; the rival's environment has ONNX Runtime, NumPy and Pillow of vizsla's versions.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vizsla.bundle.predictor import load_bundle


class Model:
    """Answers batches with `threads` cores: decoding spread over them, then the network."""

    def __init__(self, bundle: str, threads: int) -> None:
        self._predictor = load_bundle(bundle, threads=threads)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def answers(self, bodies: list[bytes]) -> list[bytes]:
        """One JSON answer a body, of the same content as vizsla's."""
        prepare = self._predictor.prepare
        if self._pool is not None and len(bodies) > 1:
            inputs = list(self._pool.map(prepare, bodies))
        else:
            inputs = [prepare(body) for body in bodies]
        rows = self._predictor.probabilities(np.stack(inputs))
        return [json.dumps(self._facts(row)).encode() for row in rows]

    def _facts(self, row: np.ndarray) -> dict[str, object]:
        found = self._predictor.ranked(row, 5)
        return {
            "predicted_label": found.predicted_label,
            "class_name": found.class_name,
            "confidence": found.confidence,
            "top_k": [
                {"label": one.label, "class_name": one.class_name, "confidence": one.confidence}
                for one in found.top_k
            ],
        }


def options() -> argparse.Namespace:
    """The command line that all rival servers share."""
    made = argparse.ArgumentParser()
    made.add_argument("bundle", type=Path)
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--workers", type=int, default=1)
    made.add_argument("--threads", type=int, default=2, help="of each worker")
    made.add_argument("--batch", type=int, default=8, help="largest batch; 1 for none")
    return made.parse_args()
