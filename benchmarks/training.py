"""`vizsla train` against the plain script of `baseline.py`, end to end, on the same pictures.

Both are child processes, timed from start to exit. vizsla runs twice a round: first with an empty
cache, as on the day it is installed, and again with the cache that the first run left. A third run
keeps no outputs of the frozen layers: it shows what keeping them is worth, and its steps load
pictures, so that its wait share is the loader's. The order alternates between rounds, and figures
are medians over rounds. vizsla also evaluates exactly and writes and verifies a bundle in its time;
the script writes a state dict.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child_process import measure
from benchmarks.photographs import archive, divided_copy, real_weights
from benchmarks.results import machine_facts, parser, publish, verdict
from benchmarks.vizsla_runs import train_with_vizsla

QUICK = ["--epochs", "1", "--limit", "24", "--resnet-limit", "16", "--only", "pets5", "resnet50"]
TARGET_RATIO = 2.5
TARGET_WAIT_SHARE = 0.05
_PROGRAMS = ("baseline", "first", "second", "uncached")


@dataclass(frozen=True)
class Contest:
    """What both programs are asked to do. `judged` is False where weights are random: then
    accuracies say nothing and only time counts."""

    name: str
    source: str
    model: str
    weights: str
    unfreeze: str
    limit: int | None
    judged: bool


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    contests = [contest for contest in _contests(options) if contest.name in options.only]
    measured: dict[str, Any] = {}
    for contest in contests:
        print(f"training: {contest.name} …", file=sys.stderr, flush=True)
        measured[contest.name] = _hold(contest, options)
    settings = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "baseline_lr": options.baseline_lr,
        "baseline_workers": options.baseline_workers,
        "vizsla": "defaults except model, weights, unfreeze, epochs, batch_size",
        "rounds": options.repeat,
        "limit": options.limit,
        "resnet_limit": options.resnet_limit,
    }
    publish(
        "training", machine, settings, {"contests": measured}, _tables(measured), options.results
    )


def _contests(options: Any) -> list[Contest]:
    weights = str(real_weights())
    mobile = [
        Contest(name, name, "mobilenetv2_100", weights, "head", options.limit, judged=True)
        for name in ("pets5", "trash6")
    ]
    resnet = Contest(
        "resnet50", "pets5", "resnet50", "none", "layer4", options.resnet_limit, judged=False
    )
    return [*mobile, resnet]


def _hold(contest: Contest, options: Any) -> dict[str, Any]:
    """All rounds of a contest, each program's figures, and their ratios."""
    rounds: dict[str, list[dict[str, Any]]] = {program: [] for program in _PROGRAMS}
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        pictures = divided_copy(
            archive(contest.source), scratch / "pictures", contest.limit, options.seed
        )
        for number in range(options.repeat):
            cache = scratch / f"cache-{number}"
            run: dict[str, Callable[[], dict[str, Any]]] = {
                "baseline": lambda: _run_baseline(contest, scratch, options),
                "first": lambda cache=cache: _run_vizsla(contest, scratch, cache, options),
                "second": lambda cache=cache: _run_vizsla(contest, scratch, cache, options),
                "uncached": lambda cache=cache: _run_vizsla(
                    contest, scratch, cache, options, cache="off"
                ),
            }
            order = _PROGRAMS if number % 2 == 0 else (*_PROGRAMS[1:], "baseline")
            for program in order:
                rounds[program].append(run[program]())
    middle = {
        program: statistics.median(one["seconds"] for one in runs)
        for program, runs in rounds.items()
    }
    return {
        "model": contest.model,
        "weights": "imagenet1k" if contest.judged else "none",
        "unfreeze": contest.unfreeze,
        "pictures": pictures,
        "rounds": rounds,
        "median_seconds": middle,
        "ratio_first": middle["baseline"] / middle["first"],
        "ratio_second": middle["baseline"] / middle["second"],
        "judged": contest.judged,
    }


def _run_vizsla(
    contest: Contest, scratch: Path, cache: Path, options: Any, **more: Any
) -> dict[str, Any]:
    settings = {
        "model": contest.model,
        "weights": contest.weights,
        "unfreeze": contest.unfreeze,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        **more,
    }
    return train_with_vizsla(scratch / "pictures", settings, scratch, cache).to_dict()


