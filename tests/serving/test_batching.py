"""What the batcher promises, with threads and an event loop that are real and work that is not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from vizsla.errors import PictureError
from vizsla.serving.batching import Batcher, Closed, DeadlinePassed, Overloaded


class Work:
    """Doubles numbers, slowly where told to, and notes each batch."""

    def __init__(self, decode_s: float = 0.0, answer_s: float = 0.0) -> None:
        self.decode_s, self.answer_s = decode_s, answer_s
        self.batches: list[tuple[list[Any], bool]] = []
        self.open = threading.Event()
        self.open.set()

    def decode(self, picture: Any) -> Any:
        time.sleep(self.decode_s)
        if picture == "broken":
            raise PictureError("It is broken.")
        return picture

    def answer(self, pictures: Sequence[Any], alone: bool) -> list[Any]:
        self.open.wait(10)
        self.batches.append((list(pictures), alone))
        time.sleep(self.answer_s)
        if 13 in pictures:
            raise RuntimeError("The engine failed.")
        return [2 * one for one in pictures]

    def decoded(self, seconds: float) -> None:
        assert seconds >= 0

    def answered(self, pictures: int, seconds: float) -> None:
        assert pictures > 0

    def batcher(self, **changes: Any) -> Batcher:
        settings: dict[str, Any] = {
            "decoders": 2, "lanes": 1, "max_batch": 4, "max_wait_s": 0.01, "capacity": 100,
        }  # fmt: skip
        return Batcher(self.decode, self.answer, self, **(settings | changes))


def _run(work: Work, pictures: Sequence[Any], **changes: Any) -> list[Any]:
    """What becomes of `pictures` that come at once, exceptions in their places."""

    async def ask() -> list[Any]:
        futures = batcher.submit(pictures, time.monotonic() + 20)
        return await asyncio.gather(*futures, return_exceptions=True)

    batcher = work.batcher(**changes)
    try:
        return asyncio.run(ask())
    finally:
        batcher.close()


def test_every_picture_gets_its_own_answer() -> None:
    assert _run(Work(), range(14, 64), lanes=3) == [2 * one for one in range(14, 64)]


def test_no_batch_is_larger_than_allowed() -> None:
    work = Work(answer_s=0.01)
    _run(work, range(20, 40))
    sizes = [len(batch) for batch, _ in work.batches]
    assert max(sizes) == 4
    assert sum(sizes) == 20


def test_a_picture_that_is_alone_never_waits_for_others() -> None:
    started = time.monotonic()
    work = Work()
    assert _run(work, [1], max_wait_s=5.0) == [2]
    assert time.monotonic() - started < 2
    assert work.batches == [([1], True)]


def test_what_is_being_decoded_joins_the_batch() -> None:
    work = Work(decode_s=0.05)
    _run(work, [1, 2, 3, 4], decoders=4, max_wait_s=5.0)
    assert [sorted(batch) for batch, _ in work.batches] == [[1, 2, 3, 4]]
    assert work.batches[0][1] is False


def test_nobody_waits_longer_than_the_deadline_for_company() -> None:
    work = Work(decode_s=0.3)
    started = time.monotonic()
    _run(work, [1, 2], decoders=1, max_wait_s=0.02)
    assert [batch for batch, _ in work.batches] == [[1], [2]]
    assert time.monotonic() - started < 5


def test_free_lanes_share_what_is_ready() -> None:
    work = Work(decode_s=0.05, answer_s=0.05)
    _run(work, [1, 2, 3, 4], decoders=4, lanes=2, max_wait_s=5.0)
    assert sorted(len(batch) for batch, _ in work.batches) == [2, 2]


def test_picture_that_does_not_decode_costs_no_other_its_answer() -> None:
    first, bad, last = _run(Work(), [1, "broken", 3])
    assert (first, last) == (2, 6)
    assert isinstance(bad, PictureError)


def test_failing_engine_fails_its_batch_and_the_next_is_answered() -> None:
    work = Work()

    async def ask() -> tuple[Any, Any]:
        bad = await asyncio.gather(*batcher.submit([13], _soon()), return_exceptions=True)
        good = await asyncio.gather(*batcher.submit([5], _soon()))
        return bad[0], good[0]

    batcher = work.batcher()
    bad, good = asyncio.run(ask())
    assert batcher.is_alive(stuck_s=10)
    batcher.close()
    assert isinstance(bad, RuntimeError)
    assert good == 10


def test_full_queue_takes_nothing_more_and_all_or_none() -> None:
    work = Work()
    work.open.clear()

    async def ask() -> None:
        first = batcher.submit([1, 2, 3], _soon())
        with pytest.raises(Overloaded):
            batcher.submit([4, 5], _soon())
        fourth = batcher.submit([4], _soon())
        assert batcher.under_way == 4
        work.open.set()
        assert await asyncio.gather(*first, *fourth) == [2, 4, 6, 8]
        assert batcher.under_way == 0
        assert await asyncio.gather(*batcher.submit([7, 8], _soon())) == [14, 16]

    batcher = work.batcher(capacity=4)
    asyncio.run(ask())
    batcher.close()


def test_cancelled_and_late_pictures_are_dropped_from_the_batch() -> None:
    work = Work()
    work.open.clear()

    async def ask() -> list[Any]:
        first = asyncio.gather(*batcher.submit([1, 1], _soon()))
        while len(batcher._busy_since) != 1 or batcher._ready or batcher._waiting:
            await asyncio.sleep(0.01)  # until the lane is at them
        gone, late, good = (
            batcher.submit([one], deadline)[0]
            for one, deadline in ((2, _soon()), (3, time.monotonic() + 0.05), (4, _soon()))
        )
        gone.cancel()
        await asyncio.sleep(0.1)
        work.open.set()
        return await asyncio.gather(first, gone, late, good, return_exceptions=True)

    batcher = work.batcher()
    first, gone, late, good = asyncio.run(ask())
    batcher.close()
    assert (first, good) == ([2, 2], 8)
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(late, DeadlinePassed)
    assert {one for batch, _ in work.batches for one in batch} == {1, 4}


def test_closing_gives_what_is_under_way_and_then_takes_nothing() -> None:
    work = Work(answer_s=0.05)

    async def ask() -> list[Any]:
        futures = batcher.submit([1, 2, 3, 4, 5], _soon())
        await asyncio.get_running_loop().run_in_executor(None, batcher.close)
        with pytest.raises(Closed):
            batcher.submit([6], _soon())
        return await asyncio.gather(*futures)

    batcher = work.batcher()
    assert asyncio.run(ask()) == [2, 4, 6, 8, 10]
    assert not batcher.is_alive(stuck_s=10)


def test_stuck_thread_is_noticed() -> None:
    work = Work()
    work.open.clear()

    async def ask() -> None:
        futures = batcher.submit([1], _soon())
        assert batcher.is_alive(stuck_s=5)
        await asyncio.sleep(0.2)
        assert not batcher.is_alive(stuck_s=0.1)
        work.open.set()
        await asyncio.gather(*futures)
        await asyncio.sleep(0.05)
        assert batcher.is_alive(stuck_s=0.1)

    batcher = work.batcher()
    asyncio.run(ask())
    batcher.close()


def _soon() -> float:
    return time.monotonic() + 20
