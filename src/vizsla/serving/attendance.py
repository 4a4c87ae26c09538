"""Whether those who asked are still there.

A client that leaves says so to nobody who does not look. Looking costs as much as a small part of
an answer, so one task looks at the requests that have been open for a while, all in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

_GLANCE_S = 0.25


@dataclass(eq=False)
class Waiting:
    """A request that waits for `futures`. Whether its client has left is told once it has."""

    request: Request
    futures: Sequence[asyncio.Future[Any]]
    since: float
    has_left: bool = False


class Attendance:
    """The requests that wait for answers. Use it in one event loop."""

    def __init__(self) -> None:
        self._open: set[Waiting] = set()

    @contextlib.contextmanager
    def waiting(
        self, request: Request, futures: Sequence[asyncio.Future[Any]]
    ) -> Iterator[Waiting]:
        """Inside, `futures` are cancelled once the client of `request` has left."""
        one = Waiting(request, futures, time.monotonic())
        self._open.add(one)
        try:
            yield one
        finally:
            self._open.discard(one)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Inside, it is looked after those who wait."""
        task = asyncio.get_running_loop().create_task(self._look())
        try:
            yield
        finally:
            task.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_GLANCE_S)
            before = time.monotonic() - _GLANCE_S
            for one in [one for one in self._open if one.since < before]:
                if await one.request.is_disconnected():
                    one.has_left = True
                    for future in one.futures:
                        future.cancel()
