"""The plain script's time for a whole training, measured or computed from a part of it.

The script repeats the same work every epoch, so one epoch on a part of the pictures tells what all
of them take: start and end as measured, epochs and pictures in proportion.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child_process import measure


@dataclass(frozen=True)
class PlainTraining:
    """What the plain script is to train."""

    model: str
    weights: str
    unfreeze: str
    epochs: int
    batch_size: int
    seed: int


def time_plain_script(
    scratch: Path, counts: dict[str, int], training: PlainTraining, part: int | None
) -> dict[str, Any]:
    """The script's time on `scratch`/pictures (`counts` of each split): computed from one epoch on
    `part` of each split, or measured whole for None."""
    figures = scratch / "baseline.json"
    command = [
        sys.executable, str(Path(__file__).with_name("baseline.py")), str(scratch / "pictures"),
        "--model", training.model, "--weights", training.weights, "--unfreeze", training.unfreeze,
        "--epochs", str(1 if part else training.epochs), "--batch-size", str(training.batch_size),
        "--workers", "2", "--seed", str(training.seed), "--output", str(scratch / "baseline.pth"),
        "--json", str(figures), *(["--limit", str(part)] if part else []),
    ]  # fmt: skip
    child = measure(command)
    facts = json.loads(figures.read_text(encoding="utf-8"))
    if not part:
        return {
            "seconds": child.seconds,
            "computed": False,
            "test": facts["test_accuracy"],
            "best_valid": max(epoch["valid_accuracy"] for epoch in facts["epochs"]),
        }
    seen = {split: min(count, part) for split, count in counts.items()}
    epoch = facts["epochs"][0]
    judged = epoch["valid_seconds"] / seen["valid"]  # seconds a picture, of validation and test
    rest = child.seconds - epoch["train_seconds"] - judged * (seen["valid"] + seen["test"])
    whole_epoch = (
        epoch["train_seconds"] / seen["train"] * counts["train"] + judged * counts["valid"]
    )
    return {
        "seconds": rest + training.epochs * whole_epoch + judged * counts["test"],
        "computed": True,
        "measured_seconds": child.seconds,
        "measured_pictures": seen,
        "train_pictures_per_second": seen["train"] / epoch["train_seconds"],
    }
