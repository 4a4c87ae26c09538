"""The catalogue: which pictures there are, of which class, in which split.

Columns instead of a record per picture, so that a million pictures fit in a few hundred
megabytes: paths as strings relative to one root, class and split as small integers. Finding the
pictures is `sources.py`'s work, dividing them `splits.py`'s; no picture is opened here.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vizsla.errors import DataError
from vizsla.records import SPLITS, ClassLabel

NO_SPLIT = -1


@dataclass(frozen=True)
class Catalogue:
    """Pictures by column; row i is `root / paths[i]`, of `classes[labels[i]]`.

    `splits[i]` indexes `records.SPLITS`, or is -1 before the pictures have been divided.
    `split_seed` is set where vizsla itself divided them, and None where the data came divided.
    """

    root: Path
    paths: Sequence[str]
    labels: NDArray[np.int32]
    splits: NDArray[np.int8]
    classes: tuple[ClassLabel, ...]
    split_seed: int | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> NDArray[np.int64]:
        """The rows of one split, or of the whole catalogue for `all`."""
        if split == "all":
            return np.arange(len(self))
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def counts(self, split: str) -> NDArray[np.int64]:
        """Pictures of each class in one split."""
        return np.bincount(self.labels[self.rows(split)], minlength=len(self.classes))

    def path(self, row: int) -> Path:
        return self.root / self.paths[row]

    @property
    def is_split(self) -> bool:
        return bool((self.splits != NO_SPLIT).any())

    def fingerprint(self, divided: bool = False) -> str:
        """A hash of the paths and classes, and of the splits if `divided`; order and root of the
        pictures make no difference."""
        digest = hashlib.sha256()
        folders = [label.folder for label in self.classes]
        labels, splits = self.labels.tolist(), self.splits.tolist()
        for row in sorted(range(len(self)), key=self.paths.__getitem__):
            split = splits[row] if divided else ""
            digest.update(f"{self.paths[row]}\0{folders[labels[row]]}\0{split}\n".encode())
        return digest.hexdigest()

    def with_classes(self, classes: tuple[ClassLabel, ...]) -> Catalogue:
        """The same pictures, labelled by the positions of `classes` (those of a trained model).

        Raises `DataError` if the two do not name the same classes, unless the pictures' are a
        subset.
        """
        positions = {label.folder: index for index, label in enumerate(classes)}
        unknown = [label.folder for label in self.classes if label.folder not in positions]
        if unknown:
            raise DataError(
                f"The pictures in {self.root} have {len(self.classes)} classes and the model "
                f"{len(classes)}; it does not know {_few(unknown)}. Evaluate it on pictures of "
                "its own classes, or train a new model on these."
            )
        translation = np.array([positions[label.folder] for label in self.classes], np.int32)
        return replace(self, labels=translation[self.labels], classes=classes)

    def write_csv(self, path: Path) -> None:
        """Write a manifest `path,label,split` that `sources.read_manifest` reads again, exactly."""
        folders = [label.folder for label in self.classes]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", "split"])
            for name, label, split in zip(
                self.paths, self.labels.tolist(), self.splits.tolist(), strict=True
            ):
                writer.writerow([name, folders[label], SPLITS[split] if split >= 0 else ""])


def build(
    root: Path, paths: Sequence[str], folders: Sequence[str], splits: Sequence[int]
) -> Catalogue:
    """A catalogue of rows in three parallel sequences: path, class folder, split index or -1.

    Classes are those of the training split (of everything, where nothing is divided yet), in
    natural order, so that a class which another split lacks shifts no label. Pictures of other
    splits whose class has no training picture are left out.
    """
    split_column = np.asarray(splits, np.int8)
    codes: dict[str, int] = {}
    raw = np.fromiter((codes.setdefault(folder, len(codes)) for folder in folders), np.int32)
    divided = bool((split_column != NO_SPLIT).any())
    trained = raw[split_column == SPLITS.index("train")] if divided else raw
    present = set(np.unique(trained).tolist())
    names = sorted((name for name, code in codes.items() if code in present), key=natural_key)
    rank = np.full(max(len(codes), 1), -1, np.int32)
    for position, name in enumerate(names):
        rank[codes[name]] = position
    labels = rank[raw] if len(raw) else raw
    kept = labels >= 0
    if not kept.all():
        paths = [path for path, keep in zip(paths, kept.tolist(), strict=True) if keep]
    return Catalogue(
        root=root,
        paths=paths,
        labels=labels[kept],
        splits=split_column[kept],
        classes=tuple(ClassLabel.from_folder(name) for name in names),
    )


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key under which `2.Akita` comes before `10.Basenji`."""
    return tuple(_natural_parts(name))


def _natural_parts(name: str) -> Iterator[tuple[int, int | str]]:
    for part in re.split(r"([0-9]+)", name):
        if part:
            yield (0, int(part)) if part[0] in "0123456789" else (1, part.casefold())
    yield (2, name)


def _few(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
