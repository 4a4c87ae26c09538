"""Random variation of training pictures, by timm's own operations.

timm draws from Python's and NumPy's global generators. Both are seeded here for each picture
from (seed, epoch, position) and put back afterwards, so that a picture's variation depends on
nothing else: not on the number of workers, the batch size, or where a resumed run took up.
Variation of whole batches (MixUp, CutMix, erasing) is `training/mixing.py`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.data.transforms import Preprocessing
from vizsla.settings import AugmentSettings

# isort: split
from timm.data.auto_augment import (
    RandAugment,
    auto_augment_transform,
    posterize,
    rand_augment_transform,
)
from timm.data.transforms import RandomResizedCropAndInterpolation

PictureChange = Callable[[Image.Image], Image.Image]


class Variation:
    """A picture's random change, drawn anew for each (seed, epoch, position)."""

    def __init__(self, settings: AugmentSettings, preprocessing: Preprocessing, seed: int) -> None:
        self._settings = settings
        self._seed = seed
        self._preprocessing = preprocessing
        self._crop = _random_crop(settings, preprocessing)
        self._policy = _policy(settings, preprocessing)

    def __call__(self, image: Image.Image, epoch: int, position: int) -> Image.Image:
        """The picture at the network's size, varied."""
        return self.vary(self.prepare(image), epoch, position)

    def prepare(self, image: Image.Image) -> Image.Image:
        """What is done to a picture before chance comes in, and can be kept between epochs."""
        if self._crop is None:
            return self._preprocessing.fit(image)
        return self._preprocessing.reduce(image)

    @property
    def preparation(self) -> str:
        """What `prepare` does, in a word: `fit` or `reduced`."""
        return "fit" if self._crop is None else "reduced"

    def vary(self, image: Image.Image, epoch: int, position: int) -> Image.Image:
        """A prepared picture at the network's size, varied."""
        with seeded(self._seed, epoch, position):
            if self._crop is not None:
                image = self._crop(image)
            if self.mirrors(epoch, position):
                image = ImageOps.mirror(image)
            if random.random() < self._settings.vflip:
                image = ImageOps.flip(image)
            return self._policy(image)

    def mirrors(self, epoch: int, position: int) -> bool:
        """Whether this draw is mirrored, which can be asked without loading the picture."""
        chances = _mirror_chances(self._seed, epoch, position // _BLOCK)
        return bool(chances[position % _BLOCK] < self._settings.hflip)

    def mirrored(self, epoch: int, count: int) -> NDArray[np.bool_]:
        """`mirrors` for the first `count` positions of an epoch."""
        blocks = [_mirror_chances(self._seed, epoch, at) for at in range(-(-count // _BLOCK))]
        return np.concatenate([*blocks, np.empty(0)])[:count] < self._settings.hflip

    @property
    def facts(self) -> dict[str, Any]:
        """What the variation is a function of, besides the picture, epoch and position."""
        return {"seed": self._seed, **self._settings.model_dump(include=set(_OF_A_PICTURE))}


_BLOCK = 4096
_OF_A_PICTURE = (
    "train_crop", "crop_scale_min", "hflip", "vflip", "augment", "augment_magnitude",
)  # fmt: skip


@lru_cache(maxsize=64)
def _mirror_chances(seed: int, epoch: int, block: int) -> NDArray[np.float64]:
    return np.random.default_rng([seed, 2, epoch, block]).random(_BLOCK)


def _random_crop(settings: AugmentSettings, preprocessing: Preprocessing) -> PictureChange | None:
    if settings.train_crop == "same":
        return None
    crop: PictureChange = RandomResizedCropAndInterpolation(
        preprocessing.size_px,
        scale=(settings.crop_scale_min, 1.0),
        interpolation=preprocessing.interpolation,
    )
    return crop


def _policy(settings: AugmentSettings, preprocessing: Preprocessing) -> PictureChange:
    if settings.augment == "none":
        return lambda image: image
    options = {
        "translate_const": int(preprocessing.size_px * 0.45),
        "img_mean": tuple(round(255 * mean) for mean in preprocessing.mean),
    }
    change: PictureChange
    if settings.augment == "autoaugment":
        change = auto_augment_transform("original", options)
    elif settings.augment == "trivialaugment":
        # One operation, always, of uniformly drawn strength (Müller and Hutter, 2021).
        change = _keeping_a_bit(rand_augment_transform("rand-n1-m10-mstd101-p1-inc1", options))
    else:
        strength = f"rand-m{settings.augment_magnitude}-n2-mstd0.5-inc1"
        change = _keeping_a_bit(rand_augment_transform(strength, options))
    return change


def _keeping_a_bit(policy: RandAugment) -> RandAugment:
    """At full strength timm's posterize keeps no bit, which Pillow 13 refuses; keep one."""
    for operation in policy.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize
    return policy


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    picture: Image.Image = posterize(image, max(bits_to_keep, 1), **options)
    return picture


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Python's and NumPy's global generators seeded from `entropy`, and restored on leaving."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    state = np.random.SeedSequence(entropy).generate_state(1)[0]
    random.seed(int(state))
    np.random.seed(state)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