def _run_baseline(contest: Contest, scratch: Path, options: Any) -> dict[str, Any]:
    figures = scratch / "baseline.json"
    command = [
        sys.executable, str(Path(__file__).with_name("baseline.py")), str(scratch / "pictures"),
        "--model", contest.model, "--weights", contest.weights, "--unfreeze", contest.unfreeze,
        "--epochs", str(options.epochs), "--batch-size", str(options.batch_size),
        "--lr", str(options.baseline_lr), "--workers", str(options.baseline_workers),
        "--seed", str(options.seed), "--output", str(scratch / "baseline.pth"),
        "--json", str(figures),
    ]  # fmt: skip
    child = measure(command)
    facts = json.loads(figures.read_text(encoding="utf-8"))
    train_seconds = sum(epoch["train_seconds"] for epoch in facts["epochs"])
    return {
        "seconds": child.seconds,
        "loop_seconds": train_seconds + sum(epoch["valid_seconds"] for epoch in facts["epochs"]),
        "peak_main_mb": child.peak_main_mb,
        "peak_tree_mb": child.peak_tree_mb,
        "best_valid_accuracy": max(epoch["valid_accuracy"] for epoch in facts["epochs"]),
        "test_accuracy": facts["test_accuracy"],
        "train_pictures_per_second": facts["train_pictures"] * options.epochs / train_seconds,
    }


def _tables(measured: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    header = [
        "data", "program", "seconds", "times as fast", "trunk + epochs", "train pictures/s",
        "MB (main)", "MB (tree)", "best valid", "test", "wait", "wait after 1st step",
    ]  # fmt: skip
    names = {"baseline": "plain script", "first": "vizsla, first", "second": "vizsla, again"}
    names["uncached"] = "vizsla, trunk every epoch"
    rows, verdicts = [], []
    for name, facts in measured.items():
        for program, runs in facts["rounds"].items():
            rows.append([name, names[program], *_cells(runs, facts, program)])
        verdicts += _verdicts(name, facts)
    shown = "End to end, side by side (medians over rounds)"
    return [
        (shown, header, rows),
        ("Targets", ["data", "what", "measured", "target", ""], verdicts),
    ]


def _cells(runs: list[dict[str, Any]], facts: dict[str, Any], program: str) -> list[str]:
    def middle(key: str) -> float:
        return statistics.median(one[key] for one in runs)

    ratio = facts["median_seconds"]["baseline"] / middle("seconds")
    accuracies = [f"{middle(key):.1%}" for key in ("best_valid_accuracy", "test_accuracy")]
    waits = [f"{middle(key):.1%}" for key in ("wait_share", "later_wait_share") if key in runs[0]]
    return [
        f"{middle('seconds'):.1f}",
        f"{ratio:.2f}",
        f"{middle('loop_seconds'):.1f}",
        f"{middle('train_pictures_per_second'):.1f}",
        f"{middle('peak_main_mb'):.0f}",
        f"{middle('peak_tree_mb'):.0f}",
        *(accuracies if facts["judged"] else ["-", "-"]),
        *(waits or ["-", "-"]),
    ]


def _verdicts(name: str, facts: dict[str, Any]) -> list[list[str]]:
    rows = []
    for which in ("first", "second"):
        ratio = facts[f"ratio_{which}"]
        found = verdict(ratio, TARGET_RATIO, at_most=False)
        rows.append(
            [name, f"times as fast, {which} run", f"{ratio:.2f}", f"≥ {TARGET_RATIO}", found]
        )
    vizsla = facts["rounds"]["first"] + facts["rounds"]["second"]
    wait = max(run["wait_share"] for run in facts["rounds"]["uncached"])
    found = verdict(wait, TARGET_WAIT_SHARE, at_most=True)
    rows.append(
        [name, "wait share, trunk every epoch", f"{wait:.1%}", f"< {TARGET_WAIT_SHARE:.0%}", found]
    )
    if facts["judged"]:
        worst = min(run["best_valid_accuracy"] for run in vizsla)
        script = max(run["best_valid_accuracy"] for run in facts["rounds"]["baseline"])
        found = verdict(worst, script, at_most=False)
        rows.append([name, "best validation accuracy", f"{worst:.1%}", f"≥ {script:.1%}", found])
    return rows


def _options(arguments: list[str] | None) -> Any:
    made = parser("training", __doc__)
    everything = ["pets5", "trash6", "resnet50"]
    made.add_argument("--epochs", type=int, default=5)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--repeat", type=int, default=1, help="rounds")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--baseline-lr", type=float, default=1e-3)
    made.add_argument("--baseline-workers", type=int, default=2)
    made.add_argument(
        "--limit", type=int, help="training pictures of pets5 and trash6; default all"
    )
    made.add_argument(
        "--resnet-limit", type=int, default=200, help="training pictures for ResNet-50"
    )
    made.add_argument("--only", nargs="+", choices=everything, default=everything)
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
