"""A bundle answers over HTTP, and programs ask it. Nothing here imports torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vizsla.bundle.predictor import Predictor
    from vizsla.serving.client import Client
    from vizsla.serving.server import serve
    from vizsla.serving.settings import ServeSettings

_HOMES = {
    "Client": "vizsla.serving.client",
    "Predictor": "vizsla.bundle.predictor",
    "ServeSettings": "vizsla.serving.settings",
    "serve": "vizsla.serving.server",
}

__all__ = ["Client", "Predictor", "ServeSettings", "serve"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vizsla.serving' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
