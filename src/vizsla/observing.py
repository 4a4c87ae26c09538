"""Several observers as one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class TellAll:
    """Every hook (`on_…`) calls that of each observer, in order. Goes before the class that
    declares the hooks."""

    def __init__(self, observers: Iterable[Any]) -> None:
        self._observers = tuple(observers)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def tell_all(*facts: Any, **more: Any) -> None:
            for observer in self._observers:
                getattr(observer, name)(*facts, **more)

        return tell_all
