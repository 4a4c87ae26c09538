"""Which engine runs a trunk: the fastest here that answers as torch does in float32.

The trial takes a few seconds and its outcome is remembered in the cache folder, by network,
machine and versions. An engine is held against torch on real pictures every time before it is
used, also where it was named by the user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from vizsla.errors import DependencyError, ModelError
from vizsla.models.trunk_engines import (
    OnnxTrunk,
    OpenVinoTrunk,
    PixelTrunk,
    TorchTrunk,
    TrunkEngine,
    full_batch,
    to_onnx,
)
from vizsla.places import cache_folder

# The one that is most often slowest comes last, since a slow one is not timed to the end.
ENGINES = ("openvino", "onnxruntime", "torch")
LARGEST_ERROR = 0.02  # of an output vector's length, in the worst picture
_TRIAL_S = 0.6
_HOPELESS = 2
_CHECKED_PICTURES = 8
# Below this many passes a trial would take longer than it saves.
_WORTH_A_TRIAL = 256


@dataclass(frozen=True)
class EngineChoice:
    """The engine, and `why` in words: measured, remembered, or the only one that fits."""

    engine: TrunkEngine
    why: str


class EngineChooser:
    """Chooses the engine of one trunk; for a run that is taken up again the one of `before`, if it
    can still be used."""

    def __init__(
        self,
        module: PixelTrunk,
        structure: str,
        bf16: bool,
        deterministic: bool,
        before: str | None = None,
    ) -> None:
        self._before = before
        self._module = module
        self._bf16 = bf16
        self._deterministic = deterministic
        self._on_processor = next(module.parameters()).device.type == "cpu"
        self._key = _situation(structure, module.size_px, bf16)
        self._graph: bytes | None = None
        self._expected: torch.Tensor | None = None  # torch's answers to the first pictures

    def choose(self, wanted: str, pictures: torch.Tensor, passes: int) -> EngineChoice:
        """The engine `wanted`, or for `auto` the fastest, for so many `passes`.

        `pictures` (up to BATCH, in bytes) are what engines are checked and timed with. Raises
        `ModelError` or `DependencyError` if the engine that the user named cannot be used.
        """
        try:
            return self._chosen(wanted, pictures, passes)
        finally:  # both may be large, and are of no more use
            self._graph = self._expected = None

    def _chosen(self, wanted: str, pictures: torch.Tensor, passes: int) -> EngineChoice:
        if wanted != "auto":
            return EngineChoice(self._checked(wanted, pictures), "as set")
        if not self._on_processor:
            return self._first_usable(("torch",), pictures, "for this device")
        if self._deterministic:  # a clock's choice may differ from run to run
            return self._first_usable(("onnxruntime", "torch"), pictures, "deterministic")
        before = self._before if self._before in ENGINES else None
        remembered = before or _recall(self._key)
        if remembered is not None:
            return self._first_usable((remembered, "torch"), pictures, "measured before")
        if passes < _WORTH_A_TRIAL:
            return self._first_usable(("torch",), pictures, "few passes")
        return self._fastest(pictures)

    def _fastest(self, pictures: torch.Tensor) -> EngineChoice:
        batch, rates = full_batch(pictures), dict[str, float]()
        best: TrunkEngine = TorchTrunk(self._module)
        for name in ENGINES:
            highest = max(rates.values(), default=0.0)
            try:
                engine = self._checked(name, pictures)
                rates[name] = _pictures_per_second(engine, batch, highest)
            except (ModelError, DependencyError):
                continue
            if rates[name] > highest:
                best = engine
            del engine  # the slower one's memory goes before the next is tried
        if not rates:
            return EngineChoice(best, "no other engine can be used")
        _remember(self._key, best.name, rates)
        shown = ", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items())
        return EngineChoice(best, f"measured: {shown}")

    def _first_usable(
        self, names: tuple[str, ...], pictures: torch.Tensor, why: str
    ) -> EngineChoice:
        for name in names:
            try:
                return EngineChoice(self._checked(name, pictures), why)
            except (ModelError, DependencyError):
                continue
        return EngineChoice(TorchTrunk(self._module), "no other engine can be used")

    def _checked(self, name: str, pictures: torch.Tensor) -> TrunkEngine:
        """The engine, if it answers as torch does in float32; in bf16 where that is asked for and
        near enough, else in float32."""
        error = math.nan
        for bf16 in (True, False) if self._bf16 and name != "onnxruntime" else (False,):
            engine = self._build(name, bf16)
            if name == "torch" and not bf16:
                return engine
            error = self._error(engine, pictures[:_CHECKED_PICTURES])
            if error < LARGEST_ERROR:  # NaN is not
                return engine
        raise ModelError(
            f"The trunk engine {name} is off by {error:.1%} from torch in float32 on this "
            f"network, and {LARGEST_ERROR:.0%} is allowed; set trunk_engine to torch."
        )

    def _error(self, engine: TrunkEngine, few: torch.Tensor) -> float:
        """How far the engine's answers are from torch's, as a share, in the worst picture."""
        if self._expected is None:
            self._expected = TorchTrunk(self._module)(few).flatten(1).double()
        expected = self._expected
        got = engine(full_batch(few))[: len(few)].flatten(1).double()
        return float(((got - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)).max())

    def _build(self, name: str, bf16: bool) -> TrunkEngine:
        if name == "torch":
            return TorchTrunk(self._module, bf16)
        if not self._on_processor:
            raise ModelError(
                f"The trunk engine {name} runs on the processor, and the network lies on "
                f"{next(self._module.parameters()).device}; set trunk_engine to torch."
            )
        try:
            if name == "onnxruntime":
                return OnnxTrunk(self._exported())
            return OpenVinoTrunk(self._exported(), self._module.size_px, bf16)
        except DependencyError:
            raise
        # Exporters and engines raise whatever they like on a network that they cannot take.
        except Exception as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ModelError(
                f"The trunk engine {name} cannot run this network: {why.rstrip('.')}. Set "
                "trunk_engine to torch."
            ) from error

    def _exported(self) -> bytes:
        if self._graph is None:
            self._graph = to_onnx(self._module)
        return self._graph


def _pictures_per_second(engine: TrunkEngine, batch: torch.Tensor, so_far: float) -> float:
    """The rate of the fastest of several calls, or of the first where that has no chance against
    the best rate `so_far`."""
    best, started = float("inf"), time.perf_counter()
    while time.perf_counter() - started < _TRIAL_S:
        call = time.perf_counter()
        engine(batch)
        best = min(best, time.perf_counter() - call)
        if len(batch) / best < so_far / _HOPELESS:
            break
    return len(batch) / best


def _situation(structure: str, size_px: int, bf16: bool) -> str:
    """What the outcome of a trial depends on, as a key."""
    machine = [platform.machine(), platform.processor(), _processor(), torch.get_num_threads()]
    versions = [_version(name) for name in ("torch", "onnxruntime", "openvino")]
    facts = json.dumps([structure, size_px, bf16, machine, versions])
    return hashlib.sha256(facts.encode()).hexdigest()[:20]


def _processor() -> str:
    """The processor's name, where the system has it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _memory() -> dict[str, dict[str, object]]:
    """What was chosen before; nothing where the file is missing or damaged."""
    try:
        facts = json.loads((cache_folder() / "engines.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _recall(key: str) -> str | None:
    entry = _memory().get(key)
    name = entry.get("engine") if isinstance(entry, dict) else None
    return name if name in ENGINES else None


def _remember(key: str, name: str, rates: dict[str, float]) -> None:
    facts = _memory()
    facts[key] = {"engine": name, "pictures_per_second": {k: round(v, 1) for k, v in rates.items()}}
    path = cache_folder() / "engines.json"
    scratch = path.with_name(f".engines.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, path)
    except OSError:  # it will be measured again
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
