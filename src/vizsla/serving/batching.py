"""Pictures of many requests to answers, in threads: decoded side by side, answered in batches.

    submit ──► waiting ──► decoders ──► ready ──► lanes ──► answer      (threads, one a core each)

A lane that is free takes what is ready: it waits for more, up to a deadline, only while pictures
are being decoded that could still join. With several lanes free, what is ready is shared out: a run
of the network in one thread on each core keeps all cores busier than one run in many threads. Only
a picture that is quite alone is run in all of them, by the thread that decoded it.

Nothing here knows of HTTP or of a network: it is given two functions. Answers are handed back on
the event loop that the picture came from.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Decode = Callable[[Any], Any]
# Decoded pictures, and whether they are all that there is to do, to an answer for each.
Answer = Callable[[Sequence[Any], bool], Any]


class Overloaded(Exception):
    """So many pictures are under way that another one is not taken."""


class Closed(Exception):
    """The batcher takes nothing more."""


class DeadlinePassed(Exception):
    """The picture's time was over before it was its turn."""


class Listener(Protocol):
    """Told of the work; called from the threads that do it."""

    def decoded(self, seconds: float) -> None: ...

    def answered(self, pictures: int, seconds: float) -> None: ...


@dataclass(eq=False)
class Ticket:
    """One picture on its way. `future` gives the answer, or raises what decoding raised."""

    picture: Any
    future: asyncio.Future[Any]
    deadline: float  # in seconds of time.monotonic
    loop: asyncio.AbstractEventLoop = field(repr=False)
    ready_since: float = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.future.cancelled() and time.monotonic() < self.deadline


