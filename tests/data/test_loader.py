"""Batches are a pure function of seed and epoch: whoever loads them, wherever it begins."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data.augment import Variation
from vizsla.data.catalogue import Catalogue
from vizsla.data.loader import (
    Batch,
    EpochBatches,
    PictureDataset,
    build_loader,
    collate,
    inverse_frequency,
)
from vizsla.data.sources import open_source
from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.data.transforms import Preprocessing
from vizsla.settings import AugmentSettings

PREPROCESSING = Preprocessing(size_px=32, crop_pct=1.0)
VARIED = AugmentSettings(train_crop="random", augment="randaugment", hflip=0.5)


@pytest.fixture(scope="module")
def catalogue(dogs: DrawnDataset) -> Catalogue:
    return open_source(dogs.folder)


def varied_dataset(catalogue: Catalogue) -> PictureDataset:
    return PictureDataset(catalogue, PREPROCESSING, variation=Variation(VARIED, PREPROCESSING, 5))


def epoch_of(count: int, batch_size: int, **options: object) -> EpochBatches:
    return EpochBatches(np.arange(count), batch_size, **options)  # type: ignore[arg-type]


def positions(batches: EpochBatches) -> list[list[int]]:
    return [[draw.position for draw in batch] for batch in batches]


def picture_rows(batches: EpochBatches) -> list[int]:
    return [draw.row for batch in batches for draw in batch]


def same(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.pixels, two.pixels)
        and torch.equal(one.labels, two.labels)
        and torch.equal(one.rows, two.rows)
        and one.problems == two.problems
    )


# -- Order -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 60),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(0, 1000),
)
def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_alone(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    one = epoch_of(count, batch_size, shuffle_seed=seed, epoch=epoch)
    two = epoch_of(count, batch_size + 1, shuffle_seed=seed, epoch=epoch)
    two.epoch += 1
    list(two)
    two.epoch -= 1
    assert one.order().tolist() == two.order().tolist()
    assert sorted(one.order().tolist()) == list(range(count))
    drawn = picture_rows(one)
    assert drawn == one.order().tolist()[: len(drawn)]


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {
        tuple(epoch_of(30, 4, shuffle_seed=seed, epoch=epoch).order())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_evaluation_keeps_the_order_of_its_rows() -> None:
    rows = np.array([7, 3, 9, 1, 4])
    assert picture_rows(EpochBatches(rows, 2)) == [7, 3, 9, 1, 4]
    assert picture_rows(EpochBatches(rows, 2, epoch=6)) == [7, 3, 9, 1, 4]


@pytest.mark.parametrize(
    ("count", "seed", "sizes"),
    [
        (9, 0, [4, 4]),  # batch norm has no variance of one
        (9, None, [4, 4, 1]),
        (10, 0, [4, 4, 2]),
        (8, 0, [4, 4]),
        (1, 0, [1]),  # better than an epoch of nothing
        (1, None, [1]),
        (0, None, []),
    ],
)
def test_a_rest_of_one_is_dropped_in_training_only(
    count: int, seed: int | None, sizes: list[int]
) -> None:
    batches = epoch_of(count, 4, shuffle_seed=seed)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == batches.batch_count == len(sizes)


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 6),
    world=st.integers(1, 4),
    seed=st.sampled_from([None, 0]),
)
def test_processes_share_every_batch_without_overlap(
    count: int, batch_size: int, world: int, seed: int | None
) -> None:
    shares = [
        positions(epoch_of(count, batch_size, shuffle_seed=seed, world=world, rank=rank))
        for rank in range(world)
    ]
    alone = positions(epoch_of(count, batch_size * world, shuffle_seed=None))
    assert len({len(share) for share in shares}) == 1  # else one would wait for ever
    for batch, together in enumerate(zip(*shares, strict=True)):
        assert sorted(at for part in together for at in part) == alone[batch]
        if seed is not None and count >= 2 * world and batch_size > 1:
            assert min(len(part) for part in together) >= 2
    seen = sum(len(batch) for share in shares for batch in share)
    if seed is None:
        assert seen == count
    else:
        assert count - seen < 2 * world


def test_balanced_sampling_evens_out_the_classes() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10, np.int32)
    chances = inverse_frequency(labels, 3)[labels]
    drawn = Counter(
        int(labels[row])
        for epoch in range(3)
        for row in picture_rows(epoch_of(1000, 50, shuffle_seed=1, epoch=epoch, chances=chances))
    )
    assert sum(drawn.values()) == 3000
    assert all(0.3 < drawn[label] / 3000 < 0.37 for label in range(3))


def test_class_weights_even_out_and_average_one() -> None:
    labels = np.array([0, 0, 0, 2], np.int32)
    weights = inverse_frequency(labels, 3)
    assert weights[1] == 0
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[0] * 3 == pytest.approx(weights[2])


# -- Pictures ----------------------------------------------------------------------------------


def test_a_batch_is_bytes_labels_and_rows(catalogue: Catalogue) -> None:
    rows = catalogue.rows("valid")
    loader = build_loader(PictureDataset(catalogue, PREPROCESSING), EpochBatches(rows, 5), 0)
    batches = list(loader)
    assert [tuple(batch.pixels.shape) for batch in batches] == [(5, 32, 32, 3)] * 2 + [
        (2, 32, 32, 3)
    ]
    assert batches[0].pixels.dtype == torch.uint8
    assert torch.cat([batch.rows for batch in batches]).tolist() == rows.tolist()
    assert (
        torch.cat([batch.labels for batch in batches]).tolist() == catalogue.labels[rows].tolist()
    )


def test_resuming_in_the_middle_gives_the_very_rest(catalogue: Catalogue) -> None:
    def epoch(first_batch: int, workers: int) -> list[Batch]:
        batches = EpochBatches(
            catalogue.rows("train"), 10, shuffle_seed=5, epoch=3, first_batch=first_batch
        )
        assert len(batches) == 5 - first_batch
        return list(build_loader(varied_dataset(catalogue), batches, workers))

    whole = epoch(0, workers=0)
    assert [len(batch.labels) for batch in whole] == [10, 10, 10, 10, 8]
    for rest in (epoch(3, workers=0), epoch(2, workers=2)):
        assert all(map(same, rest, whole[-len(rest) :]))
    assert not same(whole[0], whole[1])


def test_workers_change_nothing_over_the_epochs(catalogue: Catalogue) -> None:
    loaders = []
    for workers in (0, 2):
        batches = EpochBatches(catalogue.rows("train")[::2], 7, shuffle_seed=1)
        loaders.append((batches, build_loader(varied_dataset(catalogue), batches, workers)))
    epochs = []
    for epoch in range(2):
        for batches, _ in loaders:
            batches.epoch = epoch
        alone, helped = (list(loader) for _, loader in loaders)
        assert len(alone) == len(helped) == 4
        assert all(map(same, alone, helped))
        epochs.append(alone)
    assert not same(epochs[0][0], epochs[1][0])


def test_the_callers_chance_is_untouched(catalogue: Catalogue) -> None:
    def state() -> list[object]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ]

    before = state()
    batches = EpochBatches(catalogue.rows("valid"), 4, shuffle_seed=0)
    assert len(list(build_loader(varied_dataset(catalogue), batches, workers=0))) == 3
    assert state() == before


# -- Corrupt pictures --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, set[str]]:
    """A training split with two truncated pictures, one that is no picture, and one gone."""
    drawn = draw_dataset(
        tmp_path_factory.mktemp("ill") / "dogs",
        breeds=2,
        pictures_per_breed=10,
        size_px=64,
        faults=Faults(truncated=2),
    )
    catalogue = open_source(drawn.folder)
    intact = [path for path in catalogue.paths if path not in drawn.truncated]
    trained = [path for path in intact if path.startswith("train/")]
    (drawn.folder / trained[0]).write_text("no picture")
    (drawn.folder / trained[-1]).unlink()
    return catalogue, set(drawn.truncated) | {trained[0], trained[-1]}


def loaded(catalogue: Catalogue, corrupt: str, workers: int = 0) -> list[Batch]:
    dataset = PictureDataset(catalogue, PREPROCESSING, corrupt)
    return list(build_loader(dataset, EpochBatches(catalogue.rows("train"), 4), workers))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("corrupt", "action"), [("skip", "skipped"), ("fail", "fatal")])
def test_corrupt_pictures_are_told_of_and_the_others_survive(
    ill: tuple[Catalogue, set[str]], corrupt: str, action: str, workers: int
) -> None:
    catalogue, broken = ill
    batches = loaded(catalogue, corrupt, workers)
    problems = [problem for batch in batches for problem in batch.problems]
    assert {problem.path for problem in problems} == broken
    assert len(problems) == len(broken)
    assert {problem.action for problem in problems} == {action}
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert {catalogue.paths[row] for row in rows} == {
        path for path in catalogue.paths if path.startswith("train/") and path not in broken
    }
    for batch in batches:
        assert len(batch.pixels) == len(batch.labels) == len(batch.rows)
        assert batch.labels.tolist() == catalogue.labels[batch.rows].tolist()


def test_repairing_keeps_what_can_be_read(ill: tuple[Catalogue, set[str]]) -> None:
    catalogue, broken = ill
    batches = loaded(catalogue, "repair")
    actions = Counter(problem.action for batch in batches for problem in batch.problems)
    assert actions == {"repaired": 2, "skipped": 2}
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert len(rows) == len(catalogue.rows("train")) - 2
    repaired = {p.path for batch in batches for p in batch.problems if p.action == "repaired"}
    assert repaired < broken
    assert repaired < {catalogue.paths[row] for row in rows}


def test_a_batch_without_any_picture_is_empty(
    ill: tuple[Catalogue, set[str]], tmp_path: Path
) -> None:
    catalogue = replace(ill[0], root=tmp_path)  # where no picture is
    batches = loaded(catalogue, "skip")
    assert sum(len(batch.problems) for batch in batches) == len(catalogue.rows("train"))
    for batch in batches:
        assert len(batch.labels) == len(batch.rows) == len(batch.pixels) == 0
        assert batch.pixels.dtype == torch.uint8
    assert same(collate([]), batches[0]._replace(problems=[]))


def test_leaving_with_a_loader_still_up_does_not_hang(dogs: DrawnDataset) -> None:
    # A worker that ignored its parent's SIGTERM once kept a failed training from ending.
    script = f"""
from vizsla.data.loader import EpochBatches, PictureDataset, build_loader
from vizsla.data.sources import open_source
from vizsla.data.transforms import Preprocessing
catalogue = open_source({str(dogs.folder)!r})
dataset = PictureDataset(catalogue, Preprocessing(size_px=32))
kept = iter(build_loader(dataset, EpochBatches(catalogue.rows("train"), 4), workers=2))
next(kept)
raise SystemExit(3)
"""
    child = subprocess.run([sys.executable, "-c", script], timeout=60, check=False)
    assert child.returncode == 3
