"""See where time goes: sample the machine, time the parts of each step, judge both."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vizsla.profiling.judging import judge_profile
    from vizsla.profiling.profiler import LoopProfiler, profile
    from vizsla.profiling.recorded import Profile, open_profile
    from vizsla.profiling.rules.base import ProfileRule
    from vizsla.profiling.settings import ProfileSettings

_HOMES = {
    "LoopProfiler": "vizsla.profiling.profiler",
    "Profile": "vizsla.profiling.recorded",
    "ProfileRule": "vizsla.profiling.rules.base",
    "ProfileSettings": "vizsla.profiling.settings",
    "judge_profile": "vizsla.profiling.judging",
    "open_profile": "vizsla.profiling.recorded",
    "profile": "vizsla.profiling.profiler",
}

__all__ = [
    "LoopProfiler",
    "Profile",
    "ProfileRule",
    "ProfileSettings",
    "judge_profile",
    "open_profile",
    "profile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vizsla.profiling' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
