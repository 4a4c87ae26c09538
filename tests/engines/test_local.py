"""Jobs in processes of this machine: they end one way each, and bring down themselves alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vizsla.data.synthetic import DrawnDataset
from vizsla.engines.base import Event, Job
from vizsla.engines.local import LocalEngine
from vizsla.errors import WorkError
from vizsla.runs.folder import RunFolder
from vizsla.worker import _named

ENDS = ("finished", "pruned", "stopped", "failed", "crashed")
RECIPE = {
    "model": "test_resnet", "weights": "none", "unfreeze": "all", "size_px": 64, "workers": 0,
    "batch_size": 8, "epochs": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(2, tmp_path_factory.mktemp("logs")) as engine:
        yield engine


@pytest.fixture
def job(dogs: DrawnDataset, tmp_path: Path) -> Callable[..., Job]:
    def make(name: str = "run", bundle: bool = False, **settings: Any) -> Job:
        return Job(
            str(dogs.folder), {**RECIPE, **settings}, str(tmp_path / name), bundle=bundle, cores=1
        )

    return make


def until(
    engine: LocalEngine, jobs: set[int], react: Callable[[Event], None] = lambda _: None
) -> dict[int, list[Event]]:
    """Every event of `jobs` until all have ended; epochs are answered unless `react` does."""
    seen: dict[int, list[Event]] = {job: [] for job in jobs}
    deadline = time.monotonic() + 150
    while any(not events or events[-1].kind not in ENDS for events in seen.values()):
        assert time.monotonic() < deadline, seen
        for event in engine.events(0.2):
            seen[event.job].append(event)
            react(event)
            if event.kind == "epoch":
                engine.answer(event.job)
    return seen


def test_two_jobs_run_side_by_side_and_tell_of_every_epoch(
    engine: LocalEngine, job: Callable[..., Job]
) -> None:
    numbers = {engine.submit(job("one")), engine.submit(job("two", bundle=True))}
    seen = until(engine, numbers)
    for events in seen.values():
        kinds = [event.kind for event in events if event.kind not in ("note", "trunk")]
        assert kinds == ["started", "epoch", "epoch", "finished"]
        assert [event.facts["record"]["epoch"] for event in events if event.kind == "epoch"] == [
            1,
            2,
        ]


def test_an_answer_can_end_a_job(engine: LocalEngine, job: Callable[..., Job]) -> None:
    one = job(epochs=50)
    number = engine.submit(one)
    answers = iter([None, "others are better"])
    seen: list[str] = []
    while "pruned" not in seen:
        for event in engine.events(0.2):
            seen.append(event.kind)
            if event.kind == "epoch":
                engine.answer(number, next(answers))
    run = RunFolder.open(Path(one.folder))
    assert len(run.epochs()) == 2
    assert run.outcome() == {"status": "pruned", "reason": "others are better"}


def test_a_stopped_job_goes_on_where_it_was(engine: LocalEngine, job: Callable[..., Job]) -> None:
    one = job(epochs=60)
    number = engine.submit(one)

    def stop_after_two(event: Event) -> None:
        if event.kind == "epoch" and event.facts["record"]["epoch"] == 2:
            engine.stop(event.job)

    assert until(engine, {number}, stop_after_two)[number][-1].kind == "stopped"
    before = RunFolder.open(Path(one.folder)).epochs()
    assert 2 <= len(before) < 60
    shorter = job(epochs=60)
    again = until(engine, {engine.submit(shorter)})
    (events,) = again.values()
    assert events[-1].kind == "finished"
    told = [event.facts["record"]["epoch"] for event in events if event.kind == "epoch"]
    assert told[0] == len(before) + 1
    assert told[-1] == 60


def test_a_failed_job_says_why_and_the_process_works_on(
    engine: LocalEngine, job: Callable[..., Job]
) -> None:
    number = engine.submit(job("bad", unfreeze="nowhere"))
    (end,) = [event for event in until(engine, {number})[number] if event.kind in ENDS]
    assert end.kind == "failed"
    assert "nowhere" in end.facts["reason"]
    assert end.facts["error"] in ("ModelError", "SettingError")
    assert until(engine, {engine.submit(job("good"))}).popitem()[1][-1].kind == "finished"


def test_a_killed_process_crashes_its_job_alone(
    engine: LocalEngine, job: Callable[..., Job]
) -> None:
    one, two = engine.submit(job("one", epochs=500)), engine.submit(job("two", epochs=8))
    victim = next(process for process in engine._processes if process.job == one)
    killed = False

    def kill(event: Event) -> None:
        nonlocal killed
        if event.job == one and event.kind == "epoch" and not killed:
            killed = True
            os.kill(victim._child.pid, signal.SIGKILL)

    seen = until(engine, {one, two}, kill)
    assert seen[one][-1].kind == "crashed"
    assert "signal 9" in seen[one][-1].facts["reason"]
    assert seen[two][-1].kind == "finished"
    assert until(engine, {engine.submit(job("three"))}).popitem()[1][-1].kind == "finished"


def test_a_folder_of_another_recipe_is_not_gone_on_with(
    engine: LocalEngine, job: Callable[..., Job]
) -> None:
    until(engine, {engine.submit(job(epochs=1))})
    (events,) = until(engine, {engine.submit(job(epochs=2))}).values()
    assert events[-1].kind == "failed"
    assert "another recipe" in events[-1].facts["reason"]


def test_more_jobs_than_slots_are_refused(engine: LocalEngine, job: Callable[..., Job]) -> None:
    numbers = {engine.submit(job(name, epochs=3)) for name in ("one", "two")}
    with pytest.raises(RuntimeError, match="All 2 processes"):
        engine.submit(job("three"))
    until(engine, numbers)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), "OutOfMemory", "ran out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "OutOfMemory", "CUDA"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate "
                         "memory: you tried to allocate 99 bytes"),
            "OutOfMemory", "99 bytes",
        ),
        (WorkError("Training diverged."), "WorkError", "Training diverged."),
        (KeyError("weights"), "KeyError", "KeyError: 'weights'"),
    ],
)  # fmt: skip
def test_errors_are_named_for_who_leads(error: Exception, kind: str, words: str) -> None:
    named, reason = _named(error)
    assert named == kind
    assert words in reason
