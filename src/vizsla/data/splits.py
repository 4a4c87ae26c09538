"""Dividing pictures into training, validation and test: stratified and seeded.

A division that the data brings is kept. Where only a training split exists, validation pictures
are taken from it; a test split is never invented beside one that the user made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.data.catalogue import Catalogue
from vizsla.errors import DataError
from vizsla.records import SPLITS

SHARES = (0.8, 0.1, 0.1)


def divide(
    catalogue: Catalogue, seed: int, shares: tuple[float, float, float] = SHARES
) -> Catalogue:
    """The catalogue with every picture in a split, `shares` of training, validation and test.

    The same pictures and seed give the same division, whatever their order on disk. Of a class
    with three pictures or more each split gets at least one; of two, training and validation.

    Raises `DataError` where there are fewer than two classes, or a class has a single picture
    and would be trained without ever being judged.
    """
    _check_classes(catalogue)
    if not catalogue.is_split:
        return replace(catalogue, splits=_stratified(catalogue, shares, seed), split_seed=seed)
    if len(catalogue.rows("valid")) == 0:
        trained = catalogue.rows("train")
        part = replace(
            catalogue,
            paths=[catalogue.paths[row] for row in trained],
            labels=catalogue.labels[trained],
            splits=catalogue.splits[trained],
        )
        _check_singles(part)
        splits = catalogue.splits.copy()
        splits[trained] = _stratified(part, (0.9, 0.1, 0.0), seed)
        return replace(catalogue, splits=splits, split_seed=seed)
    return catalogue


def divided_as_trained(catalogue: Catalogue, trained: Mapping[str, Any]) -> Catalogue:
    """The catalogue divided as a training did it, where it is of the same pictures; else as it is.

    `trained` is what a bundle says of its data: `fingerprint`, and `split_seed` where vizsla
    divided it. Data that came with a training split alone is completed as the training did it.
    """
    seed = trained.get("split_seed")
    if seed is not None and catalogue.fingerprint() == trained.get("fingerprint"):
        return divide(catalogue, int(seed))
    return catalogue


def _check_classes(catalogue: Catalogue) -> None:
    if len(catalogue.classes) < 2:
        only = catalogue.classes[0].folder if catalogue.classes else "(none)"
        raise DataError(
            f"Only one class was found in {catalogue.root}: {only!r}. A classifier needs at "
            "least two, each in a folder of its own (or its own label in the manifest)."
        )
    if not catalogue.is_split:
        _check_singles(catalogue)


def _check_singles(catalogue: Catalogue) -> None:
    counts = np.bincount(catalogue.labels, minlength=len(catalogue.classes))
    singles = [catalogue.classes[index].folder for index in np.flatnonzero(counts < 2)]
    if singles:
        raise DataError(
            f"The class {singles[0]!r} in {catalogue.root} has a single picture"
            + (f" (and so have {len(singles) - 1} more classes)" if len(singles) > 1 else "")
            + ": it cannot be both trained and validated. Add pictures, remove the class, or "
            "divide the data yourself into train, valid and test."
        )


def _stratified(
    catalogue: Catalogue, shares: tuple[float, float, float], seed: int
) -> NDArray[np.int8]:
    splits = np.zeros(len(catalogue), np.int8)
    order = np.array(sorted(range(len(catalogue)), key=catalogue.paths.__getitem__), np.int64)
    by_class = order[np.argsort(catalogue.labels[order], kind="stable")]
    bounds = np.searchsorted(catalogue.labels[by_class], np.arange(len(catalogue.classes) + 1))
    for index, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        # A generator per class: adding pictures to one class moves none of another.
        name = catalogue.classes[index].folder.encode()
        generator = np.random.default_rng([seed, *name])
        rows = generator.permutation(by_class[start:end])
        test = _part(len(rows), shares[2], spare=2)
        valid = _part(len(rows), shares[1], spare=1)
        splits[rows[:valid]] = SPLITS.index("valid")
        splits[rows[valid : valid + test]] = SPLITS.index("test")
    return splits


def _part(count: int, share: float, spare: int) -> int:
    """Pictures for a part: its rounded share, at least one where `spare` others remain."""
    if share == 0 or count <= spare:
        return 0
    return max(1, round(count * share))
