"""Nothing frozen is computed twice: what that is worth, against the plain script.

    trash6    MobileNetV2, head; 70/15/15, whole pictures (crop squash, as the plain script has
              it): from photographs to a trained model
    dogs120   MobileNetV2, head; 10 epochs
    resnet50  ResNet-50, layer4, random weights, on a part of pets5; 10 epochs; time only

Each program is a child process, timed from start to exit. vizsla runs with an empty cache, with
another learning rate on the cache of that run, and with the solver `lbfgs` on an empty cache. The
plain script repeats the same work every epoch, so by default it runs one epoch on a part of the
pictures, and its time for all is computed from that: start and end as measured, epochs and
pictures in proportion. `--whole-baseline` runs all of it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.photographs import archive, divided_copy, real_weights
from benchmarks.plain_script import PlainTraining, time_plain_script
from benchmarks.results import machine_facts, parser, publish, verdict
from benchmarks.vizsla_runs import train_with_vizsla

QUICK = ["--only", "resnet50", "--resnet-limit", "16", "--epochs", "2"]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Contest:
    """What is trained, on what, and how much faster it is to be (first and second run)."""

    name: str
    source: str
    model: str
    weights: str
    unfreeze: str
    crop: str
    shares: tuple[float, float, float]
    limit: int | None
    baseline_limit: int | None
    targets: tuple[float, float] | None
    solver: bool
    divisions: int = 1


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    measured = {
        contest.name: _hold(contest, options)
        for contest in _contests(options)
        if contest.name in options.only
    }
    settings = {name: value for name, value in vars(options).items() if name != "results"}
    publish("frozen", machine, settings, {"contests": measured}, _tables(measured), options.results)


def _contests(options: Any) -> list[Contest]:
    weights = str(real_weights())
    eighty = (0.8, 0.1, 0.1)
    return [
        Contest(
            "trash6", "trash6", "mobilenetv2_100", weights, "head", "squash",
            (0.7, 0.15, 0.15), None, 400, None, solver=True, divisions=5,
        ),
        Contest(
            "dogs120", "dogs120", "mobilenetv2_100", weights, "head", "center", eighty, None, 400,
            (40, 300), solver=True,
        ),
        Contest(
            "resnet50", "pets5", "resnet50", "none", "layer4", "center", eighty,
            options.resnet_limit, 64, (6, 6), solver=False,
        ),
    ]  # fmt: skip


def _hold(contest: Contest, options: Any) -> dict[str, Any]:
    print(f"frozen: {contest.name} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        counts = divided_copy(
            archive(contest.source),
            scratch / "pictures",
            contest.limit,
            options.seed,
            contest.shares,
        )
        baseline = time_plain_script(
            scratch,
            counts,
            PlainTraining(
                contest.model,
                contest.weights,
                contest.unfreeze,
                options.epochs,
                options.batch_size,
                options.seed,
            ),
            None if options.whole_baseline else contest.baseline_limit,
        )
        runs = {}
        for program, more in _programs(contest).items():
            if program not in options.programs:
                continue
            cache = scratch / ("cache-lbfgs" if program == "lbfgs" else "cache")
            settings = {**_settings(contest, options), **more}
            runs[program] = train_with_vizsla(
                scratch / "pictures", settings, scratch, cache
            ).to_dict()
            runs[program]["times_as_fast"] = baseline["seconds"] / runs[program]["seconds"]
            runs[program]["cache_mb"] = _feature_bytes(cache) / 1e6
        return {
            "pictures": counts,
            "baseline": baseline,
            "runs": runs,
            "targets": contest.targets,
            "divisions": _other_divisions(contest, scratch, options) if "lbfgs" in runs else [],
        }


def _other_divisions(contest: Contest, scratch: Path, options: Any) -> list[float]:
    """The solver's test accuracy on other divisions of the same pictures: with a few hundred test
    pictures one division says little."""
    accuracies = []
    for seed in range(options.seed + 1, options.seed + contest.divisions):
        folder = scratch / f"pictures-{seed}"
        divided_copy(archive(contest.source), folder, contest.limit, seed, contest.shares)
        settings = {**_settings(contest, options), "solver": "lbfgs"}
        run = train_with_vizsla(folder, settings, scratch, scratch / "cache-lbfgs")
        accuracies.append(run.test_accuracy)
    return accuracies


def _settings(contest: Contest, options: Any) -> dict[str, Any]:
    return {
        "model": contest.model,
        "weights": contest.weights,
        "unfreeze": contest.unfreeze,
        "crop": contest.crop,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "trunk_engine": options.engine,
    }


def _programs(contest: Contest) -> dict[str, dict[str, Any]]:
    """What is set otherwise in each of vizsla's runs, in order."""
    programs: dict[str, dict[str, Any]] = {"first": {}, "second": {"lr": 1e-3}}
    if contest.solver:
        programs["lbfgs"] = {"solver": "lbfgs"}
        programs["lbfgs again"] = {"solver": "lbfgs"}
    return programs


