"""What a user gets from `vizsla train` with real weights and default settings: test accuracy.

Only the head of a MobileNetV2 is trained; every other setting has its default. Archives go in as
a user has them. dogs120 comes divided; the others are divided by vizsla, by the given seed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.photographs import archive, real_weights
from benchmarks.results import machine_facts, parser, publish, verdict
from benchmarks.vizsla_runs import train_with_vizsla

QUICK = ["--only", "pets5", "--epochs", "1"]
_TARGETS = {"pets5": 0.96, "trash6": 0.82, "dogs120": 0.78}
_NOTES = {
    "pets5": "nearly saturated",
    "dogs120": "contaminated: Stanford Dogs is part of ImageNet, so the weights have likely seen "
    "its pictures",
}


def main(arguments: list[str] | None = None) -> None:
    made = parser("accuracy", __doc__)
    made.add_argument("--only", nargs="+", choices=list(_TARGETS), default=list(_TARGETS))
    made.add_argument("--epochs", type=int, help="default vizsla's own")
    made.add_argument("--seeds", type=int, nargs="+", default=[0], help="a training for each")
    options = made.parse_args(arguments)
    machine = machine_facts()
    facts: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, Any] = {
        "model": "mobilenetv2_100", "weights": str(real_weights()), "unfreeze": "head",
    }  # fmt: skip
    if options.epochs is not None:
        settings["epochs"] = options.epochs
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        for data in options.only:
            for seed in options.seeds:
                print(f"accuracy: {data}, seed {seed} …", file=sys.stderr, flush=True)
                chosen = {**settings, "seed": seed}
                run = train_with_vizsla(archive(data), chosen, scratch, scratch / "cache")
                facts.setdefault(data, []).append({"seed": seed, **run.to_dict()})
    shown = {**settings, "weights": "imagenet1k", "notes": _NOTES}
    publish("accuracy", machine, shown, {"data": facts}, [_table(facts)], options.results)


def _table(facts: dict[str, list[dict[str, Any]]]) -> tuple[str, list[str], list[list[str]]]:
    header = ["data", "seed", "test", "target", "", "best valid", "seconds", "wait", "note"]
    rows = [
        [
            data,
            str(one["seed"]),
            f"{one['test_accuracy']:.2%}",
            f"≥ {_TARGETS[data]:.0%}",
            verdict(one["test_accuracy"], _TARGETS[data], at_most=False),
            f"{one['best_valid_accuracy']:.2%}",
            f"{one['seconds']:.0f}",
            f"{one['wait_share']:.1%}",
            _NOTES.get(data, ""),
        ]
        for data, runs in facts.items()
        for one in runs
    ]
    return "MobileNetV2, head alone, defaults", header, rows


if __name__ == "__main__":
    main()
