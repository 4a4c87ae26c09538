"""Decoded, resized pictures in a memory map, so that later epochs and runs decode nothing.

For trainings whose first layers train too. What is kept is the picture before chance comes in
(`Variation.prepare`), in bytes, so that a run with the cache computes what one without would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vizsla.data.cache import in_words, make_room
from vizsla.data.fixed_views import digests_of, picture_digest
from vizsla.data.loader import Loaded, PictureDataset, loader_options
from vizsla.data.record_store import RecordStore
from vizsla.errors import StorageError
from vizsla.places import cache_folder
from vizsla.records import PictureProblem

_FORMAT = 1
_SIZE = np.dtype("<u4")  # height and width stand before the pixels
_HEADER_BYTES = 2 * _SIZE.itemsize
_PROBED_PICTURES = 8


@dataclass
class ImageCache:
    """The prepared pictures of some rows; what is not here is read from its file."""

    store: RecordStore
    offsets: dict[int, int]
    _bytes: NDArray[np.uint8] | None = field(default=None, repr=False)

    def picture(self, row: int) -> Image.Image | None:
        offset = self.offsets.get(row)
        if offset is None:
            return None
        height, width = self._size(offset)
        start = offset + _HEADER_BYTES
        pixels = self._map()[start : start + height * width * 3].reshape(height, width, 3)
        return Image.fromarray(pixels)

    def __getstate__(self) -> dict[str, object]:
        """Without the map, of which a worker that is not forked would get a copy."""
        return {**self.__dict__, "_bytes": None}

    def bytes(self) -> int:
        """What the pictures take."""
        return sum(3 * height * width for height, width in map(self._size, self.offsets.values()))

    def _size(self, offset: int) -> tuple[int, int]:
        height, width = self._map()[offset : offset + _HEADER_BYTES].view(_SIZE).tolist()
        return height, width

    def _map(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            self._bytes = self.store.mapped()
            if len(self._bytes) == 0 and self.offsets:  # in a worker that was not forked
                self.store.find([])
                self._bytes = self.store.mapped()
        return self._bytes


@dataclass(frozen=True)
class KeptPicturesCount:
    """What became of the pictures: decoded now, found, and the bytes that all of them take."""

    decoded: int
    found: int
    bytes: int


def keep_pictures(
    pictures: PictureDataset,
    rows: NDArray[np.int64],
    budget_bytes: float,
    workers: int | None,
    stopped: Callable[[], bool],
    tell: Callable[[int, int, int], None],
    waiting: Callable[[], None],
) -> tuple[ImageCache, KeptPicturesCount, list[PictureProblem]]:
    """A cache with the prepared pictures of `rows`, filling it where it lacks some; until
    `stopped` says so, calling `tell` with the pictures decoded, to decode, and found, and
    `waiting` if another process is at it.

    Raises `StorageError` where they do not fit into the budget or cannot be written.
    """
    kind = "fit" if pictures.variation is None else pictures.variation.preparation
    facts = [_FORMAT, kind, pictures.preprocessing.to_dict(), PIL.__version__]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    about = f"pictures at {pictures.preprocessing.size_px} px, {kind}"
    store = RecordStore(cache_folder() / "images" / key, about)
    needed = _estimated_bytes(pictures, rows.tolist())
    if needed > budget_bytes:
        raise _over_budget(needed, budget_bytes)
    paths = [pictures.catalogue.path(row) for row in rows.tolist()]
    digests = dict(zip(rows.tolist(), digests_of(paths), strict=True))
    problems: list[PictureProblem] = []
    missing = _missing(store, digests)
    if missing:
        with store.writing(stopped, waiting) as mine:
            missing = _missing(store, digests) if mine else []
            _make_room(store, needed * len(missing) // len(rows), _keys(digests), budget_bytes)
            for done, loaded in enumerate(_loaded(pictures, missing, workers)):
                tell(done, len(missing), len(rows) - len(missing))
                if stopped():
                    break
                if loaded.problem is not None:
                    problems.append(loaded.problem)
                    if loaded.problem.action == "fatal":
                        break
                _keep(store, loaded, digests)
    offsets = store.find(_keys(digests))
    held = {row: at for row, at in zip(digests, offsets.tolist(), strict=True) if at >= 0}
    cache = ImageCache(store, held)
    count = KeptPicturesCount(len(missing), len(rows) - len(missing), cache.bytes())
    return cache, count, problems


def _keys(digests: dict[int, bytes | None]) -> list[bytes]:
    return [digest or b"" for digest in digests.values()]


def _missing(store: RecordStore, digests: dict[int, bytes | None]) -> list[int]:
    """Rows of which there is no record; of rows with the same bytes, the first."""
    first = {digest or row: row for row, digest in reversed(digests.items())}
    lacking = store.find(_keys(digests)) < 0
    return [
        row
        for (row, digest), lacks in zip(digests.items(), lacking.tolist(), strict=True)
        if lacks and first[digest or row] == row
    ]


def _keep(store: RecordStore, loaded: Loaded, digests: dict[int, bytes | None]) -> None:
    if loaded.pixels is None:
        return
    renamed = digests[loaded.row] != loaded.digest  # repaired, or replaced meanwhile
    digests[loaded.row] = loaded.digest
    if not (renamed and store.find([loaded.digest])[0] >= 0):
        header = np.array(loaded.pixels.shape[:2], _SIZE).view(np.uint8)
        record = np.concatenate([header, np.ascontiguousarray(loaded.pixels).ravel()])
        store.append([loaded.digest], record[None])


def _loaded(pictures: PictureDataset, rows: list[int], workers: int | None) -> Iterator[Loaded]:
    return iter(
        DataLoader(
            _Prepared(pictures),
            batch_size=None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            sampler=rows,
            **loader_options(workers, len(rows)),
        )
    )


def _as_it_is(loaded: Loaded) -> Loaded:
    return loaded


def _estimated_bytes(pictures: PictureDataset, rows: list[int]) -> int:
    """What the prepared pictures will take, where they differ by the size of a few of them."""
    if pictures.variation is None or pictures.variation.preparation == "fit":
        return len(rows) * pictures.preprocessing.size_px**2 * 3
    probed = [
        loaded.pixels.size
        for row in rows[:: max(1, len(rows) // _PROBED_PICTURES)][:_PROBED_PICTURES]
        if (loaded := _Prepared(pictures)[row]).pixels is not None
    ]
    return int(len(rows) * np.mean(probed or [0]))


def _make_room(store: RecordStore, more: int, wanted: list[bytes], budget_bytes: float) -> None:
    """Raise `StorageError` unless so many bytes more fit; pictures not wanted go for it."""
    if not make_room(store.folder, more, budget_bytes):
        store.keep_only(wanted)
        if not make_room(store.folder, more, budget_bytes):
            raise _over_budget(more, budget_bytes)
    store.check_space(more)


def _over_budget(needed: int, budget_bytes: float) -> StorageError:
    return StorageError(
        f"Decoded, they would take {in_words(needed)} more, and the cache may hold "
        f"{in_words(budget_bytes)} (cache_gb)."
    )


class _Prepared(Dataset[Loaded]):
    """A picture, read and prepared, with its digest."""

    def __init__(self, pictures: PictureDataset) -> None:
        self._pictures = pictures

    def __getitem__(self, row: int) -> Loaded:
        read = self._pictures.read(row)
        if read.image is None:
            return Loaded(row, 0, None, read.problem)
        digest = picture_digest(read.data, repaired=read.problem is not None)
        pixels = np.asarray(self._pictures.prepare(read.image))
        return Loaded(row, 0, pixels, read.problem, digest)
