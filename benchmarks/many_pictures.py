"""A head on 100,000 pictures: how much memory, how large the cache, how fast an epoch.

Drawn pictures of 32 pixels go through a MobileNetV2, whose features (1,280 a view, two views a
training picture) are as large as those of photographs and cost a fiftieth to compute. Weights are
random, so accuracy says nothing. Measured from outside, imports and bundle included.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.results import machine_facts, parser, publish, verdict
from benchmarks.vizsla_runs import train_with_vizsla

QUICK = ["--pictures", "600"]
TARGET_MB = 2000
_SIZE_PX = 32
_CLASSES = 10


def main(arguments: list[str] | None = None) -> None:
    options = _options(arguments)
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="vizsla-benchmark-") as name:
        scratch = Path(name)
        _draw(scratch / "pictures", options.pictures)
        settings: dict[str, Any] = {
            "model": "mobilenetv2_100",
            "weights": "none",
            "unfreeze": "head",
            "size_px": _SIZE_PX,
            "epochs": options.epochs,
        }
        runs = {
            program: train_with_vizsla(
                scratch / "pictures", {**settings, **more}, scratch, scratch / "cache"
            ).to_dict()
            for program, more in (("first", {}), ("second", {"lr": 0.001}))
        }
        stored = sum(file.stat().st_size for file in (scratch / "cache").rglob("*"))
    facts = {"runs": runs, "cache_mb": stored / 1e6}
    publish(
        "many_pictures",
        machine,
        {"pictures": options.pictures, "epochs": options.epochs},
        facts,
        [_table(runs, stored / 1e6)],
        options.results,
    )


def _draw(folder: Path, count: int) -> None:
    """Noise around a colour for each class; no two alike."""
    generator = np.random.default_rng(0)
    for number in range(count):
        label = number % _CLASSES
        if number < _CLASSES:
            (folder / f"class{label}").mkdir(parents=True)
        noise = generator.integers(0, 60, (_SIZE_PX, _SIZE_PX, 3), np.uint8)
        noise[..., label % 3] += np.uint8(19 * label)
        Image.fromarray(noise).save(folder / f"class{label}" / f"{number:06d}.bmp")


def _table(
    runs: dict[str, dict[str, Any]], cache_mb: float
) -> tuple[str, list[str], list[list[str]]]:
    header = ["run", "seconds", "trunk s", "passes", "MB (main)", "target MB", "", "cache MB"]
    rows = [
        [
            program,
            f"{run['seconds']:.1f}",
            f"{run['trunk_seconds']:.1f}",
            f"{run['passes']:,}",
            f"{run['peak_main_mb']:.0f}",
            f"< {TARGET_MB}",
            verdict(run["peak_main_mb"], TARGET_MB, at_most=True),
            f"{cache_mb:.0f}",
        ]
        for program, run in runs.items()
    ]
    return "A head on many pictures", header, rows


def _options(arguments: list[str] | None) -> Any:
    made = parser("many_pictures", __doc__)
    made.add_argument("--pictures", type=int, default=100_000)
    made.add_argument("--epochs", type=int, default=2)
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
