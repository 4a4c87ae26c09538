"""Optional packages: imported where they are needed, with the install line when missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from vizsla.errors import DependencyError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """The optional `module`, or an error that says which extra of vizsla brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{purpose} needs the package {module!r}, which is not installed; "
            f"install it with: pip install 'vizsla[{extra}]'"
        ) from error
