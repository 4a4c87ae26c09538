"""Real programs that have an illness, and the same without it: sampled, timed and judged.

Illnesses are strong, so that a machine that is busy with other things changes nothing. What cannot
be had at will (a slow disk, heat, GPUs) is in rules/test_rules.py, from recorded numbers.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from vizsla.data.cores import available_cores
from vizsla.findings import Finding
from vizsla.profiling.judging import judge_profile
from vizsla.profiling.profiler import LoopProfiler, profile
from vizsla.profiling.sampler import Sampler
from vizsla.runs.folder import RunFolder

INTERVAL_MS = 100


def judged(folder: Path, rules: str) -> list[Finding]:
    return judge_profile(RunFolder.open(folder), rules).findings


def needs_quiet_machine() -> None:
    """Skip where other programs take the cores: they would have the illness, or hide it. Those that
    another test left behind end within seconds."""
    deadline = time.monotonic() + 8
    while psutil.cpu_percent(0.5) > 25:
        if time.monotonic() > deadline:
            pytest.skip("other programs take the cores of this machine")


def loader(count: int, wait_s: float) -> Iterator[int]:
    for number in range(count):
        time.sleep(wait_s)
        yield number


def compute(profiler: LoopProfiler, seconds: float) -> None:
    """A step's phases, which take so long altogether."""
    with profiler.phase("forward"):
        time.sleep(seconds / 2)
    with profiler.phase("backward"):
        time.sleep(seconds / 2)


@pytest.mark.parametrize(("wait_s", "ill"), [(0.03, True), (0.0, False)])
def test_loop_that_waits_for_its_data(tmp_path: Path, wait_s: float, ill: bool) -> None:
    with profile(tmp_path / "run", interval_ms=INTERVAL_MS) as profiler:
        for _ in profiler.loading(loader(60, wait_s)):
            compute(profiler, 0.01)
            profiler.step()
    found = judged(tmp_path / "run", "data_starved")
    assert bool(found) == ill
    if ill:
        assert found[0].measured > 0.6
        assert "DataLoader(num_workers=" in found[0].advice


@pytest.mark.parametrize("ill", [True, False])
def test_loop_whose_memory_grows(tmp_path: Path, ill: bool) -> None:
    kept = []
    with profile(tmp_path / "run", interval_ms=INTERVAL_MS) as profiler:
        for _ in range(280):
            made = np.ones(1_000_000, np.uint8)
            if ill:
                kept.append(made)
            compute(profiler, 0.01)
            profiler.step()
    found = judged(tmp_path / "run", "memory_leak")
    assert bool(found) == ill
    if ill:
        assert found[0].evidence["mb_per_1000_steps"] == pytest.approx(1000, rel=0.3)


@pytest.mark.parametrize("ill", [True, False])
def test_loop_whose_steps_are_slow_at_times(tmp_path: Path, ill: bool) -> None:
    if not ill:
        needs_quiet_machine()
    slow = (40, 71, 83, 131, 152, 190) if ill else ()
    with profile(tmp_path / "run", interval_ms=INTERVAL_MS) as profiler:
        for step in range(1, 201):
            compute(profiler, 0.2 if step in slow else 0.005)
            profiler.step()
    found = judged(tmp_path / "run", "step_outlier:n_outliers=5")
    assert bool(found) == ill
    if ill:
        assert set(slow) <= set(found[0].evidence["steps"])


@pytest.mark.parametrize("ill", [True, False])
def test_loop_that_is_slow_to_begin(tmp_path: Path, ill: bool) -> None:
    with profile(tmp_path / "run", interval_ms=INTERVAL_MS) as profiler:
        with profiler.phase("weights"):
            time.sleep(1.5 if ill else 0.05)
        for _ in range(30):
            compute(profiler, 0.01)
            profiler.step()
    rules = "slow_start:threshold=0.7,max_initialization_time:threshold=0.015"
    found = judged(tmp_path / "run", rules)
    assert len(found) == (2 if ill else 0)
    assert all(one.evidence["cause"] == "weights" for one in found)


@pytest.mark.parametrize("ill", [True, False])
def test_threads_that_crowd_the_cores(tmp_path: Path, ill: bool) -> None:
    if ill:
        needs_quiet_machine()
    run = RunFolder.at(tmp_path / "run")
    run.write_facts({})
    with Sampler(run.path, interval_ms=INTERVAL_MS):
        end, data = time.monotonic() + 2.6, bytes(10_000_000)

        def work() -> None:
            while time.monotonic() < end:
                zlib.crc32(data)  # lets other threads compute beside it

        threads = [
            threading.Thread(target=work) for _ in range(5 * available_cores() if ill else 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = judged(run.path, "thread_oversubscription")
    assert bool(found) == ill
    if ill:
        assert "OMP_NUM_THREADS" in found[0].advice


@pytest.mark.parametrize("ill", [True, False])
def test_other_programs_that_take_the_cores(tmp_path: Path, ill: bool) -> None:
    """They have left this process's tree by the time that it is sampled."""
    if not ill:
        needs_quiet_machine()
    busy = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\n"
    busy += "end = time.monotonic() + 7\nwhile time.monotonic() < end: pass"
    for _ in range(2 * available_cores() if ill else 0):
        subprocess.run([sys.executable, "-S", "-c", busy], check=True)
    with profile(tmp_path / "run", interval_ms=INTERVAL_MS) as profiler:
        for _ in range(250):
            compute(profiler, 0.016)
            profiler.step()
    found = judged(tmp_path / "run", "crowded_machine")
    assert bool(found) == ill
    if ill:
        assert found[0].severity == "warning"
        assert "other programs took" in found[0].meaning


def test_loaders_that_crowd_the_cores_while_the_loop_waits(tmp_path: Path) -> None:
    """Decoding takes all cores, and the network waits for it."""
    needs_quiet_machine()
    busy = "import time; end = time.monotonic() + 9\nwhile time.monotonic() < end: pass"
    children = [
        subprocess.Popen([sys.executable, "-S", "-c", busy]) for _ in range(available_cores())
    ]
    try:
        with profile(tmp_path / "run", interval_ms=INTERVAL_MS) as profiler:
            for _ in profiler.loading(loader(70, 0.03)):
                compute(profiler, 0.002)
                profiler.step()
    finally:
        for child in children:
            child.terminate()
            child.wait()
    found = judged(tmp_path / "run", "cpu_bottleneck:patience=0:cpu_threshold=80,data_starved")
    assert {one.rule for one in found} == {"cpu_bottleneck", "data_starved"}
    assert all("DataLoader" in one.advice for one in found)
