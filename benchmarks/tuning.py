"""A search of ten trials, against the plain script run once a trial.

    dogs120   MobileNetV2 with the real weights, head; ten trials of ten epochs
    resnet50  ResNet-50, layer4, random weights, on a part of pets5; ten trials of ten epochs
    jobs      one trial at a time against two, nothing pruned: the last stage of a MobileNetV2 on a
              part of pets5, and a head on trash6

The script's time for one trial is multiplied by the trials: it knows no other way. That of resnet50
is measured whole, that of dogs120 computed from a part of it (`plain_script.py`). vizsla searches
on an empty cache with its default pruner, which ends bad trials early; that is part of what is
measured, and the epochs that were trained are in the table. Each program is timed from start to
exit. In `jobs` the cache is filled before.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child_process import measure, vizsla_command
from benchmarks.photographs import archive, divided_copy, real_weights
from benchmarks.plain_script import PlainTraining, time_plain_script
from benchmarks.results import machine_facts, parser, publish, verdict

QUICK = ["--only", "jobs", "--trials", "2", "--epochs", "1", "--limit", "32"]
_SEARCHES = {
    "dogs120": ["lr=3e-4..3e-2:log", "batch_size=16..128"],
    "resnet50": ["lr=1e-5..1e-2:log", "batch_size=16..64"],
    "jobs": ["lr=1e-5..1e-2:log"],
}


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    measured: dict[str, Any] = {}
    for name in options.only:
        print(f"tuning: {name} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as scratch:
            measured[name] = _MEASURES[name](Path(scratch), options)
    settings = {name: value for name, value in vars(options).items() if name != "results"}
    publish("tuning", machine, settings, {"contests": measured}, _tables(measured), options.results)


def _dogs120(scratch: Path, options: Any) -> dict[str, Any]:
    counts = divided_copy(archive("dogs120"), scratch / "pictures", None, options.seed)
    weights = str(real_weights())
    training = PlainTraining("mobilenetv2_100", weights, "head", options.epochs, 32, options.seed)
    return _contest(scratch, counts, training, 400, "dogs120", options)


def _resnet50(scratch: Path, options: Any) -> dict[str, Any]:
    counts = divided_copy(archive("pets5"), scratch / "pictures", options.limit, options.seed)
    training = PlainTraining("resnet50", "none", "layer4", options.epochs, 32, options.seed)
    return _contest(scratch, counts, training, None, "resnet50", options)


def _contest(
    scratch: Path,
    counts: dict[str, int],
    training: PlainTraining,
    part: int | None,
    search: str,
    options: Any,
) -> dict[str, Any]:
    baseline = time_plain_script(scratch, counts, training, part)
    base = {
        "model": training.model,
        "weights": training.weights,
        "unfreeze": training.unfreeze,
        "epochs": training.epochs,
        "seed": training.seed,
    }
    studies = {}
    for program in ("first", "again"):
        studies[program] = _tune(
            scratch, base, _SEARCHES[search], options.trials, options.jobs, scratch / "cache"
        )
        script = options.trials * baseline["seconds"]
        studies[program]["times_as_fast"] = script / studies[program]["seconds"]
    return {"pictures": counts, "baseline": baseline, "studies": studies}


def _jobs(scratch: Path, options: Any) -> dict[str, Any]:
    return {
        unfreeze: _compared(scratch / unfreeze, unfreeze, source, limit, options)
        for unfreeze, source, limit in (("last", "pets5", options.limit), ("head", "trash6", None))
    }


def _compared(
    scratch: Path, unfreeze: str, source: str, limit: int | None, options: Any
) -> dict[str, Any]:
    """The same trials, one and two at a time; the order of the two changes from round to round."""
    scratch.mkdir()
    divided_copy(archive(source), scratch / "pictures", limit, options.seed)
    base = {
        "model": "mobilenetv2_100",
        "weights": str(real_weights()),
        "unfreeze": unfreeze,
        "epochs": options.epochs,
        "seed": options.seed,
        "sampler": "random",
        "pruner": "none",
    }
    cache = scratch / "cache"
    _tune(scratch, {**base, "epochs": 2}, _SEARCHES["jobs"], 1, 1, cache)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    ready: list[float] = []
    for order in ((1, 2), (2, 1)):
        for jobs in order:
            study = _tune(scratch, base, _SEARCHES["jobs"], options.trials, jobs, cache)
            seconds[jobs].append(study["seconds"])
            ready += study["ready_seconds"]
    return {
        "trials": options.trials,
        "seconds": seconds,
        "times_as_fast": min(seconds[1]) / min(seconds[2]),
        "ready_seconds": ready,
    }


def _tune(
    scratch: Path,
    base: dict[str, Any],
    search: list[str],
    trials: int,
    jobs: int,
    cache: Path,
) -> dict[str, Any]:
    """One study from the outside, and the figures from its folder, which is then removed."""
    from vizsla import open_study

    studies = scratch / "studies"
    flags = [
        part for name, value in base.items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [
        vizsla_command(), "tune", str(scratch / "pictures"), "--studies", str(studies),
        "--trials", str(trials), "--jobs", str(jobs), *flags, "--search", *search,
    ]  # fmt: skip
    child = measure(command, {"VIZSLA_CACHE": str(cache)})
    (path,) = studies.iterdir()
    study = open_study(path)
    trunks = [study.run_of(record).trunk() or {} for record in study.records]
    facts = {
        "seconds": child.seconds,
        "peak_tree_mb": child.peak_tree_mb,
        "trials": study.trials.drop(columns="reason").to_dict("records"),
        "epochs": int(study.trials["epochs"].sum()),
        "best": study.best.values["accuracy"],
        "trunk_seconds": max(trunk.get("seconds", 0.0) for trunk in trunks),
        "ready_seconds": [
            record.ready_seconds
            for record, trunk in zip(study.records, trunks, strict=True)
            if record.ready_seconds is not None and not trunk.get("passes")
        ],
    }
    shutil.rmtree(studies)
    return facts


_MEASURES = {"dogs120": _dogs120, "resnet50": _resnet50, "jobs": _jobs}
_TARGETS = {"dogs120": 200, "resnet50": 15}


def _tables(measured: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    rows, verdicts = [], []
    for name, facts in measured.items():
        if name == "jobs":
            for part, compared in facts.items():
                what = f"two jobs against one, {part}"
                verdicts.append(_verdict(what, compared["times_as_fast"], 1.6, False))
            ready = max(second for one in facts.values() for second in one["ready_seconds"])
            verdicts.append(_verdict("cached trial: s to its first step, most", ready, 1.5, True))
            continue
        script = facts["baseline"]["seconds"]
        trials = len(facts["studies"]["first"]["trials"])
        baseline = facts["baseline"]
        how = "one computed" if baseline["computed"] else "one measured"
        valid = f"{baseline['best_valid']:.2%}" if "best_valid" in baseline else "-"
        rows.append(
            [name, f"plain script × {trials} ({how})", f"{trials * script:.0f}", "1.0", "-", "-"]
        )
        rows[-1] += [valid, "-"]
        for program, study in facts["studies"].items():
            rows.append(
                [
                    name,
                    f"vizsla tune, {program}",
                    f"{study['seconds']:.1f}",
                    f"{study['times_as_fast']:.0f}",
                    f"{study['trunk_seconds']:.1f}",
                    str(study["epochs"]),
                    f"{study['best']:.2%}",
                    f"{study['peak_tree_mb']:.0f}",
                ]
            )
        ratio = facts["studies"]["first"]["times_as_fast"]
        verdicts.append(_verdict(f"{name}, times as fast", ratio, _TARGETS[name], False))
    header = [
        "data", "program", "seconds", "times as fast", "trunk s", "epochs trained", "best valid",
        "MB (all processes)",
    ]  # fmt: skip
    return [
        ("Ten trials, side by side", header, rows),
        ("Targets", ["what", "measured", "target", ""], verdicts),
    ]


def _verdict(what: str, value: float, target: float, at_most: bool) -> list[str]:
    sign = "<" if at_most else "≥"
    return [what, f"{value:.2f}", f"{sign} {target}", verdict(value, target, at_most=at_most)]


def _options(arguments: list[str] | None) -> Any:
    made = parser("tuning", __doc__)
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument("--trials", type=int, default=10)
    made.add_argument("--jobs", type=int, default=2, help="trials at a time against the script")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--limit", type=int, default=200, help="training pictures of pets5")
    made.add_argument("--only", nargs="+", choices=list(_MEASURES), default=list(_MEASURES))
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
