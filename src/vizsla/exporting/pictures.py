"""The pictures that an export is calibrated, verified and recovered on: the run's own.

Calibrated on validation pictures and verified on test pictures, which neither training nor the
search for float layers has seen. Every picture is prepared by the code that serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vizsla.bundle.format import BundleFacts
from vizsla.bundle.predictor import Predictor, prepared_batches
from vizsla.data.catalogue import NO_SPLIT, Catalogue
from vizsla.data.sources import open_source
from vizsla.data.splits import divided_as_trained
from vizsla.errors import DataError, PictureError, RunError
from vizsla.records import SPLITS
from vizsla.runs.catalogue import reopened
from vizsla.runs.folder import RunFolder

_BATCH = 16


@dataclass(frozen=True)
class ExportPictures:
    """Pictures in splits, with the classes of the model; `origin` says in words which they are.

    `calibrated_on` and `verified_on` name splits. `is_own` is whether the division is that of the
    training, so that there are training pictures.
    """

    catalogue: Catalogue
    origin: str
    calibrated_on: str
    verified_on: str
    is_own: bool

    def calibration_rows(self, most: int) -> list[int]:
        """At most so many rows, as many of each class as there are, spread over each class."""
        return _balanced(self.catalogue, self.catalogue.rows(self.calibrated_on), most)

    def verification_rows(self) -> list[int]:
        rows: list[int] = self.catalogue.rows(self.verified_on).tolist()
        return rows


def find_pictures(folder: Path, facts: BundleFacts, data: Path | None) -> ExportPictures:
    """The pictures for exports of the bundle in `folder`: those in `data`, or of the run or study
    that the bundle lies in.

    Raises `DataError` where there are none, or of other classes, and `RunError` where the run
    divides its pictures otherwise than the bundle's training did.
    """
    if data is not None:
        catalogue = divided_as_trained(open_source(data), facts.data)
        own = catalogue.fingerprint(divided=True) == facts.data.get("division")
        return _in_splits(catalogue.with_classes(facts.classes), f"from {data}", own)
    home = folder.resolve().parent
    run = _run_in(home)
    if run is None:
        raise DataError(
            f"There are no pictures to verify an export on: {folder} does not lie in its run. Give "
            "those that it was trained on, or others of its classes, with --data."
        )
    try:
        catalogue = reopened(run, run.facts())
    except DataError as error:
        raise DataError(f"{error} Or say with --data where pictures of its classes lie.") from None
    if facts.data.get("division") not in (None, catalogue.fingerprint(divided=True)):
        raise RunError(
            f"{folder} was not trained on the pictures of {home}, or {run.catalogue} has been "
            "changed since. Give those that it was trained on, or others of its classes, with "
            "--data."
        )
    kind = "run" if run.path == home else "study"
    return _in_splits(catalogue.with_classes(facts.classes), f"of the {kind} {home.name}", True)


def _run_in(home: Path) -> RunFolder | None:
    """The run in a folder or, of a study, its first trial: all have the same pictures."""
    if (home / "run.toml").is_file():
        return RunFolder.open(home)
    trials = sorted(home.glob("trials/*/run.toml"))
    return RunFolder.open(trials[0].parent) if trials else None


def _in_splits(catalogue: Catalogue, origin: str, own: bool) -> ExportPictures:
    if not catalogue.is_split:
        return ExportPictures(_halved(catalogue), origin, "valid", "test", False)
    with_pictures = [split for split in SPLITS if len(catalogue.rows(split))]
    calibrated_on = "valid" if "valid" in with_pictures else "train"
    verified_on = "test" if "test" in with_pictures else calibrated_on
    return ExportPictures(catalogue, origin, calibrated_on, verified_on, own)


def _halved(catalogue: Catalogue) -> Catalogue:
    """Pictures that nothing is known of: every other one of each class to calibrate on."""
    splits = np.full(len(catalogue), NO_SPLIT, np.int8)
    for label in range(len(catalogue.classes)):
        rows = np.flatnonzero(catalogue.labels == label)
        splits[rows[0::2]] = SPLITS.index("test")
        splits[rows[1::2]] = SPLITS.index("valid")
    if not (splits == SPLITS.index("valid")).any():
        raise DataError(
            f"{catalogue.root} has a single picture of each class; an export is calibrated on some "
            "and verified on others. Give more with --data."
        )
    return replace(catalogue, splits=splits)


def _balanced(catalogue: Catalogue, rows: NDArray[np.int64], most: int) -> list[int]:
    """Rows of each class in turn, those of a class evenly spread over it."""
    labels = catalogue.labels[rows]
    groups = [rows[labels == label] for label in np.unique(labels)]
    taken = [0] * len(groups)
    left = min(most, len(rows))
    while left:
        for at, group in enumerate(groups):
            if left and taken[at] < len(group):
                taken[at] += 1
                left -= 1
    chosen: list[int] = []
    for group, count in zip(groups, taken, strict=True):
        if count:
            chosen += group[np.linspace(0, len(group) - 1, count).round().astype(int)].tolist()
    return chosen


def prepared(
    predictor: Predictor, catalogue: Catalogue, rows: list[int]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.integer]]]:
    """Batches of inputs (n, 3, size, size) and labels (n,); pictures that do not decode are left
    out. Raises `DataError` where none does."""
    done = good_in_all = 0
    for batch in prepared_batches(predictor, map(catalogue.path, rows), _BATCH):
        own = rows[done : done + len(batch)]
        done += len(batch)
        good = [
            (one, row)
            for one, row in zip(batch, own, strict=True)
            if not isinstance(one, PictureError)
        ]
        good_in_all += len(good)
        if good:
            yield (
                np.stack([one for one, _ in good]),
                catalogue.labels[[row for _, row in good]],
            )
    if not good_in_all:
        raise DataError(
            f"None of the {len(rows)} pictures for the export could be decoded, such as "
            f"{catalogue.path(rows[0])}. Give others with --data."
        )


def prepared_whole(
    predictor: Predictor, catalogue: Catalogue, rows: list[int]
) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
    """The same in one piece."""
    batches = list(prepared(predictor, catalogue, rows))
    return (
        np.concatenate([inputs for inputs, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
    )
