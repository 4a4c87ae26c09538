"""NVIDIA's graphics cards, by NVML: use, memory, power, temperature.

Cards are numbered as the program sees them: those that CUDA_VISIBLE_DEVICES names, in its order,
else all of them in NVML's. (CUDA puts unlike cards the fastest first unless CUDA_DEVICE_ORDER is
PCI_BUS_ID; like ones agree.) A card that does not tell a number, as a slice of one (MIG) does not
tell its use, is without that number.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from vizsla.profiling.counters import Sample

# Bits of NVML's reasons for a lower clock that mean heat: hardware, software's, hardware's thermal.
_HEAT = 0x08 | 0x20 | 0x40
_CORE_SENSOR = 0


class Gpus:
    """`gpus`: a mapping of `format.SAMPLED_OF_GPU` for each card. A source as in `counters.py`.

    `nvml` is the module `pynvml`, imported here unless one is given. To be closed.
    """

    def __init__(self, nvml: Any = None, visible: str | None = None) -> None:
        self.missing: list[str] = []
        self._nvml = nvml
        self._cards: list[Any] = []
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
        self._is_open = self._open()
        if self._is_open:
            self._cards = _visible_cards(self._nvml, visible)
            if not self._cards:
                hidden = "CUDA_VISIBLE_DEVICES hides them" if visible is not None else "none"
                self.missing.append(f"GPUs ({hidden})")

    def describe(self) -> list[dict[str, Any]]:
        """Name and memory of each card."""
        return [self._described(card) for card in self._cards]

    def read(self, sample: Sample, seconds: float) -> None:
        if self._cards:
            sample["gpus"] = [self._numbers(card) for card in self._cards]

    def close(self) -> None:
        """Let go of NVML."""
        if self._is_open:
            self._is_open, self._cards = False, []
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()

    def _open(self) -> bool:
        try:
            if self._nvml is None:
                self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
        except Exception as error:  # NVML's own, ImportError, or a driver in the midst of an update
            self.missing.append(f"GPUs (NVML: {str(error).strip().rstrip('.') or 'not there'})")
            return False
        return True

    def _described(self, card: Any) -> dict[str, Any]:
        name = _told(lambda: self._nvml.nvmlDeviceGetName(card))
        memory = _told(lambda: self._nvml.nvmlDeviceGetMemoryInfo(card).total)
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        return {"name": str(name or "GPU"), "memory_bytes": int(memory or 0)}

    def _numbers(self, card: Any) -> dict[str, float]:
        nvml = self._nvml
        memory = _told(lambda: nvml.nvmlDeviceGetMemoryInfo(card))
        numbers = {
            "utilization": _told(lambda: nvml.nvmlDeviceGetUtilizationRates(card).gpu),
            "memory": _told(lambda: round(100 * memory.used / memory.total, 2)),
            "memory_bytes": _told(lambda: memory.used),
            "watts": _told(lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1000),
            "celsius": _told(lambda: nvml.nvmlDeviceGetTemperature(card, _CORE_SENSOR)),
            "throttled": _told(lambda: self._is_slowed(card)),
        }
        return {name: number for name, number in numbers.items() if number is not None}

    def _is_slowed(self, card: Any) -> int:
        return int(bool(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card) & _HEAT))


def _told(ask: Callable[[], Any]) -> Any:
    """What a card answers; None where it does not know, is busy, or was lost."""
    try:
        return ask()
    except Exception:
        return None


def _visible_cards(nvml: Any, visible: str | None) -> list[Any]:
    """Handles of the cards that a program with this CUDA_VISIBLE_DEVICES sees, in its order."""
    count = _told(nvml.nvmlDeviceGetCount) or 0
    handles = [_told(partial(nvml.nvmlDeviceGetHandleByIndex, at)) for at in range(count)]
    if visible is None:
        return [handle for handle in handles if handle is not None]
    chosen = []
    for name in visible.split(","):
        card = _card_called(nvml, name.strip(), handles)
        if card is None:  # CUDA too stops at the first that is none
            break
        chosen.append(card)
    return chosen


def _card_called(nvml: Any, name: str, handles: Sequence[Any]) -> Any:
    """The card of an index, of a UUID or its beginning, or the slice of a card; None if none."""
    if name.isdecimal():
        return handles[int(name)] if int(name) < len(handles) else None
    if name.startswith("MIG-"):
        return _told(lambda: nvml.nvmlDeviceGetHandleByUUID(name))
    if not name.startswith("GPU-"):
        return None
    for handle in handles:
        uuid = _told(partial(nvml.nvmlDeviceGetUUID, handle))
        uuid = uuid.decode(errors="replace") if isinstance(uuid, bytes) else uuid
        if uuid is not None and uuid.startswith(name):
            return handle
    return None
