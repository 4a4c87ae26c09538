"""Reading a profile: samples of machines, steps of processes, and frames of both.

Everything is read from the run folder, while it is written too; damaged lines are skipped and
counted (`reading.py` says what is damaged).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vizsla.errors import RunError
from vizsla.profiling.format import (
    DEFAULT_INTERVAL_MS,
    STARTUP,
    samples_file,
    timeline_file,
)
from vizsla.profiling.reading import read_machine, read_timeline
from vizsla.profiling.samples import Floats, Samples

if TYPE_CHECKING:
    import pandas as pd

_NODE = re.compile(r"profile-(.+)\.jsonl")
_RANK = re.compile(r"timeline-rank([0-9]+)\.jsonl")
NOT_PROFILED = (
    "was not profiled. Train with vizsla train --profile, run any command under vizsla profile -- "
    "COMMAND, or put vizsla.profiling.profile around a loop."
)


class NotProfiled(RunError):
    """The run has no profile; the message says how to get one."""


@dataclass(frozen=True)
class Span:
    """Something that took a while outside of steps; `time` is when it began, since 1970."""

    name: str
    time: float
    seconds: float


@dataclass(frozen=True)
class StepTimes:
    """Where steps' time went: arrays with an entry a step, in order. `time` is when each began,
    `seconds` how long it took, and `phases` its parts, which add up to it."""

    step: NDArray[np.int64]
    time: Floats
    seconds: Floats
    phases: Mapping[str, Floats]

    def __len__(self) -> int:
        return len(self.step)

    def total(self, phase: str) -> float:
        """Seconds of a phase over all steps; 0 for one that never occurred."""
        return float(self.phases[phase].sum()) if phase in self.phases else 0.0

    def share(self, phase: str) -> float:
        """Share of all steps' time that a phase took, in 0 to 1."""
        whole = float(self.seconds.sum())
        return self.total(phase) / whole if whole else 0.0

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]]) -> StepTimes:
        """From the `steps` lines of a file, in its order; a phase that a group does not know took
        no time in it."""
        names = dict.fromkeys(name for group in groups for name in group["phases"])
        step = np.array(_joined(group["step"] for group in groups), np.int64)
        # Of a step that comes twice the last holds, which is the first one from behind.
        chosen = len(step) - 1 - np.unique(step[::-1], return_index=True)[1]

        def column(parts: Iterable[Iterable[float]]) -> Floats:
            return np.array(_joined(parts), np.float64)[chosen]

        def phase(name: str) -> Floats:
            return column(
                group["phases"].get(name) or [0.0] * len(group["step"]) for group in groups
            )

        return cls(
            step[chosen],
            column(group["time"] for group in groups),
            column(group["seconds"] for group in groups),
            {name: phase(name) for name in names},
        )


class Profile:
    """What was recorded of a run's machines and steps. Read when made; make another for news."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.damaged = 0
        self.ranks = self._ranks()
        self._lines = {rank: self._timeline(rank) for rank in self.ranks}
        self._samples = {node: self._machine(node) for node in self._nodes()}

    @property
    def nodes(self) -> list[str]:
        """The machines that were sampled: algo-1, algo-2, and so on."""
        return list(self._samples)

    def samples(self, node: str | None = None) -> Samples:
        """The samples of a machine, by default of the first, or none where no machine was
        sampled. Raises `KeyError` for a node that was not."""
        if node is None and not self._samples:
            return Samples.of("algo-1", {}, [])
        return self._samples[node if node is not None else self.nodes[0]]

    def steps(self, rank: int = 0) -> StepTimes:
        """The steps of a process; of a step that was repeated after a resume, the later one."""
        return self._all_steps[rank] if rank in self._all_steps else StepTimes.of([])

    @cached_property
    def _all_steps(self) -> dict[int, StepTimes]:
        return {rank: StepTimes.of(_of_kind(lines, "steps")) for rank, lines in self._lines.items()}

    def sessions(self, rank: int = 0) -> list[dict[str, Any]]:
        """A line for each time that the process began or went on."""
        return _of_kind(self._lines.get(rank, []), "session")

    def spans(self, rank: int = 0) -> list[Span]:
        """What happened outside of steps, in order of time."""
        lines = _of_kind(self._lines.get(rank, []), "span")
        spans = [Span(line["name"], line["time"], line["seconds"]) for line in lines]
        return sorted(spans, key=lambda span: span.time)

    def startup(self, rank: int = 0) -> dict[str, float]:
        """Seconds of each part of the first start, up to the end of the first step."""
        found: dict[str, float] = {}
        begun = 0
        for line in self._lines.get(rank, []):
            begun += line["kind"] == "session"
            if begun > 1:  # what comes behind it in the file is a later start
                break
            if line["kind"] == "span" and line["name"] in STARTUP:
                found[line["name"]] = found.get(line["name"], 0.0) + line["seconds"]
        return found

    def fact(self, name: str, rank: int = 0) -> dict[str, Any] | None:
        """A measurement made for the profile, the latest of its name; None if it was not made."""
        found = _of_kind(self._lines.get(rank, []), "fact")
        return next((one for one in reversed(found) if one["name"] == name), None)

    def traces(self) -> list[Path]:
        """Traces of PyTorch's profiler, in order."""
        return sorted(self.run.glob("trace-*.json.gz"))

    def system_frame(self) -> pd.DataFrame:
        """A row for each metric of each sample, with the columns of SageMaker's data frame."""
        from vizsla.profiling.frames import system_frame

        return system_frame(self)

    def steps_frame(self) -> pd.DataFrame:
        """A row for each step of each process: step, rank, time, seconds, and every phase."""
        from vizsla.profiling.frames import steps_frame

        return steps_frame(self)

    def _nodes(self) -> list[str]:
        found = (_NODE.fullmatch(path.name) for path in self.run.glob("profile-*.jsonl"))
        return sorted((match[1] for match in found if match), key=_numbered)

    def _ranks(self) -> list[int]:
        found = (_RANK.fullmatch(path.name) for path in self.run.glob("timeline-rank*.jsonl"))
        others = sorted(int(match[1]) for match in found if match)
        return [0, *others] if timeline_file(self.run).exists() else others

    def _timeline(self, rank: int) -> list[dict[str, Any]]:
        lines, damaged = read_timeline(timeline_file(self.run, rank))
        self.damaged += damaged
        return lines

    def _machine(self, node: str) -> Samples:
        lines, damaged = read_machine(samples_file(self.run, node))
        self.damaged += damaged
        about: dict[str, Any] = {}
        samples = []
        for line in lines:
            if line["kind"] == "about":
                about = line
            else:
                line["interval_ms"] = about.get("interval_ms", DEFAULT_INTERVAL_MS)
                samples.append(line)
        return Samples.of(node, about, samples)


def open_profile(run: Path) -> Profile:
    """The profile of a run folder. Raises `NotProfiled`, which says how to profile, if none."""
    profile = Profile(run)
    if not profile.nodes and not profile.ranks:
        raise NotProfiled(f"The run {run} {NOT_PROFILED}")
    return profile


def _joined(parts: Iterable[Iterable[float]]) -> list[float]:
    return list(chain.from_iterable(parts))


def _of_kind(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == kind]


def _numbered(node: str) -> tuple[str, int]:
    stem = node.rstrip("0123456789")
    return stem, int(node[len(stem) :] or 0)
