"""Figures of a bundle on a split of pictures, by the very code that answers in production."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.bundle.format import BundleFacts
from vizsla.bundle.predictor import Predictor, prepared_batches
from vizsla.data.catalogue import Catalogue
from vizsla.data.sources import open_source
from vizsla.data.splits import divided_as_trained
from vizsla.errors import DataError, PictureError, SettingError
from vizsla.metrics import MetricSums, per_class
from vizsla.records import SPLITS, PictureProblem, SplitMetrics


@dataclass(frozen=True)
class BundleEvaluation:
    """A split's figures, its confusion matrix [true, predicted], and what did not decode."""

    split: str
    metrics: SplitMetrics
    confusion: NDArray[np.int64]
    classes: list[dict[str, Any]]
    problems: list[PictureProblem]

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            **asdict(self.metrics),
            "per_class": self.classes,
            "confusion": self.confusion.tolist(),
            "skipped": [asdict(problem) for problem in self.problems],
        }


def evaluate_bundle(predictor: Predictor, data: Path, split: str | None) -> BundleEvaluation:
    """Figures of `predictor` on a split of `data`. Raises `DataError` where that has no pictures
    of the model's classes."""
    if split is not None and split not in (*SPLITS, "all"):
        raise SettingError(f"split is {split!r}, but must be one of {', '.join(SPLITS)} or all.")
    catalogue = _divided(open_source(data), predictor.facts, split)
    catalogue = catalogue.with_classes(predictor.facts.classes)
    if split is None:
        split = "test" if len(catalogue.rows("test")) else "all"
    rows = catalogue.rows(split).tolist()
    if not rows:
        raise DataError(f"{data} has no pictures in its {split} split; try --split all.")
    sums = MetricSums(len(catalogue.classes))
    problems: list[PictureProblem] = []
    for inputs, labels in _batches(predictor, catalogue, rows, problems):
        sums.add(predictor.log_probabilities(inputs), labels)
    if not sums.confusion.any():
        raise DataError(f"None of the {len(rows)} pictures of the {split} split could be decoded.")
    return BundleEvaluation(
        split,
        sums.summary(),
        sums.confusion,
        per_class(sums.confusion, catalogue.classes),
        problems,
    )


def _divided(catalogue: Catalogue, facts: BundleFacts, split: str | None) -> Catalogue:
    """The catalogue in splits, if it came so or is the model's own data; else as it is.

    Data that came with a training split alone is completed as the model's training did it.
    """
    if split == "all":
        return catalogue
    catalogue = divided_as_trained(catalogue, facts.data)
    if catalogue.is_split or split is None:
        return catalogue
    raise DataError(
        f"{catalogue.root} is not divided into splits, and its pictures are not those that the "
        "model was trained on, so there is no telling which are its test pictures. Use --split "
        "all to evaluate on all of them."
    )


def _batches(
    predictor: Predictor, catalogue: Catalogue, rows: list[int], problems: list[PictureProblem]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.integer]]]:
    done = 0
    for prepared in prepared_batches(predictor, map(catalogue.path, rows)):
        batch = rows[done : done + len(prepared)]
        done += len(prepared)
        good = [(row, one) for row, one in zip(batch, prepared, strict=True) if _decoded(one)]
        problems += [
            PictureProblem(catalogue.paths[row], str(one), "skipped")
            for row, one in zip(batch, prepared, strict=True)
            if not _decoded(one)
        ]
        if good:
            labels = catalogue.labels[[row for row, _ in good]]
            yield np.stack([one for _, one in good]), labels  # type: ignore[misc]


def _decoded(prepared: NDArray[np.float32] | PictureError) -> bool:
    return not isinstance(prepared, PictureError)
