"""Which of several architectures deserve trials: a linear probe of each, on a part of the data.

A probe freezes everything but the head and fits that by L-BFGS, which has no rate to tune, on at
most a few thousand pictures. Where the trials train the head alone, they find the probe's trunk
outputs in the cache. It is a ranking, not a verdict: a network whose layers are trained further
can overtake another.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.data.catalogue import Catalogue
from vizsla.engines.base import Engine, Job
from vizsla.errors import WorkError
from vizsla.records import SPLITS
from vizsla.runs.files import write_json
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.training.stopping import StopRequest
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.waiting import wait_for

# Pictures of training and validation that a probe sees, of a test split none.
PROBED = {"train": 2000, "valid": 600, "test": 0}
# What a linear probe does without, whatever the trials do.
_PLAIN: dict[str, Any] = {
    "unfreeze": "head", "solver": "lbfgs", "train_crop": "same", "hflip": 0.0, "vflip": 0.0,
    "augment": "none", "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0,
    "views": 0, "drop_rate": 0.0, "drop_path_rate": 0.0, "nesterov": False, "warmup_epochs": 0.0,
    "class_balance": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Screened:
    """A model's best validation figure in its probe, or why there is none."""

    model: str
    value: float | None
    seconds: float
    reason: str | None = None


def screen(
    folder: StudyFolder,
    models: Sequence[str],
    base: Mapping[str, Any],
    catalogue: Catalogue,
    engine: Engine,
    stop: StopRequest,
    tell: Callable[[str], None],
) -> list[Screened]:
    """Probe each of `models` with the settings `base`; best first. Writes `screening.json`.

    `tell` hears how it goes. Raises `WorkError` where none of them can be probed.
    """
    folder.screening.mkdir(parents=True, exist_ok=True)
    manifest = folder.screening / "pictures.csv"
    seed = int(base.get("seed", 0))
    sample(catalogue, seed).write_csv(manifest)
    found = []
    for model in models:
        tell(f"probing {model}")
        found.append(_probe(folder, model, base, manifest, engine, stop))
    ranking = sorted(found, key=lambda one: (one.value is None, -(one.value or 0.0)))
    if ranking[0].value is None:
        raise WorkError(f"None of the models could be probed; {models[0]}: {ranking[0].reason}")
    write_json(folder.screening / "screening.json", {"models": [asdict(one) for one in ranking]})
    return ranking


def ranking_of(folder: StudyFolder) -> list[Screened]:
    """The ranking that `screen` wrote; empty where nothing was screened."""
    path = folder.screening / "screening.json"
    if not path.is_file():
        return []
    return [Screened(**one) for one in json.loads(path.read_text(encoding="utf-8"))["models"]]


def sample(catalogue: Catalogue, seed: int, most: Mapping[str, int] = PROBED) -> Catalogue:
    """A part of a divided catalogue, `most` pictures of each split, every class in proportion and
    with one picture at least. Paths are absolute."""
    chosen = [
        _in_proportion(catalogue, split, max(most[split], least), seed)
        for split in SPLITS
        if (least := len(catalogue.classes) if most[split] else 0)
    ]
    rows = np.sort(np.concatenate(chosen))
    return replace(
        catalogue,
        root=Path("/"),
        paths=[str(catalogue.path(row).resolve()) for row in rows.tolist()],
        labels=catalogue.labels[rows],
        splits=catalogue.splits[rows],
    )


def _in_proportion(catalogue: Catalogue, split: str, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` rows of a split: the first of a shuffled order in which classes take turns
    by their share."""
    rows = np.random.default_rng(seed).permutation(catalogue.rows(split))
    labels = catalogue.labels[rows]
    counts = np.bincount(labels, minlength=len(catalogue.classes))
    place = np.zeros(len(rows))
    for label in range(len(counts)):
        mine = labels == label
        place[mine] = np.arange(counts[label]) / max(counts[label], 1)
    return rows[np.argsort(place, kind="stable")[:most]]


def _probe(
    folder: StudyFolder,
    model: str,
    base: Mapping[str, Any],
    manifest: Path,
    engine: Engine,
    stop: StopRequest,
) -> Screened:
    plain = {**base, **_PLAIN, "model": model}
    for name in ("ema_decay", "patience"):
        plain.pop(name, None)
    if plain.get("cache") == "off":
        plain["cache"] = "memory"
    run = RunFolder(folder.screening / re.sub(r"[^A-Za-z0-9_.-]+", "-", model))
    recipe = Recipe(**plain)
    job = Job(
        str(manifest), recipe.model_dump(exclude_none=True), str(run.path.resolve()), bundle=False
    )
    started = time.monotonic()
    end = wait_for(engine, job, stop)
    seconds = time.monotonic() - started
    if end.kind != "finished":
        return Screened(model, None, seconds, str(end.facts.get("reason", end.kind)))
    best = [record for record in run.epochs() if record.best][-1]
    (run.checkpoints / "best.pt").unlink(missing_ok=True)
    value = -best.valid.loss if recipe.monitor == "loss" else getattr(best.valid, recipe.monitor)
    return Screened(model, float(value), seconds)
