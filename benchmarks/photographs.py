"""The real photographs and weights for measuring, and divisions of them that two programs share.

Neither is part of the project. They are looked for in `VIZSLA_SHARED`, else in `shared/` beside
the repository, as `data/NAME.zip` and `weights/…`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from benchmarks.child_process import REPOSITORY

WEIGHTS = "mobilenetv2_100-imagenet1k.safetensors"


def archive(name: str) -> Path:
    """The zip of a data set, such as pets5."""
    return _existing(_shared() / "data" / f"{name}.zip")


def real_weights() -> Path:
    """ImageNet weights of MobileNetV2."""
    return _existing(_shared() / "weights" / WEIGHTS)


def divided_copy(
    source: Path,
    target: Path,
    limit: int | None = None,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> dict[str, int]:
    """Write the pictures of `source` to `target`/train|valid|test/CLASS, and count them.

    vizsla's own division decides, so that every program that reads the folder trains and is
    judged on the same files. `limit` keeps so many training pictures, evenly over the classes,
    and an eighth of that in each other split.
    """
    from vizsla.data.sources import open_source
    from vizsla.data.splits import divide

    catalogue = divide(open_source(source), seed, shares)
    counts: dict[str, int] = {}
    for split in ("train", "valid", "test"):
        rows = catalogue.rows(split)
        if limit is not None:
            share = limit if split == "train" else max(limit // 8, 2)
            # Rows lie class by class: even steps through them keep every class's share.
            rows = rows[np.linspace(0, len(rows) - 1, min(share, len(rows))).astype(int)]
        counts[split] = len(rows)
        for row in rows.tolist():
            folder = target / split / catalogue.classes[catalogue.labels[row]].folder
            folder.mkdir(parents=True, exist_ok=True)
            # The row keeps apart two pictures of one name from different subfolders.
            shutil.copyfile(catalogue.path(row), folder / f"{row:06d}-{catalogue.path(row).name}")
    return counts


def _shared() -> Path:
    chosen = os.environ.get("VIZSLA_SHARED")
    return Path(chosen).expanduser() if chosen else REPOSITORY.parent / "shared"


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SystemExit(
            f"There is no {path.name} for measuring. Put it beside the repository as "
            f"shared/{path.parent.name}/{path.name}, or set VIZSLA_SHARED to the folder with "
            "data/ and weights/."
        )
    return path
