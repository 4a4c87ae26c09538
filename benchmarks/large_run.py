"""A finished run such as a long training leaves, written down without training: 133 classes, 20
epochs, hours of samples. Its figures are drawn by lot; its pictures are noise."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

START = 1_750_000_000.0
INTERVAL_S = 0.5
PHASES = {"data_wait": 0.1, "transfer": 0.02, "forward": 0.35, "backward": 0.4, "optimiser": 0.08}


def write_large_run(
    parent: Path, classes: int = 133, epochs: int = 20, samples: int = 36_000, steps: int = 20_000
) -> Path:
    """A run folder in `parent`, with a catalogue, an evaluation and a profile."""
    from vizsla.runs.folder import RunFolder

    chance = np.random.default_rng(0)
    names = [f"{at + 1:03d}.Breed_number_{at + 1}" for at in range(classes)]
    run = RunFolder.at(parent / "2026-01-01-000000-resnet50")
    _pictures(parent / "pictures", names, chance)
    run.write_facts(_facts(parent, names))
    seconds = samples * INTERVAL_S
    for epoch in range(1, epochs + 1):
        run.append_epoch(_epoch(epoch, steps * epoch // epochs, seconds / epochs))
    losses = 4.9 * np.exp(-np.arange(steps) / (steps / 4)) + chance.random(steps) * 0.3
    run.append_steps(
        [
            {"step": at + 1, "epoch": 1 + at * epochs // steps, "loss": round(float(loss), 5),
             "learning_rate": 1e-3, "pictures": 32, "seconds": 0.8, "wait_seconds": 0.08}
            for at, loss in enumerate(losses)
        ]
    )  # fmt: skip
    for split in ("valid", "test"):
        _evaluation(run, split, names, chance)
    _samples(run.path, samples, chance)
    _timeline(run.path, steps, epochs, seconds, chance)
    (run.bundle).mkdir()
    (run.bundle / "bundle.json").write_text("{}\n")
    return run.path


def _pictures(folder: Path, names: list[str], chance: np.random.Generator) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
        pixels = chance.integers(0, 255, (38, 50, 3), np.uint8)
        Image.fromarray(pixels).resize((500, 375)).save(folder / name / "0.jpg", quality=85)


def _facts(parent: Path, names: list[str]) -> dict[str, Any]:
    return {
        "created": "2026-01-01T00:00:00+00:00",
        "recipe": {"model": "resnet50", "epochs": 20, "batch_size": 32, "unfreeze": "all"},
        "data": {
            "source": "dogImages.zip",
            "root": str(parent / "pictures"),
            "fingerprint": "0" * 64,
            "division": "1" * 64,
            "classes": names,
            "pictures": {"train": 6680, "valid": 835, "test": 836},
        },
        "model": {"architecture": "resnet50", "weights": "resnet50.safetensors"},
        "versions": {"vizsla": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "timm": "1.0.20"},
        "hardware": {"device": "cpu", "processor": "x86_64", "cores": 2, "precision": "bf16"},
    }


def _epoch(epoch: int, step: int, seconds: float) -> Any:
    from vizsla.records import EpochRecord, SplitMetrics

    def metrics(loss: float, accuracy: float, pictures: int) -> SplitMetrics:
        return SplitMetrics(loss, accuracy, min(1.0, accuracy + 0.15), accuracy - 0.01, pictures)

    fade = float(np.exp(-epoch / 5))
    return EpochRecord(
        epoch, step, 1e-3, metrics(4.9 * fade, 1 - fade, 6680),
        metrics(4.9 * fade + 0.4, 0.9 * (1 - fade), 835), seconds * 0.9, seconds * 0.1,
        seconds * 0.09, 8.0, best=True,
    )  # fmt: skip


def _evaluation(run: Any, split: str, names: list[str], chance: np.random.Generator) -> None:
    from vizsla.metrics import MetricSums, per_class
    from vizsla.records import ClassLabel

    labels = np.repeat(np.arange(len(names)), 6)
    logits = chance.normal(size=(len(labels), len(names)))
    logits[np.arange(len(labels)), labels] += 3.5
    sums = MetricSums(len(names))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sums.add(np.log(shares), labels)
    classes = tuple(ClassLabel.from_folder(name) for name in names)
    facts = {
        "split": split, **asdict(sums.summary()), "per_class": per_class(sums.confusion, classes),
        "confusion": sums.confusion.tolist(), "skipped": [],
    }  # fmt: skip
    best = shares.argmax(axis=1)
    rows = [
        (f"{names[label]}/0.jpg", names[label], names[answer], f"{share[answer]:.6f}")
        for label, answer, share in zip(labels, best, shares)
    ]
    run.write_evaluation(split, facts, rows)


def _samples(run: Path, count: int, chance: np.random.Generator) -> None:
    about = {
        "kind": "about", "node": "algo-1", "host": "machine", "cores": 2, "machine_cores": 2,
        "processor": "a processor", "memory_bytes": 25_000_000_000, "gpus": [], "missing": [],
        "interval_ms": 1000 * INTERVAL_S, "torch_threads": 2,
    }  # fmt: skip
    cpu = np.clip(chance.normal(85, 10, (count, 2)), 0, 100).round(1).tolist()
    noise = chance.random((count, 4))
    with (run / "profile-algo-1.jsonl").open("w") as file:
        file.write(json.dumps(about) + "\n")
        for at in range(count):
            some = noise[at]
            line = {
                "kind": "sample", "time": round(START + INTERVAL_S * at, 3), "cpu": cpu[at],
                "iowait": [0.0, 0.1], "memory": round(40 + 5 * some[0], 1),
                "memory_bytes": int(1e10 + 1e9 * some[0]), "tree_bytes": int(3e9 + 1e8 * some[1]),
                "own_bytes": int(2e9 + 1e8 * some[1]), "tree_cpu": round(170 + 20 * some[2], 1),
                "processes": 3, "threads": 40, "runnable": 2, "read_ops": round(20 * some[3], 1),
                "write_ops": 2.0, "read_bytes": round(4e6 * some[3], 1), "write_bytes": 1e4,
                "received_bytes": 120.0, "sent_bytes": 80.0,
            }  # fmt: skip
            file.write(json.dumps(line) + "\n")


def _timeline(
    run: Path, steps: int, epochs: int, seconds: float, chance: np.random.Generator
) -> None:
    each = 0.9 * seconds / steps
    lengths = each * chance.lognormal(-0.01, 0.15, steps)
    shares = {name: share * lengths for name, share in PHASES.items()}
    shares["other"] = lengths - sum(shares.values())
    lines: list[dict[str, Any]] = [
        {"kind": "session", "time": START, "node": "algo-1", "rank": 0, "device": "cpu",
         "process_started": START - 4.0},
        *({"kind": "span", "name": name, "time": START - 4.0 + at, "seconds": 1.0}
          for at, name in enumerate(("import", "data", "model", "cache"))),
    ]  # fmt: skip
    begun, now = np.zeros(steps), START
    ends = {steps * epoch // epochs for epoch in range(1, epochs + 1)}
    for at in range(steps):
        begun[at] = now
        now += lengths[at]
        if at + 1 in ends:
            took = 0.1 * seconds / epochs
            line = {"kind": "span", "name": "evaluation", "time": round(now, 3), "seconds": took}
            lines.append(line)
            now += took
    for first in range(0, steps, 100):
        span = slice(first, first + 100)
        lines.append(
            {"kind": "steps", "step": list(range(first + 1, first + 1 + len(begun[span]))),
             "time": begun[span].round(4).tolist(), "seconds": lengths[span].round(6).tolist(),
             "phases": {name: part[span].round(6).tolist() for name, part in shares.items()}}
        )  # fmt: skip
    with (run / "timeline.jsonl").open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
