"""What a network costs where it serves: the size of its file and the time of one answer.

Both depend on the architecture and the size of its pictures, not on what was learnt, so each
network is measured once and noted, and trials of the same network have the same figures. What else
the machine does at that moment is in them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from filelock import FileLock

from vizsla.exporting.onnx import export_onnx
from vizsla.exporting.onnx_files import OnnxAnswerer
from vizsla.models.build import Network, rebuild
from vizsla.runs.files import write_json

_ANSWERS = 30


def footprint_of(network: Network, class_count: int, notes: Path) -> dict[str, float]:
    """`size_mb` of the ONNX file and `latency_ms` of one picture on one core with ONNX Runtime,
    without decoding: the least of 30 answers. From `notes`, or measured and noted there.

    Raises `WorkError` where the network does not export.
    """
    facts = [
        network.architecture,
        network.arguments,
        network.preprocessing.size_px,
        class_count,
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    notes.mkdir(parents=True, exist_ok=True)
    note = notes / f"{key}.json"
    with FileLock(notes / f"{key}.lock"):
        if note.is_file():
            noted: dict[str, float] = json.loads(note.read_text(encoding="utf-8"))["figures"]
            return noted
        figures = _measured(network, class_count)
        write_json(note, {"network": facts, "figures": figures})
    return figures


def _measured(network: Network, class_count: int) -> dict[str, float]:
    size_px = network.preprocessing.size_px
    module = rebuild(network.architecture, network.arguments, class_count)
    with tempfile.TemporaryDirectory(prefix="vizsla-footprint-") as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(module, network.architecture, size_px, path)
        size_bytes = path.stat().st_size
        seconds = _answer_seconds(path, size_px)
    return {"size_mb": size_bytes / 1e6, "latency_ms": seconds * 1e3}


def _answer_seconds(path: Path, size_px: int) -> float:
    answers = OnnxAnswerer(path, threads=1)
    inputs = np.zeros((1, 3, size_px, size_px), np.float32)
    spans = []
    for _ in range(_ANSWERS):
        started = time.perf_counter()
        answers(inputs)
        spans.append(time.perf_counter() - started)
    return min(spans)
