"""Random variation is random over pictures and epochs, and exactly repeatable."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from vizsla.data.augment import Variation, seeded
from vizsla.data.synthetic import breed_traits, draw_dog
from vizsla.data.transforms import Preprocessing
from vizsla.settings import AugmentSettings

POLICIES = ["none", "randaugment", "autoaugment", "trivialaugment"]
PREPROCESSING = Preprocessing(size_px=32, crop_pct=1.0)
DOG = draw_dog(breed_traits(2), np.random.default_rng(0), 64).resize((80, 64))


def variation(seed: int = 0, size_px: int = 32, **settings: object) -> Variation:
    settings = {"hflip": 0.0, **settings}
    return Variation(AugmentSettings(**settings), Preprocessing(size_px=size_px), seed)


def varied(change: Variation, count: int = 12, epoch: int = 0) -> list[bytes]:
    return [change(DOG, epoch, position).tobytes() for position in range(count)]


@pytest.mark.parametrize("train_crop", ["same", "random"])
@pytest.mark.parametrize("augment", POLICIES)
def test_a_policy_gives_pictures_of_the_networks_size(augment: str, train_crop: str) -> None:
    change = variation(augment=augment, train_crop=train_crop, hflip=0.5, vflip=0.5)
    for position in range(40):
        image = change(DOG, 0, position)
        assert (image.mode, image.size) == ("RGB", (32, 32))


@pytest.mark.parametrize("augment", POLICIES)
def test_a_picture_depends_on_seed_epoch_and_position_alone(augment: str) -> None:
    settings = {"augment": augment, "train_crop": "random", "hflip": 0.5}
    first = varied(variation(seed=3, **settings))
    random.seed(99)
    np.random.seed(99)
    again = variation(seed=3, **settings)
    assert again(DOG, 0, 7).tobytes() == first[7]  # out of turn, and after other chance
    assert varied(again) == first
    assert varied(again, epoch=1) != first
    assert varied(variation(seed=4, **settings)) != first
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("augment", POLICIES[1:])
def test_a_policy_changes_most_pictures(augment: str) -> None:
    plain = variation()(DOG, 0, 0).tobytes()
    assert sum(image != plain for image in varied(variation(augment=augment), 30)) >= 15


@pytest.mark.parametrize("augment", ["randaugment", "trivialaugment"])
def test_no_operation_fails_at_any_strength(augment: str) -> None:
    policy = variation(augment=augment)._policy
    operations = policy.ops  # type: ignore[attr-defined]
    assert len(operations) > 10
    for operation in operations:
        operation.prob, operation.magnitude_std = 1.0, 0.0
        for operation.magnitude in (0, 1, 5, 9, 10):
            assert operation(DOG).size == DOG.size


def test_the_magnitude_makes_a_difference() -> None:
    weak, strong = (variation(augment="randaugment", augment_magnitude=m) for m in (0, 10))
    assert varied(weak) != varied(strong)


@pytest.mark.parametrize("augment", POLICIES)
def test_the_callers_chance_is_untouched(augment: str) -> None:
    python, numpy = random.getstate(), np.random.get_state()
    varied(variation(augment=augment, train_crop="random", hflip=0.5))
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy[1]).all()
    assert np.random.get_state()[2:] == numpy[2:]


def test_chance_is_put_back_after_an_error() -> None:
    python = random.getstate()
    with pytest.raises(ZeroDivisionError), seeded(1, 2, 3):
        1 / 0  # noqa: B018
    assert random.getstate() == python


def test_the_original_is_not_changed() -> None:
    before = DOG.tobytes()
    varied(variation(augment="randaugment", train_crop="random", hflip=1.0, vflip=1.0))
    assert DOG.tobytes() == before


def test_without_variation_a_picture_is_the_evaluations() -> None:
    assert set(varied(variation())) == {Preprocessing(size_px=32).fit(DOG).tobytes()}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"hflip": 1.0}, ImageOps.mirror),
        ({"vflip": 1.0}, ImageOps.flip),
        ({"hflip": 1.0, "vflip": 1.0}, lambda image: image.rotate(180)),
    ],
)
def test_flips_that_always_happen(settings: dict[str, float], expected) -> None:  # type: ignore[no-untyped-def]
    right = expected(Preprocessing(size_px=32).fit(DOG)).tobytes()
    assert set(varied(variation(**settings))) == {right}


def test_half_of_all_pictures_are_mirrored() -> None:
    plain = variation()(DOG, 0, 0).tobytes()
    images = varied(variation(hflip=0.5), 200)
    assert len(set(images)) == 2
    assert 70 <= images.count(plain) <= 130


def test_whether_a_picture_is_mirrored_can_be_asked_beforehand() -> None:
    plain, change = variation()(DOG, 0, 0).tobytes(), variation(hflip=0.5)
    images = varied(change, 40, epoch=2)
    assert [image != plain for image in images] == [change.mirrors(2, at) for at in range(40)]


def test_random_crops_keep_at_least_the_asked_share() -> None:
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0] = np.arange(100)  # a column's red is its place
    image = Image.fromarray(ramp)
    spans = []
    change = variation(train_crop="random", crop_scale_min=0.8)
    for position in range(60):
        reds = np.asarray(change(image, 0, position))[..., 0]
        spans.append(int(reds.max()) - int(reds.min()))
    assert min(spans) >= 100 * np.sqrt(0.8 * 3 / 4) - 5  # the narrowest allowed shape
    assert len(set(spans)) > 5
