"""The searches of the five recipes on `trash6`: a few trials of a few epochs each.

To see that each recipe's search runs as it stands, and how long it takes. The weights that the
recipes name come from the hub; `--weights none` (the default here) begins with random ones, whose
figures say nothing about the recipes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child_process import REPOSITORY, measure, vizsla_command
from benchmarks.photographs import archive
from benchmarks.results import machine_facts, parser, publish

QUICK = ["--only", "resnet18-rules", "--trials", "2", "--epochs", "1"]
RECIPES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.toml"))


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    measured = {}
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as scratch:
        for name in options.only:
            print(f"recipes: {name} …", file=sys.stderr, flush=True)
            measured[name] = _search(name, Path(scratch), options)
    settings = {name: value for name, value in vars(options).items() if name != "results"}
    header = ["recipe", "searched", "trials", "epochs", "seconds", "best valid", "with"]
    rows = [
        [
            name,
            ", ".join(facts["searched"]),
            ", ".join(facts["statuses"]),
            str(facts["epochs"]),
            f"{facts['seconds']:.0f}",
            f"{facts['best']:.1%}",
            ", ".join(f"{key} {_short(value)}" for key, value in facts["params"].items()),
        ]
        for name, facts in measured.items()
    ]
    tables = [("The searches of the recipes on trash6", header, rows)]
    publish("recipes", machine, settings, {"recipes": measured}, tables, options.results)


def _search(name: str, scratch: Path, options: Any) -> dict[str, Any]:
    from vizsla import open_study

    studies = scratch / "studies"
    command = [
        vizsla_command(), "tune", str(archive("trash6")), "--studies", str(studies),
        "--recipe", str(REPOSITORY / "recipes" / f"{name}.toml"), "--weights", options.weights,
        "--trials", str(options.trials), "--epochs", str(options.epochs),
        "--jobs", str(options.jobs),
    ]  # fmt: skip
    child = measure(command, {"VIZSLA_CACHE": str(scratch / "cache")})
    (path,) = studies.iterdir()
    study = open_study(path)
    facts = {
        "seconds": child.seconds,
        "searched": list(study.space),
        "statuses": [record.status for record in study.records],
        "epochs": sum(len(record.curve) for record in study.records),
        "best": study.best.values["accuracy"],
        "params": dict(study.best.params),
    }
    shutil.rmtree(studies)
    return facts


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _options(arguments: list[str] | None) -> Any:
    made = parser("recipes", __doc__)
    made.add_argument("--epochs", type=int, default=2)
    made.add_argument("--trials", type=int, default=3)
    made.add_argument("--jobs", type=int, default=2)
    made.add_argument("--weights", default="none", help="pretrained where the hub can be reached")
    made.add_argument("--only", nargs="+", choices=RECIPES, default=RECIPES)
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
