"""One request for answers, from its body to its response, for one model."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response

from vizsla.errors import PictureError
from vizsla.serving.addresses import Allowance, Fetcher
from vizsla.serving.answers import Entry, answer, refusal_of, wants_csv
from vizsla.serving.attendance import Attendance
from vizsla.serving.batching import Closed, DeadlinePassed, Overloaded
from vizsla.serving.bodies import Address, ClientDisconnect, Room, Share, read_pictures
from vizsla.serving.metrics import Metrics
from vizsla.serving.model import ServedModel
from vizsla.serving.refusals import Refusal, overloaded
from vizsla.serving.settings import ServeSettings

DEADLINE_HEADER = "x-deadline-ms"


@dataclass(frozen=True)
class Desk:
    """What every request is answered with besides the model."""

    settings: ServeSettings
    metrics: Metrics
    fetcher: Fetcher
    attendance: Attendance
    room: Room

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, settings: ServeSettings, metrics: Metrics) -> AsyncIterator[Desk]:
        """A desk that fetches and looks after clients until it is left."""
        desk = cls(settings, metrics, Fetcher(settings), Attendance(), Room(settings))
        async with desk.attendance.kept():
            yield desk
        await desk.fetcher.close()


async def answer_request(
    request: Request, current: Callable[[], ServedModel], desk: Desk
) -> Response:
    """The whole of POST /invocations. Raises `Refusal` where the request gets no answer, and
    `ClientDisconnect` where nobody waits for one any more.

    `current` is asked for the model once the pictures have come: the one of the request's beginning
    may have been replaced and closed by then.
    """
    with desk.room.shared() as share:
        return await _answered(request, current, desk, share)


async def _answered(
    request: Request, current: Callable[[], ServedModel], desk: Desk, share: Share
) -> Response:
    csv_wanted = wants_csv(request)
    top_k = _top_k(request)
    timeout_s = _timeout_s(request, desk.settings.deadline_s)
    pictures = await read_pictures(request, desk.settings, share)
    top_k = pictures.top_k or top_k
    started = time.monotonic()
    deadline = started + timeout_s
    entries = await _fetched(pictures.entries, desk, deadline)
    bodies = [entry for entry in entries if isinstance(entry, bytes)]
    served = current()
    outcomes = iter(await _outcomes(request, served, bodies, deadline, desk))
    answered: list[Entry] = [
        served.told(next(outcomes), top_k) if isinstance(entry, bytes) else entry
        for entry in entries
    ]
    seconds = time.monotonic() - started
    desk.metrics.took(seconds)
    if pictures.several:
        for entry in answered:
            if isinstance(entry, PictureError | Refusal):
                desk.metrics.refused(refusal_of(entry).code)
    return answer(
        answered,
        several=pictures.several,
        csv_wanted=csv_wanted,
        model=served.name,
        ms=seconds * 1e3,
    )


async def _outcomes(
    request: Request, served: ServedModel, bodies: Sequence[bytes], deadline: float, desk: Desk
) -> list[Any]:
    """Probabilities or `PictureError` for each picture, all within the deadline; when the client
    leaves, its pictures are taken out."""
    if not bodies:
        return []
    try:
        futures = served.submit(bodies, deadline)
    except Overloaded:
        raise overloaded(served.under_way) from None
    except Closed:
        raise Refusal("shutting_down", "The server is shutting down.") from None
    left_s = max(0.0, deadline - time.monotonic())
    alarm = asyncio.get_running_loop().call_later(left_s, _cancel, futures)
    try:
        with desk.attendance.waiting(request, futures) as waiting:
            await asyncio.wait(futures)
    finally:
        alarm.cancel()
        _cancel(futures)
    if any(future.cancelled() for future in futures):
        raise ClientDisconnect if waiting.has_left else _late()
    outcomes = [future.exception() or future.result() for future in futures]
    if any(isinstance(outcome, DeadlinePassed) for outcome in outcomes):
        raise _late()
    return outcomes


def _cancel(futures: Sequence[asyncio.Future[Any]]) -> None:
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()  # so that asyncio does not complain of one that nobody read


def _late() -> Refusal:
    return Refusal(
        "deadline_exceeded",
        "The answer was not ready by the request's deadline; the server is busy. Try again later.",
    )


async def _fetched(
    entries: Sequence[bytes | Address | Refusal], desk: Desk, deadline: float
) -> list[bytes | Refusal]:
    allowance = Allowance(desk.settings.body_bytes)

    async def fetched(entry: bytes | Address | Refusal) -> bytes | Refusal:
        if not isinstance(entry, Address):
            return entry
        try:
            return await desk.fetcher.fetch(entry.url, allowance)
        except Refusal as refusal:
            return refusal

    if not any(isinstance(entry, Address) for entry in entries):
        return [entry for entry in entries if not isinstance(entry, Address)]
    try:
        with anyio.fail_after(deadline - time.monotonic()):
            return await asyncio.gather(*map(fetched, entries))
    except TimeoutError:
        raise _late() from None


def _top_k(request: Request) -> int:
    text = request.query_params.get("top_k")
    if text is None:
        return 5
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) > 0):
        raise Refusal("bad_query", f"top_k is {text[:50]!r}, but must be a number from 1 on.")
    return int(text)


def _timeout_s(request: Request, most_s: float) -> float:
    """The request's own time, where it gives a shorter one than the server's."""
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return most_s
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0):
        raise Refusal(
            "bad_request",
            f"{DEADLINE_HEADER} is {text[:50]!r}, but must be a whole number of milliseconds.",
        )
    return min(int(text[:9]) / 1e3, most_s)
