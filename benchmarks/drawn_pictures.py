"""Tiny data sets of drawn dogs, for benchmarks in which what is on the pictures does not matter."""

from __future__ import annotations

from pathlib import Path


def draw(folder: Path, breeds: int, pictures_per_breed: int, size_px: int, seed: int = 0) -> Path:
    """Draw a data set in train, valid and test folders; its folder."""
    from vizsla.data.synthetic import draw_dataset

    draw_dataset(
        folder, breeds=breeds, pictures_per_breed=pictures_per_breed, size_px=size_px, seed=seed
    )
    return folder
