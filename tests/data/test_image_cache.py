"""Pictures from the cache are those that would have been decoded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vizsla.data.augment import Variation
from vizsla.data.image_cache import ImageCache, KeptPicturesCount, keep_pictures
from vizsla.data.loader import Draw, PictureDataset
from vizsla.data.sources import open_source
from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.data.transforms import Preprocessing
from vizsla.errors import StorageError
from vizsla.records import PictureProblem
from vizsla.settings import AugmentSettings

PREPROCESSING = Preprocessing(size_px=32)
CROPPED = AugmentSettings(train_crop="random", augment="randaugment")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))


def dataset(folder: Path, settings: AugmentSettings | None, **more: str) -> PictureDataset:
    variation = None if settings is None else Variation(settings, PREPROCESSING, 3)
    return PictureDataset(open_source(folder), PREPROCESSING, variation=variation, **more)


def keep(
    pictures: PictureDataset, budget_bytes: float = 1e9
) -> tuple[ImageCache, KeptPicturesCount, list[PictureProblem]]:
    return keep_pictures(
        pictures,
        pictures.catalogue.rows("all"),
        budget_bytes,
        0,
        stopped=lambda: False,
        tell=lambda *_: None,
        waiting=lambda: None,
    )


@pytest.mark.parametrize("settings", [None, AugmentSettings(), CROPPED])
def test_a_run_from_the_cache_sees_the_same_pictures(
    dogs: DrawnDataset, settings: AugmentSettings | None
) -> None:
    plain = dataset(dogs.folder, settings)
    cached = dataset(dogs.folder, settings)
    cached.kept, count, _ = keep(plain)
    assert count.decoded == len(plain.catalogue)
    for row in range(0, len(plain.catalogue), 7):
        for epoch in range(2):
            one, two = plain[Draw(row, epoch, row)], cached[Draw(row, epoch, row)]
            assert one.label == two.label
            assert np.array_equal(one.pixels, two.pixels)


def test_large_pictures_are_kept_reduced_and_cropped_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "big" / name).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (300, 420, 3), np.uint8)
        for number in range(3):
            Image.fromarray(noise).save(tmp_path / "big" / name / f"{number}.png")
    plain, cached = dataset(tmp_path / "big", CROPPED), dataset(tmp_path / "big", CROPPED)
    cached.kept, count, _ = keep(plain)
    assert count.bytes == 3 * PREPROCESSING.decode_px * round(PREPROCESSING.decode_px * 1.4) * 6
    assert np.array_equal(plain[Draw(0, 1, 2)].pixels, cached[Draw(0, 1, 2)].pixels)


def test_the_second_time_nothing_is_decoded(
    dogs: DrawnDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(dataset(dogs.folder, None))
    pictures = dataset(dogs.folder, None)
    monkeypatch.setattr(PictureDataset, "read", None)  # to call it would fail
    pictures.kept, count, _ = keep(pictures)
    assert (count.decoded, count.found) == (0, len(pictures.catalogue))
    assert pictures[Draw(3, 0, 0)].pixels is not None


def test_a_changed_picture_is_decoded_again_and_no_other(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    shutil.copytree(dogs.folder, tmp_path / "dogs")
    pictures = dataset(tmp_path / "dogs", None)
    keep(pictures)
    Image.new("RGB", (50, 50), (250, 0, 0)).save(pictures.catalogue.path(4))
    cache, count, _ = keep(pictures)
    assert count.decoded == 1
    red, green, blue = np.asarray(cache.picture(4))[16, 16].tolist()
    assert red > 240 > 10 > max(green, blue)


def test_corrupt_pictures_are_told_of_and_left_to_the_policy(tmp_path: Path) -> None:
    drawn = draw_dataset(
        tmp_path / "dogs", breeds=2, pictures_per_breed=12, size_px=48, faults=Faults(truncated=3)
    )
    cache, _, problems = keep(dataset(drawn.folder, None))
    assert {problem.path for problem in problems} == set(drawn.truncated)
    assert len(cache.offsets) == 24 - 3
    repairing = dataset(drawn.folder, None, corrupt="repair")
    for _ in range(2):  # and the second time, from the cache
        cache, _, problems = keep(repairing)
        assert {problem.action for problem in problems} == {"repaired"}
        assert len(cache.offsets) == 24


def test_what_does_not_fit_into_the_budget_is_refused_before_it_is_written(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="kB more, and the cache may hold 1.0 kB .cache_gb."):
        keep(dataset(dogs.folder, None), budget_bytes=1000)
    assert list((tmp_path / "cache").rglob("records")) == [] or all(
        path.stat().st_size == 0 for path in (tmp_path / "cache").rglob("records")
    )
