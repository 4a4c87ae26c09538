"""How many cores this process may use: those it is allowed, or a share of them."""

from __future__ import annotations

import os

_limit: int | None = None


def available_cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return min(allowed, _limit or allowed)


def limit_cores(count: int | None) -> None:
    """From now on use `count` cores of those that this process may use; None takes all."""
    global _limit
    _limit = count
