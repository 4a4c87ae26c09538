"""Which engine serves a network: the fastest of those installed that answers alike.

Both are tried in a process of its own, for a fraction of a second each, so that the server's own
memory holds only the one that is taken. What was found is noted in the cache, by network, threads,
processor and versions, and the next start begins at once.

    python -m vizsla.serving.engine_choice BUNDLE THREADS BATCH

is that process; it prints what it found as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.bundle.format import ONNX_FILE
from vizsla.bundle.predictor import Predictor, load_bundle
from vizsla.checksum import sha256_of
from vizsla.errors import SettingError
from vizsla.metrics import log_softmax
from vizsla.places import cache_folder
from vizsla.serving.engines import KINDS, Engine, OnnxEngine, Pixels

# Lower precision may move a probability a little; an engine that moves one by more is not taken.
LARGEST_DIFFERENCE = 0.02
_MEASURED_S = 0.15
_LONGEST_S = 120.0

# By name: milliseconds for one picture alone (`alone_ms`) and for each of a batch on one thread
# (`batch_ms`), the `largest_difference` of a probability from ONNX Runtime's; or that it `failed`.
Found = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """The engine's name, and what was measured; nothing where there was nothing to choose."""

    name: str
    found: Found


def choose_engine(folder: Path, wanted: str, threads: int, batch: int) -> Choice:
    """The engine for the bundle in `folder`: `wanted`, or with auto the fastest of those installed.

    Raises `SettingError` where the one that is asked for answers otherwise than ONNX Runtime.
    """
    others = [name for name in KINDS if name != "onnxruntime" and _is_installed(name)]
    if wanted == "onnxruntime" or not others:
        return Choice("onnxruntime" if wanted == "auto" else wanted, {})
    found = _noted_or_measured(folder, threads, batch)
    good = [name for name, one in found.items() if _answers_alike(one)]
    if wanted == "auto":
        # Under load each picture takes a thread for `batch_ms`, which is what counts.
        return Choice(min(good, key=lambda name: float(found[name]["batch_ms"])), found)
    if wanted not in good:
        raise SettingError(
            f"The engine {wanted} does not answer as ONNX Runtime does for {folder} "
            f"({found.get(wanted, {})}); use --engine onnxruntime."
        )
    return Choice(wanted, found)


def measure(folder: Path, threads: int, batch: int) -> Found:
    """What each installed engine takes for the network of the bundle in `folder`."""
    predictor = load_bundle(folder, threads=1)
    reference = OnnxEngine(predictor, threads)
    sample = _sample(predictor)
    expected = _probabilities(reference(sample), predictor)
    found: Found = {}
    for name, kind in KINDS.items():
        if not _is_installed(name):
            continue
        try:
            engine = kind(predictor, threads)
            difference = np.abs(_probabilities(engine(sample), predictor) - expected).max()
            alone, each = _measured(engine, sample[:1], batch)
        except Exception as error:  # whatever an engine raises for a network it cannot run
            found[name] = {"failed": str(error).splitlines()[0][:200]}
            continue
        found[name] = {
            "alone_ms": round(alone * 1e3, 2),
            "batch_ms": round(each * 1e3, 2),
            "largest_difference": round(float(difference), 6),
        }
    return found


def _answers_alike(one: dict[str, Any]) -> bool:
    return float(one.get("largest_difference", np.inf)) <= LARGEST_DIFFERENCE


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _noted_or_measured(folder: Path, threads: int, batch: int) -> Found:
    facts = [
        sha256_of(folder / ONNX_FILE),
        threads,
        batch,
        _processor(),
        *(version(name) for name in KINDS if _is_installed(name)),
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    note = cache_folder() / "serving" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        noted: Found = json.loads(note.read_text(encoding="utf-8"))
        return noted
    found = _measured_apart(folder, threads, batch)
    if all("failed" not in one for one in found.values()):
        with contextlib.suppress(OSError):  # a disk that is full or read-only: measured again
            note.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=note.parent, delete=False) as file:
                json.dump(found, file)
            os.replace(file.name, note)
    return found


def _measured_apart(folder: Path, threads: int, batch: int) -> Found:
    """`measure` in a process of its own, which may even crash."""
    command = [sys.executable, "-m", __name__, str(folder), str(threads), str(batch)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S)
        found: Found = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        found = {}
    if "batch_ms" not in found.get("onnxruntime", {}):  # then there is nothing to prefer
        found = {name: {"failed": "it could not be measured"} for name in KINDS}
        found["onnxruntime"] = {"largest_difference": 0.0, "batch_ms": 0.0}
    return found


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _sample(predictor: Predictor) -> Pixels:
    """Four pictures of coarse chance, which excite a network more than an even ground does."""
    size = predictor.facts.preprocessing.size_px
    coarse = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    times = -(-size // 8)
    pixels = coarse.repeat(times, axis=1).repeat(times, axis=2)[:, :size, :size]
    return predictor.facts.preprocessing.normalise(pixels)


def _probabilities(logits: NDArray[np.float32], predictor: Predictor) -> NDArray[np.float64]:
    probabilities: NDArray[np.float64] = np.exp(log_softmax(logits / predictor.facts.temperature))
    return probabilities


def _measured(engine: Engine, one: Pixels, batch: int) -> tuple[float, float]:
    """Seconds of a picture alone, and of each of a batch on one thread: the least of a few."""
    several = np.repeat(one, batch, axis=0)
    return _least(lambda: engine(one, alone=True)), _least(lambda: engine(several)) / batch


def _least(run: Callable[[], object]) -> float:
    run()
    spans: list[float] = []
    began = time.perf_counter()
    while len(spans) < 3 or time.perf_counter() - began < _MEASURED_S:
        started = time.perf_counter()
        run()
        spans.append(time.perf_counter() - started)
    return min(spans)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
