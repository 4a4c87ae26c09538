"""Views that are drawn once: which there are, and that they depend on the picture alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data.augment import Variation
from vizsla.data.fixed_views import (
    FixedViews,
    ViewDataset,
    digests_of,
    has_fixed_views,
    picture_digest,
    record_key,
)
from vizsla.data.loader import Draw, PictureDataset
from vizsla.data.sources import open_source
from vizsla.data.synthetic import DrawnDataset, draw_dataset
from vizsla.data.transforms import Preprocessing
from vizsla.settings import AugmentSettings

PREPROCESSING = Preprocessing(size_px=32, crop_pct=1.0)


def views_of(seed: int = 0, **settings: object) -> FixedViews:
    return FixedViews(AugmentSettings(**settings), PREPROCESSING, seed)


@pytest.mark.parametrize(
    ("settings", "fixed"),
    [
        ({}, True),
        ({"hflip": 0}, True),
        ({"train_crop": "random"}, False),
        ({"augment": "randaugment"}, False),
        ({"vflip": 0.5}, False),
        ({"train_crop": "random", "augment": "randaugment", "views": 4}, True),
        ({"views": 4}, True),
        ({"views": 4, "mixup": 0.2}, False),
        ({"cutmix": 1.0}, False),
        ({"random_erasing": 0.1}, False),
    ],
)
def test_views_are_fixed_unless_something_is_drawn_every_time(
    settings: dict[str, object], fixed: bool
) -> None:
    assert has_fixed_views(AugmentSettings(**settings)) is fixed


@pytest.mark.parametrize(
    ("hflip", "taken"), [(0, ["as it is"]), (0.5, ["as it is", "mirrored"]), (1, ["mirrored"])]
)
def test_only_views_that_an_epoch_may_take_are_wanted(hflip: float, taken: list[str]) -> None:
    views = views_of(hflip=hflip)
    assert [views.names[at] for at in views.taken] == taken


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
    count=st.integers(1, 10_000),
    hflip=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_mirrored_are_those_that_an_uncached_run_would_mirror(
    seed: int, epoch: int, count: int, hflip: float
) -> None:
    variation = Variation(AugmentSettings(hflip=hflip), PREPROCESSING, seed)
    chosen = views_of(seed, hflip=hflip).choose(np.arange(count), epoch)
    for position in {0, count // 2, count - 1}:
        assert bool(chosen[position]) == variation.mirrors(epoch, position)


def test_epochs_take_turns_over_drawn_views() -> None:
    views = views_of(views=3)
    rows = np.arange(50)
    seen = [views.choose(rows, epoch) for epoch in range(5)]
    for row in rows:
        assert sorted(epoch[row] for epoch in seen) == [0, 1, 2, 3, 4]
    assert len(Counter(seen[0].tolist())) == 5  # and pictures differ in where they begin


@pytest.mark.parametrize("varied", [{}, {"train_crop": "random", "augment": "randaugment"}])
def test_drawn_views_depend_on_bytes_and_seed_alone(
    dogs: DrawnDataset, tmp_path: Path, varied: dict[str, object]
) -> None:
    more = draw_dataset(tmp_path / "more", breeds=3, pictures_per_breed=24, size_px=64, seed=2)
    catalogue, grown = open_source(dogs.folder), open_source(more.folder)
    picture = catalogue.path(5)
    grown.path(9).write_bytes(picture.read_bytes())

    def stack(source: object, row: int, seed: int) -> np.ndarray:
        dataset = ViewDataset(
            PictureDataset(source, PREPROCESSING),  # type: ignore[arg-type]
            views_of(seed, views=3, **varied),
        )
        loaded = dataset[Draw(row, 0, 0)]
        assert loaded.digest == picture_digest(picture.read_bytes())
        return loaded.pixels

    one = stack(catalogue, 5, seed=7)
    assert one.shape == (4, 32, 32, 3)
    assert np.array_equal(one, stack(grown, 9, seed=7))
    assert not np.array_equal(one[1:], stack(catalogue, 5, seed=8)[1:])
    assert len({view.tobytes() for view in one}) == 4


def test_keys_differ_by_picture_view_variation_and_repair() -> None:
    names = [
        *views_of(views=2).names,
        *views_of(views=2, augment="randaugment").names[2:],
        *views_of(1, views=2).names[2:],
    ]
    digests = [
        picture_digest(b"one"),
        picture_digest(b"two"),
        picture_digest(b"one", repaired=True),
    ]
    keys = {record_key(digest, name) for digest in digests for name in names}
    assert len(keys) == len(names) * len(digests)


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"one")
    found = digests_of([tmp_path / "there", tmp_path / "gone", tmp_path])
    assert found == [picture_digest(b"one"), None, None]