class Batcher:
    """Runs pictures through `decode` and then, in batches, through `answer`.

    Both are called from its threads, from several at once. Close it to end them.
    """

    def __init__(
        self,
        decode: Decode,
        answer: Answer,
        listener: Listener,
        *,
        decoders: int,
        lanes: int,
        max_batch: int,
        max_wait_s: float,
        capacity: int,
    ) -> None:
        self._decode, self._answer, self._listener = decode, answer, listener
        self._max_batch, self._max_wait_s, self._capacity = max_batch, max_wait_s, capacity
        self._lock = threading.Lock()
        self._to_decode = threading.Condition(self._lock)
        self._to_answer = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._waiting: deque[Ticket] = deque()
        self._ready: deque[Ticket] = deque()
        self._decoding = self._under_way = 0
        self._free_lanes = 0
        self._busy_since: dict[int, float] = {}
        self._closed = False
        works = [self._decode_on] * decoders + [self._answer_on] * lanes
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    @property
    def under_way(self) -> int:
        """How many pictures have come and are not answered yet."""
        return self._under_way

    def is_alive(self, stuck_s: float) -> bool:
        """Whether every thread lives, and none has been at one piece of work for `stuck_s`."""
        since = min(list(self._busy_since.values()), default=time.monotonic())
        alive = all(thread.is_alive() for thread in self._threads)
        return alive and not self._closed and time.monotonic() - since < stuck_s

    def submit(self, pictures: Sequence[Any], deadline: float) -> list[asyncio.Future[Any]]:
        """Take `pictures` in, all or none; a future for each. Call it on an event loop.

        Cancelling a future takes its picture out. Raises `Overloaded` or `Closed`.
        """
        loop = asyncio.get_running_loop()
        tickets = [Ticket(one, loop.create_future(), deadline, loop) for one in pictures]
        with self._lock:
            if self._closed:
                raise Closed
            if self._under_way and self._under_way + len(tickets) > self._capacity:
                raise Overloaded
            self._under_way += len(tickets)
            self._waiting.extend(tickets)
            self._to_decode.notify(len(tickets))
        return [ticket.future for ticket in tickets]

    def close(self, timeout_s: float = 60.0) -> None:
        """Finish what is under way, then end the threads. Blocks: not for an event loop."""
        until = time.monotonic() + timeout_s
        with self._lock:
            self._idle.wait_for(lambda: self._under_way == 0, timeout_s)
            self._closed = True
            left = [*self._waiting, *self._ready]
            self._waiting.clear()
            self._ready.clear()
            self._to_decode.notify_all()
            self._to_answer.notify_all()
        self._hand_back([(ticket, Closed()) for ticket in left])
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        # Whoever owns these owns the batcher: the circle would keep its network in memory.
        self._decode = self._answer = _nothing

    def _decode_on(self) -> None:
        while (ticket := self._next_to_decode()) is not None:
            result: Any = DeadlinePassed()
            if ticket.is_wanted:
                result = self._timed(self._decode, ticket.picture)
            if isinstance(result, BaseException):
                with self._lock:
                    self._decoding -= 1
                    self._to_answer.notify()  # a lane may have waited for this one
                self._hand_back([(ticket, result)])
                continue
            ticket.picture = result
            ticket.ready_since = time.monotonic()
            with self._lock:
                self._decoding -= 1
                alone = self._under_way == 1
                if not alone:
                    self._ready.append(ticket)
                    self._to_answer.notify()
            if alone:  # no lane need be woken for it
                self._hand_back(self._answered([ticket], alone=True))

    def _next_to_decode(self) -> Ticket | None:
        with self._lock:
            while not self._waiting:
                if self._closed:
                    return None
                self._to_decode.wait()
            self._decoding += 1
            return self._waiting.popleft()

    def _timed(self, decode: Decode, picture: Any) -> Any:
        """The decoded picture, or the exception that says why there is none."""
        me = threading.get_ident()
        started = self._busy_since[me] = time.monotonic()
        try:
            return decode(picture)
        except Exception as error:
            return error
        finally:
            del self._busy_since[me]
            self._listener.decoded(time.monotonic() - started)

    def _answer_on(self) -> None:
        while True:
            batch = self._next_batch()
            if not batch:
                return
            self._hand_back(self._answered(batch, alone=False))

    def _next_batch(self) -> list[Ticket]:
        """What this lane shall answer now; nothing at the end."""
        with self._lock:
            self._free_lanes += 1
            try:
                while not self._is_time():
                    if self._closed:
                        return []
                    self._to_answer.wait(self._seconds_to_wait())
                share = -(-len(self._ready) // self._free_lanes)
                batch = [self._ready.popleft() for _ in range(min(share, self._max_batch))]
                if self._ready:
                    self._to_answer.notify()
                return batch
            finally:
                self._free_lanes -= 1

    def _is_time(self) -> bool:
        """Whether a lane should begin: enough is ready, nothing can join, or the oldest one has
        waited long enough."""
        if not self._ready:
            return False
        coming = self._decoding + len(self._waiting)
        return not coming or len(self._ready) >= self._max_batch or self._seconds_to_wait() == 0.0

    def _seconds_to_wait(self) -> float | None:
        if not self._ready:
            return None
        return max(0.0, self._ready[0].ready_since + self._max_wait_s - time.monotonic())

    def _answered(self, batch: Sequence[Ticket], alone: bool) -> list[tuple[Ticket, Any]]:
        """Each of `batch` with its answer; those that nobody wants any more cost nothing."""
        wanted = [ticket for ticket in batch if ticket.is_wanted]
        results: list[tuple[Ticket, Any]] = [
            (ticket, DeadlinePassed()) for ticket in batch if not ticket.is_wanted
        ]
        return [*results, *zip(wanted, self._answers(wanted, alone), strict=True)]

    def _answers(self, tickets: list[Ticket], alone: bool) -> Any:
        if not tickets:
            return []
        me = threading.get_ident()
        started = self._busy_since[me] = time.monotonic()
        try:
            return self._answer([ticket.picture for ticket in tickets], alone)
        except Exception as error:  # whatever an engine raises: its batch fails, the lane lives
            return [error] * len(tickets)
        finally:
            del self._busy_since[me]
            self._listener.answered(len(tickets), time.monotonic() - started)

    def _hand_back(self, results: Sequence[tuple[Ticket, Any]]) -> None:
        with self._lock:
            self._under_way -= len(results)
            if self._under_way == 0:
                self._idle.notify_all()
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Any]]] = {}
        for ticket, result in results:
            by_loop.setdefault(ticket.loop, []).append((ticket, result))
        for loop, own in by_loop.items():
            try:
                loop.call_soon_threadsafe(_settle, own)
            except RuntimeError:  # the loop has ended, and with it whoever waited
                pass


def _nothing(*_: Any) -> Any:
    raise Closed


def _settle(results: Sequence[tuple[Ticket, Any]]) -> None:
    for ticket, result in results:
        if ticket.future.done():
            continue
        if isinstance(result, BaseException):
            ticket.future.set_exception(result)
        else:
            ticket.future.set_result(result)
