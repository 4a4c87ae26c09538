"""A division is stratified, repeatable, and indifferent to everything but pictures and seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data.catalogue import Catalogue, build
from vizsla.data.sources import open_source
from vizsla.data.splits import divide
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import DataError
from vizsla.records import SPLITS

COUNTS = st.lists(st.integers(2, 40), min_size=2, max_size=5)
SEEDS = st.integers(0, 2**32 - 1)


def catalogue_of(counts: list[int], split: int = -1) -> Catalogue:
    """So many pictures of class `c0`, `c1`, …, all in one split or in none."""
    rows = [(f"c{at}/{n}.jpg", f"c{at}") for at, count in enumerate(counts) for n in range(count)]
    return build(Path("root"), [r[0] for r in rows], [r[1] for r in rows], [split] * len(rows))


def division(catalogue: Catalogue) -> dict[str, str]:
    splits = (SPLITS[at] for at in catalogue.splits.tolist())
    return dict(zip(catalogue.paths, splits, strict=True))


def test_a_division_is_80_10_10_of_every_class() -> None:
    divided = divide(catalogue_of([100, 20, 10]), seed=3)
    assert divided.counts("train").tolist() == [80, 16, 8]
    assert divided.counts("valid").tolist() == [10, 2, 1]
    assert divided.counts("test").tolist() == [10, 2, 1]
    assert divided.split_seed == 3


@pytest.mark.parametrize(
    ("count", "expected"), [(2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))]
)
def test_small_classes_are_trained_and_judged(count: int, expected: tuple[int, int, int]) -> None:
    divided = divide(catalogue_of([count, 30]), seed=0)
    assert tuple(int(divided.counts(split)[0]) for split in SPLITS) == expected


@settings(max_examples=60, deadline=None)
@given(COUNTS, SEEDS)
def test_every_picture_has_one_split_and_every_class_its_share(
    counts: list[int], seed: int
) -> None:
    divided = divide(catalogue_of(counts), seed)
    assert divided.is_split
    assert set(divided.splits.tolist()) <= {0, 1, 2}
    for at, count in enumerate(counts):
        train, valid, test = (int(divided.counts(split)[at]) for split in SPLITS)
        assert train + valid + test == count
        assert train >= 1
        assert valid >= 1
        assert test >= (count >= 3)
        assert max(abs(valid - count / 10), abs(test - count / 10)) <= 1


@settings(max_examples=40, deadline=None)
@given(COUNTS, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_files_makes_no_difference(
    counts: list[int], seed: int, chance: Random
) -> None:
    one = catalogue_of(counts)
    order = list(range(len(one)))
    chance.shuffle(order)
    folders = [one.classes[label].folder for label in one.labels]
    two = build(
        one.root, [one.paths[at] for at in order], [folders[at] for at in order], one.splits
    )
    assert division(divide(one, seed)) == division(divide(two, seed))


@settings(max_examples=40, deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 30))
def test_more_pictures_of_one_class_move_none_of_another(
    counts: list[int], seed: int, more: int
) -> None:
    before = division(divide(catalogue_of(counts), seed))
    after = division(divide(catalogue_of([counts[0] + more, *counts[1:]]), seed))
    assert {p: s for p, s in before.items() if not p.startswith("c0/")} == {
        p: s for p, s in after.items() if not p.startswith("c0/")
    }


def test_a_new_class_moves_no_picture() -> None:
    before, after = (division(divide(catalogue_of(counts), 7)) for counts in ([20, 9], [20, 9, 30]))
    assert before.items() < after.items()


def test_another_seed_is_another_division() -> None:
    catalogue = catalogue_of([40, 40])
    assert division(divide(catalogue, 0)) != division(divide(catalogue, 1))


def test_classes_of_equal_size_are_not_divided_alike() -> None:
    divided = divide(catalogue_of([40, 40]), 0)
    assert (divided.splits[:40] != divided.splits[40:]).any()


# -- Divisions that the data brings ------------------------------------------------------------


def test_a_division_that_exists_is_kept(dogs: DrawnDataset) -> None:
    catalogue = open_source(dogs.folder)
    divided = divide(catalogue, seed=5)
    assert (divided.splits == catalogue.splits).all()
    assert divided.split_seed is None


def test_a_training_split_alone_gives_some_to_validation() -> None:
    divided = divide(catalogue_of([40, 20, 2], split=0), seed=0)
    assert divided.counts("valid").tolist() == [4, 2, 1]
    assert len(divided.rows("test")) == 0
    assert divided.split_seed == 0


def test_validation_comes_from_training_and_the_test_split_stays() -> None:
    catalogue = catalogue_of([30, 30], split=0)
    catalogue.splits[::3] = SPLITS.index("test")
    divided = divide(catalogue, seed=0)
    assert divided.rows("test").tolist() == catalogue.rows("test").tolist()
    assert Counter(division(divided).values()) == {"train": 36, "valid": 4, "test": 20}


def test_dividing_changes_only_what_it_returns() -> None:
    catalogue = catalogue_of([9, 9], split=0)
    divide(catalogue, seed=0)
    assert (catalogue.splits == 0).all()


def test_dividing_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    divide(catalogue_of([9, 9]), seed=0)
    assert (np.random.get_state()[1] == before).all()


# -- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [-1, 0])
def test_a_class_with_a_single_picture_is_named(split: int) -> None:
    with pytest.raises(DataError, match=r"The class 'c1' in root has a single picture: it cannot"):
        divide(catalogue_of([5, 1, 5], split), seed=0)
    with pytest.raises(DataError, match=r"\(and so have 2 more classes\)"):
        divide(catalogue_of([1, 1, 1, 5], split), seed=0)


def test_a_single_picture_is_enough_where_the_user_divided() -> None:
    catalogue = catalogue_of([1, 5, 1], split=0)
    catalogue.splits[-3:] = SPLITS.index("valid")
    kept = build(
        catalogue.root,
        catalogue.paths[:-1],
        [catalogue.classes[label].folder for label in catalogue.labels[:-1]],
        catalogue.splits[:-1].tolist(),
    )
    assert divide(kept, seed=0).counts("train").tolist() == [1, 3]


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="Only one class was found in root: 'c0'"):
        divide(catalogue_of([9]), seed=0)
