"""How fast a server answers, against the plain loop and other servers; start, memory, growth.

A ResNet-18 in int8 answers JPEGs of 500 by 400 pixels and 40 KB, sent as raw bodies from another
process over 1, 8 and 32 connections. Contest: rounds of the plain loop of decode and model,
`vizsla serve`, LitServe, BentoML and Ray Serve, all with the same ONNX file, decoding and versions
(see serving_contest.py; the rivals are installed on first use, which needs a package index).
Start: from the process's start to the first 200 at /ping, the page cache warm. Soak: minutes of
load at 32 connections, resident memory every second.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.load import wrk_check
from benchmarks.results import machine_facts, parser, publish, verdict
from benchmarks.rivals.environment import prepare
from benchmarks.served_bundle import make
from benchmarks.server_process import MemoryWatch, free_port, get, running
from benchmarks.serving_contest import (
    CONNECTIONS,
    Contest,
    Contestant,
    in_words,
    load,
    serve_command,
)

QUICK = [
    "--rounds", "1", "--seconds", "1", "--starts", "1", "--soak-minutes", "0.2",
    "--only", "vizsla", "start", "soak",
]  # fmt: skip
PARTS = ("vizsla", "rivals", "start", "soak")
TARGET_SHARE, TARGET_LATENCY, TARGET_TAIL = 95.0, 1.15, 2.0
TARGET_START_S, TARGET_MB, TARGET_GROWTH = 1.5, 250.0, 2.0
_BUSIEST = CONNECTIONS[-1]
_Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    facts: dict[str, Any] = {}
    tables: list[_Table] = []
    if "rivals" in options.only:
        prepare(options.rivals)
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        _say("making the bundle")
        bundle, requests, pictures = make(Path(name))
        facts["pictures"] = pictures
        facts["engine"] = engine = _engine(bundle)
        if {"vizsla", "rivals"} & {*options.only}:
            contest = _contest(options, bundle, requests, engine["name"])
            facts["contest"] = _contest_facts(contest)
            tables += _contest_tables(contest)
            facts["wrk"] = wrk = _wrk(bundle, requests, engine["name"], options, Path(name))
            tables += [_client_table(contest, wrk)]
        if "start" in options.only:
            facts["start"] = _starts(bundle, requests, options)
            tables.append(_start_table(facts["start"]))
        if "soak" in options.only:
            facts["soak"] = _soak(bundle, requests, options.soak_minutes)
            tables.append(_soak_table(facts["soak"]))
    settings = {
        "rounds": options.rounds, "seconds": options.seconds, "starts": options.starts,
        "soak_minutes": options.soak_minutes, "parts": list(options.only),
    }  # fmt: skip
    publish("serving", machine, settings, facts, tables, options.results)


def _options(arguments: list[str] | None) -> Any:
    made = parser("serving", __doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--seconds", type=float, default=10, help="of each measurement in a round")
    made.add_argument("--starts", type=int, default=5)
    made.add_argument("--soak-minutes", type=float, default=10)
    made.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    made.add_argument(
        "--rivals",
        type=Path,
        default=Path(tempfile.gettempdir()) / "vizsla-rivals",
        help="folder with the rivals' environments; those that it lacks are made",
    )
    return made.parse_args(arguments)


def _engine(bundle: Path) -> dict[str, Any]:
    """The engine that vizsla takes by itself, and what it measured."""
    port = free_port()
    with running(serve_command(bundle, port, None), port):
        facts: dict[str, Any] = json.loads(get(port, "/v1/model")[1])["engine"]
    return facts


def _contest(options: Any, bundle: Path, requests: Path, engine: str) -> Contest:
    contest = Contest(bundle, requests, engine, options.seconds)
    contest.choose_arrangement()
    if "rivals" in options.only:
        contest.choose_setups(options.rivals)
    for number in range(options.rounds):
        contest.round(number, options.rivals)
    return contest


def _contest_facts(contest: Contest) -> dict[str, Any]:
    def of(one: Contestant) -> dict[str, Any]:
        return {
            "set_up": None if one.setup is None else in_words(one.setup),
            "tried_per_s": one.tried,
            "rounds": one.rounds,
            "batches_percent": one.batches,
            "memory_mb": one.memory,
            "start_s": one.start_s,
        }

    return {
        "plain_loop": {
            "tried_per_s": contest.plain.tried,
            "best": contest.plain.best,
            "rounds": contest.plain.rounds,
            "one_at_a_time": contest.plain.latency,
        },
        "vizsla": of(contest.vizsla),
        "rivals": {one.name: of(one) for one in contest.rivals},
    }


def _contest_tables(contest: Contest) -> list[_Table]:
    plain, vizsla = contest.plain, contest.vizsla
    share, latency, tail = contest.share_of_plain(), contest.latency_ratio(), contest.tail_ratio()
    waits = statistics.median(one["p50_ms"] for one in plain.latency)
    judged = [
        (f"requests/s at {_BUSIEST} connections, of the plain loop's "
         f"{plain.middle('per_s'):.1f}", f"{share:.1f} %", f"{TARGET_SHARE:g} %",
         verdict(share, TARGET_SHARE, at_most=False)),
        (f"p50 at 1 connection, over the plain loop's {waits:.2f} ms", f"{latency:.2f}",
         f"{TARGET_LATENCY:g}", verdict(latency, TARGET_LATENCY, at_most=True)),
        (f"p99 over p50 at {_BUSIEST} connections", f"{tail:.2f}", f"{TARGET_TAIL:g}",
         verdict(tail, TARGET_TAIL, at_most=True)),
        ("failed requests", f"{vizsla.failures()}", "0",
         verdict(vizsla.failures(), 0, at_most=True)),
    ]  # fmt: skip
    judged += [
        (f"requests/s at {_BUSIEST} connections, over {one.name}'s", f"{ahead:.2f}", "1",
         verdict(ahead, 1.0, at_most=False))
        for one in contest.rivals
        for ahead in [vizsla.middle(_BUSIEST, "per_s") / one.middle(_BUSIEST, "per_s")]
    ]  # fmt: skip
    tried = [(name, f"{per_s:.1f}", "") for name, per_s in plain.tried.items()]
    tried.append(
        (f"{plain.best}, in the rounds", f"{plain.middle('per_s'):.1f}",
         f"{plain.middle('cpu_ms'):.2f}")
    )  # fmt: skip
    loads = [
        (one.name, in_words(one.setup) if one.setup else "as it comes", str(level),
         f"{one.middle(level, 'per_s'):.1f}", f"{one.middle(level, 'p50_ms'):.1f}",
         f"{one.middle(level, 'p99_ms'):.1f}", f"{one.middle(level, 'cpu_ms'):.2f}",
         str(sum(sum(found[level]["failures"].values()) for found in one.rounds)))
        for level in CONNECTIONS
        for one in (vizsla, *contest.rivals)
    ]  # fmt: skip
    weights = [
        (one.name, f"{statistics.median(one.start_s):.1f} s", *_weights(one.memory))
        for one in (vizsla, *contest.rivals)
    ]
    sizes = sorted({size for found in vizsla.batches for size in found}, key=_first_number)
    batches = [
        (size, f"{statistics.median(one.get(size, 0.0) for one in vizsla.batches):.0f} %")
        for size in sizes
    ]
    return [
        ("Plain loop of decode and model", ("arrangement", "pictures/s", "cpu ms"), tried),
        ("Load", ("server", "set-up", "connections", "requests/s", "p50 ms", "p99 ms", "cpu ms",
          "failed"),
         loads),
        (f"Pictures in a run of the network, vizsla at {_BUSIEST} connections",
         ("pictures", "runs"), batches or [("not told", "")]),
        ("After the load", ("server", "ready after", "RSS", "PSS", "processes"), weights),
        ("Targets", ("what", "measured", "target", ""), judged),
    ]  # fmt: skip


def _first_number(size: str) -> int:
    return int(size.split()[0])


def _weights(memory: list[dict[str, float]]) -> tuple[str, str, str]:
    rss, pss, processes = (
        statistics.median(one[what] for one in memory) for what in ("rss", "pss", "processes")
    )
    return f"{rss:.0f} MB", f"{pss:.0f} MB", f"{processes:.0f}"


def _wrk(
    bundle: Path, requests: Path, engine: str, options: Any, scratch: Path
) -> dict[str, dict[str, Any]] | None:
    """wrk and our client in turn at one server, where wrk is installed."""
    port = free_port()
    with running(serve_command(bundle, port, engine), port) as server:
        load(server, requests, _BUSIEST, options.seconds / 4)
        found = wrk_check(port, requests, _BUSIEST, options.seconds, "/invocations", scratch)
        if found is None:
            return None
        return {"wrk": found, "ours": load(server, requests, _BUSIEST, options.seconds)}


def _client_table(contest: Contest, wrk: dict[str, dict[str, Any]] | None) -> _Table:
    """What the client itself takes of the machine, and whether another one finds the same."""
    busy = contest.vizsla.middle(_BUSIEST, "cpu_percent")
    rows = [(f"processor of our client at {_BUSIEST} connections", f"{busy:.1f} % of one core")]
    for name, one in (wrk or {}).items():
        told = f"{one['per_s']:.1f} requests/s, p50 {one['p50_ms']:.1f}, p99 {one['p99_ms']:.1f} ms"
        rows.append((f"{name}, {_BUSIEST} connections", told))
    return "Load client", ("what", "measured"), rows


def _starts(bundle: Path, requests: Path, options: Any) -> dict[str, Any]:
    """By engine, the seconds of each start, and the memory after a load at 32 connections."""
    found: dict[str, Any] = {}
    for name, engine in (("default", None), ("onnxruntime", "onnxruntime")):
        seconds = []
        memory: dict[str, float] = {}
        for number in range(options.starts + 1):
            _say(f"start {number}, engine {name}")
            port = free_port()
            with running(serve_command(bundle, port, engine), port) as server:
                seconds += [server.start_s] if number else []  # the first warms the page cache
                if number == options.starts:
                    load(server, requests, _BUSIEST, options.seconds)
                    memory = server.memory_mb()
        found[name] = {"seconds": seconds, "memory_mb": memory}
    return found


def _start_table(found: dict[str, Any]) -> _Table:
    rows = []
    for engine, one in found.items():
        seconds, memory = statistics.median(one["seconds"]), one["memory_mb"]
        rows += [
            (f"ready, engine {engine}", f"{seconds:.2f} s", f"{TARGET_START_S:g} s",
             verdict(seconds, TARGET_START_S, at_most=True)),
            (f"RSS after the load, engine {engine}",
             f"{memory['rss']:.0f} MB (PSS {memory['pss']:.0f})", f"{TARGET_MB:g} MB",
             verdict(memory["rss"], TARGET_MB, at_most=True)),
        ]  # fmt: skip
    return "Start and memory", ("what", "measured", "target", ""), rows


def _soak(bundle: Path, requests: Path, minutes: float) -> dict[str, Any]:
    """Memory in the second minute of a load and in its last one (tenths of a shorter one)."""
    _say(f"{minutes:g} minutes of load")
    port = free_port()
    with (
        running(serve_command(bundle, port, None), port) as server,
        MemoryWatch(server) as watch,
    ):
        found = load(server, requests, _BUSIEST, 60 * minutes)
    minute = 60.0 if minutes >= 3 else 60 * minutes / 4
    end = watch.samples[-1][0]
    early = [mb for at, mb in watch.samples if minute <= at < 2 * minute]
    late = [mb for at, mb in watch.samples if at >= end - minute]
    return {
        "load": found,
        "early_mb": statistics.fmean(early),
        "late_mb": statistics.fmean(late),
        "growth_percent": 100 * (statistics.fmean(late) / statistics.fmean(early) - 1),
        "largest_mb": max(mb for _, mb in watch.samples),
        "every_10_s_mb": [round(mb, 1) for _, mb in watch.samples[::10]],
    }


def _soak_table(found: dict[str, Any]) -> _Table:
    growth, one = found["growth_percent"], found["load"]
    failed = sum(one["failures"].values())
    rows = [
        (f"RSS, from {found['early_mb']:.1f} to {found['late_mb']:.1f} MB", f"{growth:+.2f} %",
         f"{TARGET_GROWTH:g} %", verdict(growth, TARGET_GROWTH, at_most=True)),
        (f"failed of {one['answers']:,} requests", str(failed), "0",
         verdict(failed, 0, at_most=True)),
    ]  # fmt: skip
    return "Growth under load", ("what", "measured", "target", ""), rows


def _say(what: str) -> None:
    print(f"serving: {what} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
