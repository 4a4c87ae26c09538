"""The views in which a training picture is seen, where they are few and fixed.

Mirrored or not: then two views are all there are, and keeping what a frozen network makes of
them changes nothing. With K drawn views (random crops, colour changes), each picture has K
variations drawn once from the seed and from its own bytes, and epochs take turns over them: an
approximation of drawing anew every time, which gets better with K.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vizsla.data.augment import Variation
from vizsla.data.cores import available_cores
from vizsla.data.loader import Draw, Loaded, PictureDataset
from vizsla.data.record_store import KEY_BYTES
from vizsla.data.transforms import Preprocessing
from vizsla.settings import AugmentSettings

AS_IT_IS = "as it is"
MIRRORED = "mirrored"


def has_fixed_views(settings: AugmentSettings) -> bool:
    """Whether a training picture is seen in fixed views alone: by its variation, or because the
    settings ask for drawn ones."""
    of_a_batch = settings.random_erasing or settings.mixup or settings.cutmix
    return not of_a_batch and (settings.views > 0 or not _varies_freely(settings))


def _varies_freely(settings: AugmentSettings) -> bool:
    return settings.train_crop != "same" or settings.augment != "none" or settings.vflip > 0


def with_drawn_views(settings: AugmentSettings) -> AugmentSettings:
    """The settings that views are drawn by: who asks for drawn views and names no variation wants
    the usual one, random crops."""
    if settings.views and not _varies_freely(settings):
        return settings.model_copy(update={"train_crop": "random"})
    return settings


class FixedViews:
    """The views of training pictures under `settings`, and which of them a draw takes."""

    def __init__(self, settings: AugmentSettings, preprocessing: Preprocessing, seed: int) -> None:
        self._seed = seed
        settings = with_drawn_views(settings)
        self.variation = Variation(settings, preprocessing, seed)
        self.drawn = settings.views
        facts = json.dumps(self.variation.facts, sort_keys=True)
        # The name of each view is a part of its key in a cache.
        self.names = [AS_IT_IS, MIRRORED, *(f"drawn {at}: {facts}" for at in range(self.drawn))]
        # Those that an epoch may take.
        self.taken = [
            at
            for at, name in enumerate(self.names)
            if not (name == MIRRORED and settings.hflip == 0)
            and not (name == AS_IT_IS and settings.hflip == 1 and not self.drawn)
        ]

    def choose(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """For each position of an epoch, given its row, the view that is taken (of `names`)."""
        if not self.drawn:
            return self.variation.mirrored(epoch, len(rows)).astype(np.int64)
        first = np.random.default_rng([self._seed, 3]).integers(1 << 30, size=rows.max() + 1)
        taken: NDArray[np.int64] = np.array(self.taken)[(first[rows] + epoch) % len(self.taken)]
        return taken


@dataclass
class ViewDataset(Dataset[Loaded]):
    """Reads one picture in each of its views but the mirrored, which is made of the first:
    pixels (1 + drawn, size, size, 3), with the digest of the bytes that were read."""

    pictures: PictureDataset  # without variation
    views: FixedViews | None = None

    def __getitem__(self, draw: Draw) -> Loaded:
        read = self.pictures.read(draw.row)
        label = self.pictures.label(draw.row)
        if read.image is None:
            return Loaded(draw.row, label, None, read.problem)
        digest = picture_digest(read.data, repaired=read.problem is not None)
        images = [self.pictures.preprocessing.fit(read.image)]
        if self.views is not None and self.views.drawn:
            variation = self.views.variation
            prepared = variation.prepare(read.image)
            # Drawn from the bytes, so that a picture's views do not depend on its neighbours.
            position = int.from_bytes(digest[:6], "big")
            images += [
                variation.vary(prepared, number, position) for number in range(self.views.drawn)
            ]
        pixels = np.stack([np.asarray(image) for image in images])
        return Loaded(draw.row, label, pixels, read.problem, digest)


def picture_digest(data: bytes, repaired: bool = False) -> bytes:
    """By what a picture's records are found: its bytes, and whether it was decoded in part."""
    return hashlib.blake2b(
        data, digest_size=KEY_BYTES, person=b"repaired" if repaired else b""
    ).digest()


def record_key(digest: bytes, view: str) -> bytes:
    """The key of what was made of one view of a picture."""
    return hashlib.blake2b(digest + view.encode(), digest_size=KEY_BYTES).digest()


def digests_of(paths: Iterable[Path]) -> list[bytes | None]:
    """The digest of each file; None where it cannot be read."""

    def digest(path: Path) -> bytes | None:
        try:
            return picture_digest(path.read_bytes())
        except OSError:
            return None

    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(digest, paths))
