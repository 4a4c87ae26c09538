"""Rounds in which the plain loop, vizsla and its rivals take turns on the same pictures.

The machine's speed drifts by more than the differences looked for, so a round has every contestant
once, each round begins with another one, and what is compared was measured in the same round.
Servers run alone: the one before is ended first.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.child_process import vizsla_command
from benchmarks.load import measure_load
from benchmarks.plain_loop import ARRANGEMENTS, LATENCY, measure_plain_loop
from benchmarks.rivals.environment import RIVALS, SETUPS, Rival, Setup, environment
from benchmarks.server_process import Server, free_port, get, running

CONNECTIONS = (1, 8, 32)
_BUSIEST = CONNECTIONS[-1]
_PATH = "/invocations"


@dataclass
class Plain:
    """The plain loop: every arrangement once, then the fastest and the latency every round."""

    tried: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[str, float]] = field(default_factory=list)
    latency: list[dict[str, float]] = field(default_factory=list)

    def middle(self, what: str) -> float:
        """The median over the rounds."""
        return statistics.median(one[what] for one in self.rounds)

    @property
    def best(self) -> str:
        return max(self.tried, key=self.tried.__getitem__)


@dataclass
class Contestant:
    """A server, and what it did in each round: by connections, what the load client found."""

    name: str
    rival: Rival | None = None
    setup: Setup | None = None
    tried: dict[str, float] = field(default_factory=dict)
    rounds: list[dict[int, dict[str, Any]]] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    start_s: list[float] = field(default_factory=list)
    batches: list[dict[str, float]] = field(default_factory=list)

    def middle(self, connections: int, what: str) -> float:
        """The median over the rounds."""
        return statistics.median(one[connections][what] for one in self.rounds)

    def failures(self) -> int:
        return sum(sum(level["failures"].values()) for one in self.rounds for level in one.values())


class Contest:
    """Runs the rounds. `engine` is what vizsla's servers and the plain loop compute with."""

    def __init__(self, bundle: Path, requests: Path, engine: str, seconds: float) -> None:
        self.bundle, self.requests = bundle, requests
        self.engine, self.seconds = engine, seconds
        self.plain = Plain()
        self.vizsla = Contestant("vizsla")
        self.rivals: list[Contestant] = []

    def choose_arrangement(self) -> None:
        """Try every arrangement of the plain loop for a while."""
        for arrangement in ARRANGEMENTS:
            _say(f"plain loop, {arrangement}")
            self.plain.tried[arrangement] = self._plain(arrangement, self.seconds * 0.3)["per_s"]

    def choose_setups(self, folder: Path) -> None:
        """Try every set-up of every rival for a while; each goes on with its fastest."""
        for rival in RIVALS:
            tried: dict[Setup, float] = {}
            for setup in SETUPS:
                _say(f"{rival.name}, {in_words(setup)}")
                one = Contestant(rival.name, rival, setup)
                self._serve(one, folder, (_BUSIEST,), self.seconds * 0.4)
                tried[setup] = one.middle(_BUSIEST, "per_s")
            best = max(tried, key=tried.__getitem__)
            kept = {in_words(setup): per_s for setup, per_s in tried.items()}
            self.rivals.append(Contestant(rival.name, rival, best, kept))

    def round(self, number: int, folder: Path) -> None:
        _say(f"round {number + 1}: plain loop")
        self.plain.rounds.append(self._plain(self.plain.best, self.seconds))
        self.plain.latency.append(self._plain(LATENCY, self.seconds))
        servers = [self.vizsla, *self.rivals]
        for one in (servers * 2)[number % len(servers) :][: len(servers)]:
            _say(f"round {number + 1}: {one.name}")
            self._serve(one, folder, CONNECTIONS, self.seconds)

    def share_of_plain(self) -> float:
        """Requests a second at 32 connections over the plain loop's, in per cent."""
        pairs = zip(self.vizsla.rounds, self.plain.rounds)
        return 100 * statistics.median(
            one[_BUSIEST]["per_s"] / plain["per_s"] for one, plain in pairs
        )

    def latency_ratio(self) -> float:
        """Median wait of a single client over the plain loop's."""
        pairs = zip(self.vizsla.rounds, self.plain.latency)
        return statistics.median(one[1]["p50_ms"] / plain["p50_ms"] for one, plain in pairs)

    def tail_ratio(self) -> float:
        return statistics.median(
            one[_BUSIEST]["p99_ms"] / one[_BUSIEST]["p50_ms"] for one in self.vizsla.rounds
        )

    def _plain(self, arrangement: str, seconds: float) -> dict[str, float]:
        return measure_plain_loop(self.bundle, self.requests, arrangement, seconds, self.engine)

    def _serve(self, one: Contestant, folder: Path, levels: Sequence[int], seconds: float) -> None:
        port = free_port()
        if one.rival is None:
            command = serve_command(self.bundle, port, self.engine)
            started = running(command, port)
        else:
            assert one.setup is not None
            command = one.rival.command(folder, self.bundle, port, one.setup)
            started = running(command, port, environment(), one.rival.ready_path)
        with started as server:
            one.start_s.append(server.start_s)
            found = {}
            for level in levels:
                before = batch_counts(server)
                found[level] = load(server, self.requests, level, seconds)
                if level == _BUSIEST and before:
                    one.batches.append(_difference(before, batch_counts(server)))
            one.rounds.append(found)
            one.memory.append(server.memory_mb())


def serve_command(bundle: Path, port: int, engine: str | None) -> list[str]:
    """`vizsla serve`; `engine` None leaves the choice to it."""
    command = [vizsla_command(), "serve", str(bundle), "--port", str(port)]
    return command if engine is None else [*command, "--engine", engine]


def load(server: Server, requests: Path, connections: int, seconds: float) -> dict[str, Any]:
    """What the load client found, and the server's `cpu_ms` (processor time) a request."""
    warm_up = min(2.0, seconds / 4)
    before = server.cpu_seconds()
    found = measure_load(server.port, requests, connections, seconds, warm_up, _PATH)
    used = server.cpu_seconds() - before
    return {**found, "cpu_ms": 1000 * used / max(found["answers_in_all"], 1)}


def batch_counts(server: Server) -> dict[str, float]:
    """How many runs of the network had so many pictures, from /metrics: by `1`, `2`, `3 to 4` …;
    nothing where the server does not tell."""
    status, body = get(server.port, "/metrics")
    text = body.decode(errors="replace") if status == 200 else ""
    found = re.findall(r'^vizsla_batch_pictures_bucket\{le="([\d.]+)"\} ([\d.]+)$', text, re.M)
    counts: dict[str, float] = {}
    below, last = 0.0, 0
    for bound, total in found:
        size = int(float(bound))
        counts[str(size) if size == last + 1 else f"{last + 1} to {size}"] = float(total) - below
        below, last = float(total), size
    return counts


def _difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Each size's share of the runs between the two, in per cent."""
    runs = {name: count - before.get(name, 0.0) for name, count in after.items()}
    total = sum(runs.values()) or 1.0
    return {name: 100 * count / total for name, count in runs.items() if count}


def in_words(setup: Setup) -> str:
    workers, threads, batch = setup
    batches = f"batches to {batch}" if batch > 1 else "no batches"
    return f"{workers} x {threads} threads, {batches}"


def _say(what: str) -> None:
    print(f"serving: {what} …", file=sys.stderr, flush=True)
