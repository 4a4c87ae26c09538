"""`vizsla train` as a measured child process, with the figures from the run folder it leaves."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.child_process import measure, vizsla_command


@dataclass(frozen=True)
class VizslaRun:
    """One training from the outside (seconds, megabytes) and from its records (the rest).

    `wait_share` is the part of the training time that the step stood still for the loader;
    `later_wait_share` leaves out each epoch's first step, which also starts or refills it. Where
    the frozen trunk's outputs are kept, steps read memory and the pictures are loaded in the
    `trunk_seconds` before, of which the engine waited `trunk_wait_share`.
    `loop_seconds` are trunk and epochs; `train_pictures_per_second` counts each epoch's pictures
    over trunk and training steps.
    """

    seconds: float
    loop_seconds: float
    trunk_seconds: float
    peak_main_mb: float
    peak_tree_mb: float
    best_valid_accuracy: float
    test_accuracy: float
    train_pictures_per_second: float
    wait_share: float
    later_wait_share: float
    trunk_wait_share: float
    passes: int
    cached: int
    passes_per_second: float
    engine: str
    precision: str
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def train_with_vizsla(
    data: Path, settings: dict[str, Any], scratch: Path, cache: Path
) -> VizslaRun:
    """Train on `data` with `settings` (names of a recipe), in a run folder that is then removed."""
    runs = scratch / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    flags = [
        part
        for name, value in settings.items()
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    command = [vizsla_command(), "train", str(data), "--runs", str(runs), *flags]
    child = measure(command, {"VIZSLA_CACHE": str(cache)})
    facts = _facts(runs)
    shutil.rmtree(runs)
    return VizslaRun(
        seconds=child.seconds,
        peak_main_mb=child.peak_main_mb,
        peak_tree_mb=child.peak_tree_mb,
        **facts,
    )


def _facts(runs: Path) -> dict[str, Any]:
    from vizsla.runs.folder import list_runs

    (run,) = list_runs(runs)
    epochs, steps = run.epochs(), run.steps()
    firsts = {step["epoch"]: step["step"] for step in reversed(steps)}
    later = [step for step in steps if step["step"] != firsts[step["epoch"]]]
    train_seconds = sum(record.train_seconds for record in epochs)
    test = run.evaluation("test")
    assert test is not None  # every data set measured here has a test split
    hardware = run.facts()["hardware"]
    trunk = run.trunk() or dict.fromkeys(
        ("seconds", "wait_seconds", "choosing_seconds", "passes", "cached"), 0
    )
    trunk_seconds = trunk["seconds"]
    passing = max(trunk_seconds - trunk["choosing_seconds"], 1e-9)
    return {
        "loop_seconds": trunk_seconds
        + train_seconds
        + sum(record.valid_seconds for record in epochs),
        "trunk_seconds": trunk_seconds,
        "best_valid_accuracy": max(record.valid.accuracy for record in epochs),
        "test_accuracy": test["accuracy"],
        "train_pictures_per_second": sum(record.train.pictures for record in epochs)
        / (trunk_seconds + train_seconds),
        "wait_share": sum(record.wait_seconds for record in epochs) / train_seconds,
        "later_wait_share": sum(step["wait_seconds"] for step in later)
        / max(sum(step["seconds"] for step in later), 1e-9),
        "trunk_wait_share": trunk["wait_seconds"] / passing,
        "passes": trunk["passes"],
        "cached": trunk["cached"],
        "passes_per_second": trunk["passes"] / passing,
        "engine": trunk.get("engine", "none"),
        "precision": hardware["precision"],
        "device": hardware["device"],
    }
