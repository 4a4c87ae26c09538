"""Where vizsla keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache: `VIZSLA_CACHE`, else in the user's cache. It need not be there."""
    chosen = os.environ.get("VIZSLA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vizsla"
