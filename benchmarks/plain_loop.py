"""Decode and model in a plain loop: what the cores can do without a server around them.

The same code and file as the server's (`vizsla.bundle`), the same JPEG bodies, in every arrangement
that could be the fastest: one loop whose network has all cores; a loop a core, each with a network
of one thread, as threads or as processes; batches of 1, 4 and 8. The fastest is what a server is
held against. `latency` is one picture after the other, for the time that a single client waits.

    python -m benchmarks.plain_loop BUNDLE REQUESTS --arrangement "threads, batches of 4"

prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child_process import REPOSITORY

_BATCHES = (1, 4, 8)
_KINDS = ("one loop", "threads", "processes")
ARRANGEMENTS = tuple(f"{kind}, batches of {batch}" for kind in _KINDS for batch in _BATCHES)
LATENCY = "latency"
_WARM_UP_S = 0.5


def measure_plain_loop(
    bundle: Path, requests: Path, arrangement: str, seconds: float, engine: str
) -> dict[str, float]:
    """Run it in a process of its own: pictures `per_s` and the processor's `cpu_ms` for one, or
    `p50_ms` and `p99_ms` of `LATENCY`."""
    command = [
        sys.executable, "-m", "benchmarks.plain_loop", str(bundle), str(requests),
        "--arrangement", arrangement, "--seconds", str(seconds), "--engine", engine,
    ]  # fmt: skip
    child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(f"the plain loop failed:\n{child.stderr[-2000:]}")
    facts: dict[str, float] = json.loads(child.stdout)
    return facts


class _Work:
    """Decode and answer batches of the bodies, over and over; the network is `engine`'s."""

    def __init__(self, bundle: Path, requests: Path, engine: str, threads: int) -> None:
        from vizsla.bundle.predictor import load_bundle

        self.predictor = load_bundle(bundle, threads=threads)
        self.bodies = [file.read_bytes() for file in sorted(requests.glob("*.jpg"))]
        self.model = self.predictor.logits
        if engine != "onnxruntime":
            from vizsla.serving.engines import choose_engine

            chosen = choose_engine(load_bundle(bundle, threads=1), engine, threads, max(_BATCHES))
            self.model = lambda inputs: chosen.engine(inputs, alone=True)

    def batch(self, start: int, size: int) -> None:
        bodies = self.bodies
        inputs = [self.predictor.prepare(bodies[(start + n) % len(bodies)]) for n in range(size)]
        self.model(np.stack(inputs))

    def per_s(self, begin: float, seconds: float, size: int, start: int) -> tuple[float, int]:
        """Pictures a second, from the first batch after `begin` (of `time.monotonic`) to the end
        of the last one that was begun within `seconds`; and how many there were in all."""
        done, answered, first = 0, 0, begin
        while (now := time.monotonic()) < begin + seconds or not done:
            if now >= begin:
                first = first if done else now
                done += size
            self.batch(start + answered, size)
            answered += size
        return done / (time.monotonic() - first), answered


def _speed(work: _Work, workers: int, size: int, seconds: float) -> dict[str, float]:
    """Of so many loops, each a thread of this process: pictures `per_s`, and `cpu_ms`, the
    processor time of one."""
    before, begin = time.process_time(), time.monotonic() + _WARM_UP_S
    found: list[tuple[float, int]] = []

    def loop(number: int) -> None:
        start = number * len(work.bodies) // workers
        found.append(work.per_s(begin, seconds, size, start))

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used = time.process_time() - before
    return {
        "per_s": sum(per_s for per_s, _ in found),
        "cpu_ms": 1000 * used / sum(answered for _, answered in found),
    }


def _process(arguments: Any, begin: Any, results: Any) -> None:
    bundle, requests, engine, size, seconds = arguments
    work = _Work(bundle, requests, engine, 1)
    begin.wait()  # all have loaded
    results.put(_speed(work, 1, size, seconds))


def _speed_of_processes(
    bundle: Path, requests: Path, engine: str, size: int, seconds: float, workers: int
) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(workers), context.Queue()
    arguments = (bundle, requests, engine, size, seconds)
    processes = [
        context.Process(target=_process, args=(arguments, begin, results)) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60 + seconds) for _ in processes]
    for process in processes:
        process.join()
    return {
        "per_s": sum(one["per_s"] for one in found),
        "cpu_ms": sum(one["cpu_ms"] for one in found) / workers,
    }


def _latency(bundle: Path, requests: Path, engine: str, seconds: float) -> dict[str, float]:
    """Milliseconds of one picture after the other, with the number of threads that is faster."""
    found = []
    for threads in sorted({1, _cores()}):
        work = _Work(bundle, requests, engine, threads)
        spans: list[float] = []
        end = time.monotonic() + _WARM_UP_S + seconds / 2
        while (started := time.monotonic()) < end:
            work.batch(len(spans), 1)
            spans.append(1000 * (time.monotonic() - started))
        p50, p99 = np.percentile(spans[len(spans) // 20 :], [50, 99])
        found.append({"threads": threads, "p50_ms": float(p50), "p99_ms": float(p99)})
    return min(found, key=lambda one: one["p50_ms"])


def _cores() -> int:
    from vizsla.data.cores import available_cores

    return available_cores()


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m benchmarks.plain_loop", description=__doc__)
    made.add_argument("bundle", type=Path)
    made.add_argument("requests", type=Path)
    made.add_argument("--arrangement", choices=[*ARRANGEMENTS, LATENCY], required=True)
    made.add_argument("--seconds", type=float, default=10)
    made.add_argument("--engine", default="onnxruntime")
    options = made.parse_args()
    place = options.bundle, options.requests, options.engine
    if options.arrangement == LATENCY:
        print(json.dumps(_latency(*place, options.seconds)))
        return
    kind, _, batches = options.arrangement.partition(", ")
    size, cores = int(batches.split()[-1]), _cores()
    if kind == "processes":
        found = _speed_of_processes(*place, size, options.seconds, cores)
    elif kind == "threads":
        found = _speed(_Work(*place, 1), cores, size, options.seconds)
    else:
        found = _speed(_Work(*place, cores), 1, size, options.seconds)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