def _feature_bytes(cache: Path) -> int:
    return sum(file.stat().st_size for file in (cache / "features").rglob("*") if file.is_file())


def _tables(measured: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    rows, verdicts = [], []
    for name, facts in measured.items():
        baseline = facts["baseline"]
        how = "plain script (computed from a part)" if baseline["computed"] else "plain script"
        accuracy = f"{baseline['test']:.1%}" if "test" in baseline else "-"
        rows.append([name, how, f"{baseline['seconds']:.0f}", "1.0", *["-"] * 7, accuracy])
        for program, run in facts["runs"].items():
            rows.append(
                [
                    name,
                    f"vizsla, {program}",
                    f"{run['seconds']:.1f}",
                    f"{run['times_as_fast']:.1f}",
                    f"{run['trunk_seconds']:.1f}",
                    f"{run['passes']:,}",
                    f"{run['passes_per_second']:.0f}",
                    f"{run['trunk_wait_share']:.1%}",
                    run["engine"],
                    f"{run['peak_main_mb']:.0f}",
                    f"{run['cache_mb']:.1f}",
                    f"{run['test_accuracy']:.2%}",
                ]
            )
        if facts["divisions"]:
            found = [facts["runs"]["lbfgs"]["test_accuracy"], *facts["divisions"]]
            shown = f"{statistics.mean(found):.1%} ({min(found):.1%} to {max(found):.1%})"
            verdicts.append([name, "lbfgs, test, mean of divisions", shown, "≥ 86%", ""])
        for program, target in zip(("first", "second"), facts["targets"] or ()):
            if program not in facts["runs"]:
                continue
            ratio = facts["runs"][program]["times_as_fast"]
            found = verdict(ratio, target, at_most=False)
            verdicts.append(
                [name, f"times as fast, {program} run", f"{ratio:.1f}", f"≥ {target}", found]
            )
    header = [
        "data", "program", "seconds", "times as fast", "trunk s", "passes", "passes/s", "waiting",
        "engine", "MB (main)", "cache MB", "test",
    ]  # fmt: skip
    return [
        ("End to end, side by side", header, rows),
        ("Targets", ["data", "what", "measured", "target", ""], verdicts),
    ]


def _options(arguments: list[str] | None) -> Any:
    made = parser("frozen", __doc__)
    everything = ["trash6", "dogs120", "resnet50"]
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--engine", default="auto", help="vizsla's trunk_engine")
    made.add_argument("--whole-baseline", action="store_true")
    made.add_argument(
        "--resnet-limit", type=int, default=200, help="training pictures for ResNet-50"
    )
    programs = ["first", "second", "lbfgs", "lbfgs again"]
    made.add_argument("--programs", nargs="+", choices=programs, default=programs)
    made.add_argument("--only", nargs="+", choices=everything, default=everything)
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
