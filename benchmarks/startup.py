"""How long a person waits before anything happens: import, help, one prediction.

Every figure is of a fresh process from start to exit. The files are in the system's page cache
after the first repetition, whose time stands in its own column: without it one would measure
the disk. The bundles are of untrained networks, since the time does not depend on the weights.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.child_process import REPOSITORY, measure, vizsla_command
from benchmarks.drawn_pictures import draw
from benchmarks.results import machine_facts, parser, publish, verdict

QUICK = ["--repeat", "3", "--models", "mobilenetv2_100"]
IMPORT, HELP, PREDICT = "import vizsla", "vizsla --help", "vizsla predict, "
_BARE = "bare python"
_TARGETS_MS = {IMPORT: 100, HELP: 400, PREDICT: 1200}


def main(arguments: list[str] | None = None) -> None:
    made = parser("startup", __doc__)
    made.add_argument("--repeat", type=int, default=15, help="fresh processes for each figure")
    made.add_argument("--models", nargs="+", default=["mobilenetv2_100", "resnet50"])
    options = made.parse_args(arguments)
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        commands = {
            _BARE: [sys.executable, "-c", "pass"],
            IMPORT: [sys.executable, "-c", "import vizsla"],
            HELP: [vizsla_command(), "--help"],
        }
        dogs = draw(scratch / "dogs", breeds=3, pictures_per_breed=6, size_px=320)
        picture = next((dogs / "test").rglob("*.jpg"))
        for model in options.models:
            print(f"startup: training a {model} for its bundle …", file=sys.stderr, flush=True)
            bundle = _bundle(model, dogs, scratch / model)
            commands[f"{PREDICT}{model}"] = [vizsla_command(), "predict", str(bundle), str(picture)]
        seconds = _interleaved(commands, options.repeat)
    facts = {what: _summary(times) for what, times in seconds.items()}
    facts[IMPORT]["median_over_bare_ms"] = facts[IMPORT]["median_ms"] - facts[_BARE]["median_ms"]
    publish(
        "startup",
        machine,
        {"repeat": options.repeat},
        {"starts": facts},
        [_table(facts)],
        options.results,
    )


def _bundle(model: str, pictures: Path, scratch: Path) -> Path:
    """The bundle of a network after one epoch on a handful of drawn pictures."""
    command = [
        vizsla_command(), "train", str(pictures), "--runs", str(scratch / "runs"),
        "--model", model, "--weights", "none", "--epochs", "1", "--workers", "0",
    ]  # fmt: skip
    measure(command, {"VIZSLA_CACHE": str(scratch / "cache")})
    (run,) = (scratch / "runs").iterdir()
    return run / "bundle"


def _interleaved(commands: dict[str, list[str]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each command, in turns, so that a busy moment disturbs all alike."""
    seconds: dict[str, list[float]] = {what: [] for what in commands}
    for _ in range(repeat):
        for what, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=REPOSITORY)
            seconds[what].append(time.perf_counter() - started)
    return seconds


def _summary(seconds: list[float]) -> dict[str, float]:
    return {
        "median_ms": statistics.median(seconds) * 1e3,
        "min_ms": min(seconds) * 1e3,
        "first_ms": seconds[0] * 1e3,
    }


def _table(facts: dict[str, dict[str, float]]) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for what, figures in facts.items():
        kind = PREDICT if what.startswith(PREDICT) else what
        # Python's own start is no part of the import.
        judged = figures.get("median_over_bare_ms", figures["median_ms"])
        target = _TARGETS_MS.get(kind)
        over = f"{figures['median_over_bare_ms']:.0f}" if "median_over_bare_ms" in figures else "-"
        cells: list[Any] = [f"{figures[key]:.0f}" for key in ("median_ms", "min_ms", "first_ms")]
        judgement = verdict(judged, target, at_most=True) if target else ""
        rows.append([what, *cells, over, f"< {target}" if target else "-", judgement])
    header = ["process", "median ms", "min ms", "first ms", "over bare python", "target ms", ""]
    return "From start to exit", header, rows


if __name__ == "__main__":
    main()
