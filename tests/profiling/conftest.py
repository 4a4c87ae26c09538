"""Recorded profiles for the rules' tests: lines as the profiler writes them, from given numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.profiling.format import samples_file, timeline_file
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.recorded import Profile
from vizsla.runs.files import append_lines

START = 1_750_000_000.0
BEFORE_STEPS_S = 2.0
ProfileMaker = Callable[..., ProfileRecord]


@pytest.fixture
def make_profile(tmp_path: Path) -> ProfileMaker:
    """A record from numbers, through the real reader; see `profile_of`."""
    count = iter(range(1000))

    def make(**given: Any) -> ProfileRecord:
        return profile_of(tmp_path / f"run-{next(count)}", **given)

    return make


def profile_of(
    path: Path,
    *,
    samples: int | None = None,
    interval_s: float = 0.5,
    cores: int = 4,
    cpu: Any = 80.0,
    iowait: Any = 0.0,
    columns: Mapping[str, Any] | None = None,
    gpus: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
    steps: int = 0,
    phases: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    pauses: Mapping[int, tuple[str, float]] | None = None,
    startup: Mapping[str, float] | None = None,
    facts: Sequence[Mapping[str, Any]] = (),
    recipe: Mapping[str, Any] | None = None,
    trunk: Mapping[str, Any] | None = None,
    device: str = "cpu",
    is_over: bool = True,
    command: bool = False,
) -> ProfileRecord:
    """`cpu`, `iowait`, `columns` and `gpus` have a number for all samples or one each; there are as
    many samples as the steps take, unless told. `phases` map a phase to seconds, for all steps or
    one each; a list of them is of several processes. `pauses` map a step to the span before it. A
    training `is_over` once it has had its exact evaluation."""
    path.mkdir(parents=True)
    of_ranks = [phases or {}] if isinstance(phases, Mapping | None) else list(phases)
    end = 0.0
    for rank, parts in enumerate(of_ranks if steps or startup else []):
        lines, end = _timeline(steps, parts, pauses or {}, startup or {}, rank, device)
        last = [{"kind": "span", "name": "final", "time": START + end, "seconds": 1.0}] * is_over
        of_first = list(map(dict, facts)) if rank == 0 else []
        append_lines(timeline_file(path, rank), [*lines, *last, *of_first])
    if facts and not (steps or startup):
        append_lines(timeline_file(path), list(map(dict, facts)))
    count = int(end / interval_s) if samples is None else samples
    if count:
        told = {"kind": "about", "node": "algo-1", "interval_ms": int(1000 * interval_s),
                "cores": cores, "machine_cores": cores, "memory_bytes": 16e9,
                "torch_threads": cores, **(about or {})}  # fmt: skip
        numbers = {"cpu": cpu, "iowait": iowait, **_QUIET, **(columns or {})}
        lines = [_sample(at, interval_s, cores, numbers, gpus, count) for at in range(count)]
        append_lines(samples_file(path, "algo-1"), [told, *lines])
    told_of = {"recipe": dict(recipe or {}), **({"command": ["mine"]} if command else {})}
    return ProfileRecord(Profile(path), (), told_of, trunk)


# What a healthy program shows that a test does not speak of.
_QUIET = {"memory": 40.0, "memory_bytes": 6e9, "tree_bytes": 3e9, "own_bytes": 2e9,
          "tree_cpu": 300.0, "processes": 1, "threads": 12, "runnable": 5, "read_bytes": 1e6,
          "throttled": 0}  # fmt: skip


def _sample(
    at: int,
    interval_s: float,
    cores: int,
    numbers: Mapping[str, Any],
    gpus: Sequence[Mapping[str, Any]],
    count: int,
) -> dict[str, Any]:
    found = {name: _at(values, at) for name, values in numbers.items()}
    return {
        "kind": "sample",
        "time": START + interval_s * (at + 1),
        **found,
        "cpu": [found["cpu"]] * cores,
        "iowait": [found["iowait"]] * cores,
        "gpus": [{name: _at(values, at) for name, values in one.items()} for one in gpus],
    }


def _timeline(
    steps: int,
    phases: Mapping[str, Any],
    pauses: Mapping[int, tuple[str, float]],
    startup: Mapping[str, float],
    rank: int,
    device: str,
) -> tuple[list[dict[str, Any]], float]:
    """The lines of a process, and how many seconds it took."""
    columns = {name: [_at(values, at) for at in range(steps)] for name, values in phases.items()}
    seconds = [round(sum(column[at] for column in columns.values()), 6) for at in range(steps)]
    session = {"kind": "session", "time": START, "node": "algo-1", "rank": rank, "device": device,
               "process_started": START}  # fmt: skip
    lines, times = [session], []
    now = START
    for name, length in startup.items():
        lines.append({"kind": "span", "name": name, "time": now, "seconds": length})
        now += length
    now = max(now, START + BEFORE_STEPS_S)
    for at in range(steps):
        if at + 1 in pauses:
            name, length = pauses[at + 1]
            lines.append({"kind": "span", "name": name, "time": now, "seconds": length})
            now += length
        times.append(now)
        now += seconds[at]
    told = {"step": list(range(1, steps + 1)), "time": times, "seconds": seconds, "phases": columns}
    lines += [{"kind": "steps", **told}] if steps else []
    return lines, now - START


def _at(values: Any, at: int) -> Any:
    return float(values[min(at, len(values) - 1)]) if np.ndim(values) else values
