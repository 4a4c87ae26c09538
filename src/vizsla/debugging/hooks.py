"""Hooks that a network may be copied and saved with: a copy's do nothing."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any


class Hook:
    """Calls a method as long as its object lives. A deep copy or a pickle of the network that it
    hangs on carries `nothing` in its place: the copy is nobody's to watch."""

    def __init__(self, method: Callable[..., None], *first: Any) -> None:
        self._method: weakref.WeakMethod[Callable[..., None]] = weakref.WeakMethod(method)
        self._first = first

    def __call__(self, *arguments: Any, **more: Any) -> None:
        method = self._method()
        if method is not None:
            method(*self._first, *arguments, **more)

    def __deepcopy__(self, memo: Any) -> Callable[..., None]:
        return nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _unwatched, ()


def nothing(*_: Any, **__: Any) -> None:
    """Does nothing."""


def _unwatched() -> Callable[..., None]:
    return nothing
