"""vizsla: from a folder of labelled pictures to a classifier that answers.

Names are resolved when first used, so that `import vizsla` stays light: no torch, no timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vizsla.version import __version__

if TYPE_CHECKING:
    from vizsla.api import (
        debug,
        evaluate,
        export,
        open_run,
        open_study,
        predict,
        report,
        serve,
        train,
        tune,
    )
    from vizsla.bundle.predictor import Predictor, load_bundle
    from vizsla.errors import VizslaError
    from vizsla.records import Prediction
    from vizsla.run import Run
    from vizsla.runs.folder import RunFolder
    from vizsla.settings import Recipe, Settings
    from vizsla.tuning.study import Study

_HOMES = {
    "Prediction": "vizsla.records",
    "Predictor": "vizsla.bundle.predictor",
    "Recipe": "vizsla.settings",
    "Run": "vizsla.run",
    "RunFolder": "vizsla.runs.folder",
    "Settings": "vizsla.settings",
    "Study": "vizsla.tuning.study",
    "VizslaError": "vizsla.errors",
    "debug": "vizsla.api",
    "evaluate": "vizsla.api",
    "export": "vizsla.api",
    "load_bundle": "vizsla.bundle.predictor",
    "open_run": "vizsla.api",
    "open_study": "vizsla.api",
    "predict": "vizsla.api",
    "report": "vizsla.api",
    "serve": "vizsla.api",
    "train": "vizsla.api",
    "tune": "vizsla.api",
}

__all__ = [
    "Prediction",
    "Predictor",
    "Recipe",
    "Run",
    "RunFolder",
    "Settings",
    "Study",
    "VizslaError",
    "__version__",
    "debug",
    "evaluate",
    "export",
    "load_bundle",
    "open_run",
    "open_study",
    "predict",
    "report",
    "serve",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vizsla' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
