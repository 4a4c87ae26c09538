"""Where outputs of a frozen trunk are kept, one record for each view of each picture.

On disk they are keyed by everything that they are a function of: the trunk's weights and graph,
the picture's bytes, preprocessing, boundary, precision and view. So a second run finds them,
another learning rate or class makes no difference, and a picture that was changed is one record
to compute. In memory they last as long as the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from vizsla.data.cache import in_words, make_room
from vizsla.data.record_store import ENTRY_BYTES, RecordStore
from vizsla.data.transforms import Preprocessing
from vizsla.errors import StorageError
from vizsla.models.partition import Partition
from vizsla.places import cache_folder

_FORMAT = 1


class FeatureStore(Protocol):
    """Keeps trunk outputs of one shape and kind, numbered by slot.

    One process fills it at a time, between entering and leaving `filling`. A tensor of `rows`
    stays valid while the store grows, and does not grow with it.
    """

    @property
    def damaged(self) -> int:
        """Records that were found damaged, and are to be computed again."""
        ...

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The slot of each key, -1 where there is none."""
        ...

    def filling(
        self, stopped: Callable[[], bool], waiting: Callable[[], None]
    ) -> contextlib.AbstractContextManager[bool]:
        """Be the one that fills it; `waiting` is called if another process does. False if
        `stopped` said so meanwhile."""
        ...

    def add(self, keys: Sequence[bytes], outputs: torch.Tensor) -> None:
        """Keep `outputs`, one row for each key. Raises `StorageError` on a full disk."""
        ...

    def rows(self) -> torch.Tensor:
        """Everything that is kept, by slot: (slots, *shape)."""
        ...


class DiskFeatures:
    """A store in the cache folder."""

    def __init__(self, key: str, about: str, shape: torch.Size, dtype: torch.dtype) -> None:
        self._shape, self._dtype = shape, dtype
        self.row_bytes = shape.numel() * dtype.itemsize
        self._store = RecordStore(cache_folder() / "features" / key, about, self.row_bytes)

    @property
    def damaged(self) -> int:
        return self._store.damaged

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        offsets = self._store.find(keys)
        return np.where(offsets >= 0, offsets // self.row_bytes, -1)

    def filling(
        self, stopped: Callable[[], bool], waiting: Callable[[], None]
    ) -> contextlib.AbstractContextManager[bool]:
        return self._store.writing(stopped, waiting)

    def add(self, keys: Sequence[bytes], outputs: torch.Tensor) -> None:
        self._store.append(keys, outputs.contiguous().view(torch.uint8).flatten(1).numpy())

    def rows(self) -> torch.Tensor:
        mapped = self._store.mapped()
        whole = len(mapped) // self.row_bytes * self.row_bytes
        if whole == 0:
            return torch.empty(0, *self._shape, dtype=self._dtype)
        return torch.from_numpy(mapped[:whole]).view(self._dtype).view(-1, *self._shape)

    def check_budget(self, rows: int, budget_bytes: float) -> None:
        """Raise `StorageError` if so many rows are more than the budget by themselves."""
        if rows * self.row_bytes > budget_bytes:
            raise self._over_budget(rows, budget_bytes)

    def make_room(self, rows: int, wanted: Sequence[bytes], budget_bytes: float) -> None:
        """Raise `StorageError` unless so many more rows fit into the budget and on the disk; rows
        that are not `wanted` go for it. For the one that fills it."""
        needed = rows * (self.row_bytes + ENTRY_BYTES)
        if not make_room(self._store.folder, needed, budget_bytes):
            self._store.keep_only(wanted)
            if not make_room(self._store.folder, needed, budget_bytes):
                raise self._over_budget(rows, budget_bytes)
        self._store.check_space(needed)

    def _over_budget(self, rows: int, budget_bytes: float) -> StorageError:
        return StorageError(
            f"The cache may hold {in_words(budget_bytes)} (cache_gb) and "
            f"{in_words(rows * self.row_bytes)} more do not fit. Raise cache_gb to keep them."
        )


class MemoryFeatures:
    """A store for one run: `capacity` rows in memory."""

    damaged = 0

    def __init__(self, capacity: int, shape: torch.Size, dtype: torch.dtype) -> None:
        self._rows = torch.empty(capacity, *shape, dtype=dtype)
        self._slots: dict[bytes, int] = {}

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        return np.array([self._slots.get(key, -1) for key in keys], np.int64)

    @contextlib.contextmanager
    def filling(self, stopped: Callable[[], bool], waiting: Callable[[], None]) -> Iterator[bool]:
        yield not stopped()

    def add(self, keys: Sequence[bytes], outputs: torch.Tensor) -> None:
        used = len(self._slots)
        if used + len(keys) > len(self._rows):  # pictures were replaced, and are there twice
            more = torch.empty(len(self._rows) + len(keys), *self._rows.shape[1:])
            self._rows = torch.cat([self._rows, more.to(self._rows.dtype)])
        self._rows[used : used + len(keys)] = outputs
        self._slots.update(zip(keys, range(used, used + len(keys)), strict=True))

    def rows(self) -> torch.Tensor:
        return self._rows


def store_key(
    halves: Partition, preprocessing: Preprocessing, precision: str, engine: str = "any"
) -> str:
    """The name of the store for outputs of a trunk: a hash of all that they depend on but the
    pictures. Pillow is part of it, since another version may resize otherwise; the engine, where
    somebody wants one and no other."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(halves.trunk_weights().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    facts = [
        _FORMAT, halves.trunk_structure(), halves.boundary, preprocessing.to_dict(), precision,
        engine,
        PIL.__version__,
    ]  # fmt: skip
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()
