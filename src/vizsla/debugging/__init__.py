"""See inside training, and be told what is wrong: capture tensors, judge them, act on findings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vizsla.debugging.format import modes
    from vizsla.debugging.rules.base import DebugRule
    from vizsla.debugging.settings import DebugSettings
    from vizsla.debugging.tensors import Tensors, create_trial, open_tensors
    from vizsla.debugging.watching import Debugger, watch
    from vizsla.findings import Finding

_HOMES = {
    "DebugRule": "vizsla.debugging.rules.base",
    "DebugSettings": "vizsla.debugging.settings",
    "Debugger": "vizsla.debugging.watching",
    "Finding": "vizsla.findings",
    "Tensors": "vizsla.debugging.tensors",
    "create_trial": "vizsla.debugging.tensors",
    "modes": "vizsla.debugging.format",
    "open_tensors": "vizsla.debugging.tensors",
    "watch": "vizsla.debugging.watching",
}

__all__ = [
    "DebugRule",
    "DebugSettings",
    "Debugger",
    "Finding",
    "Tensors",
    "create_trial",
    "modes",
    "open_tensors",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vizsla.debugging' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
