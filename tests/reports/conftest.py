"""A run as a long training on many classes leaves it, without training: its files alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.metrics import macro_f1, per_class
from vizsla.records import ClassLabel, EpochRecord, SplitMetrics
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe

RunMaker = Callable[..., RunFolder]


@pytest.fixture(scope="session")
def fabricate() -> RunMaker:
    """`fabricate(folder, classes=133, epochs=20, steps=36_000, pictures=8)` writes a finished run,
    with so many test pictures a class, of which a quarter is answered wrongly."""
    return _fabricated


@pytest.fixture(scope="session")
def large_run(fabricate: RunMaker, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """133 classes, 20 epochs, 36,000 steps. Do not change it."""
    return fabricate(tmp_path_factory.mktemp("large") / "run")


def _fabricated(
    folder: Path,
    classes: int = 133,
    epochs: int = 20,
    steps: int = 36_000,
    pictures: int = 8,
    seed: int = 0,
) -> RunFolder:
    run = RunFolder.at(folder)
    chance = np.random.default_rng(seed)
    labels = tuple(
        ClassLabel.from_folder(f"{at + 1:03d}.Breed number {at + 1}") for at in range(classes)
    )
    _write_facts(run, labels, pictures, epochs)
    _write_course(run, epochs, steps, chance)
    confusion = np.zeros((classes, classes), np.int64)
    rows = []
    for true in range(classes):
        for at in range(pictures):
            wrong = chance.random() < 0.25
            taken = int(chance.integers(classes)) if wrong else true
            confusion[true, taken] += 1
            path = f"test/{labels[true].folder}/{at}.jpg"
            rows.append((path, labels[true].folder, labels[taken].folder, f"{chance.random():.6f}"))
    right = float(confusion.trace() / max(confusion.sum(), 1))
    figures = SplitMetrics(0.8, right, 0.97, macro_f1(confusion), int(confusion.sum()))
    told = {"per_class": per_class(confusion, labels), "confusion": confusion.tolist()}
    run.write_evaluation("test", {"split": "test", **asdict(figures), **told}, rows)
    run.write_evaluation("valid", {"split": "valid", **asdict(figures), **told}, rows)
    (run.bundle).mkdir()
    (run.bundle / "bundle.json").write_text("{}")
    _draw_wrong(folder / "pictures", rows, chance)
    return run


def _write_facts(
    run: RunFolder, labels: tuple[ClassLabel, ...], pictures: int, epochs: int
) -> None:
    counts = {"train": 50 * len(labels), "valid": 6 * len(labels), "test": pictures * len(labels)}
    run.write_facts(
        {
            "created": "2026-11-21T15:30:12+01:00",
            "recipe": Recipe(epochs=epochs, lr=0.003).model_dump(exclude_none=True),
            "data": {
                "source": "/data/dogImages",
                "root": str(run.path / "pictures"),
                "fingerprint": "f" * 64,
                "division": "d" * 64,
                "classes": [label.folder for label in labels],
                "pictures": counts,
            },
            "model": {"architecture": "resnet50", "arguments": {}, "weights": "pretrained"},
            "versions": {"vizsla": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu"},
            "hardware": {"device": "cpu", "cores": 2},
        }
    )
    with run.catalogue.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for at, label in enumerate(labels):
            for split, count in (("train", 26 + at % 50), ("valid", 6), ("test", pictures)):
                for number in range(count):
                    writer.writerow([f"{split}/{label.folder}/{number}.jpg", label.folder, split])


def _write_course(run: RunFolder, epochs: int, steps: int, chance: np.random.Generator) -> None:
    for epoch in range(1, epochs + 1):
        part = SplitMetrics(3 / epoch, 1 - 0.9 / epoch, 1.0, 1 - 0.9 / epoch, 6650)
        run.append_epoch(
            EpochRecord(
                epoch, epoch * steps // epochs, 0.003 / epoch, part, part, 60.0, 4.0, 3.0, 110.0,
                best=True,
            )
        )  # fmt: skip
    losses = 3 * np.exp(-np.arange(steps) / (steps / 4 + 1)) + chance.random(steps)
    lines = [
        {"step": at + 1, "epoch": 1 + at * epochs // steps, "loss": float(loss),
         "learning_rate": 0.003, "pictures": 32, "seconds": 0.01, "wait_seconds": 0.001}
        for at, loss in enumerate(losses)
    ]  # fmt: skip
    run.append_steps(lines)


def _draw_wrong(root: Path, rows: list[tuple[str, ...]], chance: np.random.Generator) -> None:
    """Photographs of a size as they are, of the pictures that a report may show."""
    wrong = sorted((row for row in rows if row[1] != row[2]), key=lambda row: -float(row[3]))
    for path, *_ in wrong[:24]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        coarse = chance.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((500, 375)).save(root / path, quality=85)
