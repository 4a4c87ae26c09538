"""Outputs of the frozen trunk, computed once for each view of a picture and kept.

Before the first step every view that is not in the cache yet goes through the trunk, on the
fastest engine at hand; then epochs train the tail on what is kept, in the views that an uncached
run would have drawn. The pictures of evaluation are kept as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from vizsla.data.cache import in_words
from vizsla.data.fixed_views import FixedViews
from vizsla.data.loader import Batch, EpochBatches, PictureDataset
from vizsla.errors import StorageError
from vizsla.findings import Finding
from vizsla.models.engine_choice import EngineChooser
from vizsla.models.feature_cache import DiskFeatures, FeatureStore, MemoryFeatures, store_key
from vizsla.models.partition import Partition
from vizsla.models.trunk_engines import PixelTrunk, TorchTrunk
from vizsla.records import PictureProblem
from vizsla.settings import Recipe
from vizsla.training.trunk_pass import TrunkPass, WantedViews

# Rows longer than this are fetched while the step before them computes.
_PREFETCHED_BYTES = 1 << 16

Stopped = Callable[[], bool]
Tell = Callable[[int, int, int], None]


class FeaturesUnavailable(StorageError):
    """Outputs cannot be kept, neither on disk nor in memory; the message says why."""


@dataclass(frozen=True)
class TrunkPasses:
    """What became of a run's trunk outputs: views computed now (`passes`) and found (`cached`),
    `seconds` for both, of which the engine stood still for pictures in `wait_seconds` and was
    chosen in `choosing_seconds`, `place` (disk or memory) and bytes of the outputs."""

    boundary: str
    pictures: int
    views: int
    passes: int
    cached: int
    seconds: float
    wait_seconds: float
    choosing_seconds: float
    engine: str
    engine_why: str
    place: str
    bytes: int


class FrozenFeatures:
    """The trunk outputs of a run's pictures. `fill` comes first; `findings` tell what went wrong
    on the way, and `problems` of pictures that did not decode."""

    def __init__(
        self,
        halves: Partition,
        pictures: PictureDataset,
        views: FixedViews,
        recipe: Recipe,
        precision: str,
        architecture: str,
        engine_before: str | None = None,
    ) -> None:
        self.boundary, self.views, self.precision = halves.boundary, views, precision
        self.findings: list[Finding] = []
        self.problems: list[PictureProblem] = []
        self._recipe = recipe
        self._catalogue = pictures.catalogue
        self._labels = torch.from_numpy(self._catalogue.labels.astype(np.int64))
        bf16, size_px = precision == "bf16", pictures.preprocessing.size_px
        module = PixelTrunk(halves.trunk.eval(), pictures.preprocessing)
        blank = torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8)
        self._shape = TorchTrunk(module, bf16)(blank).shape[1:]
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        # Where the engine may not be any that is fast, neither may what others made be used.
        only = "onnxruntime" if recipe.deterministic else recipe.trunk_engine
        self._key = store_key(
            halves, pictures.preprocessing, precision, "any" if only == "auto" else only
        )
        self._about = f"{architecture} up to {halves.boundary}, {size_px} px, {precision}"
        self._wanted = WantedViews(pictures, views)
        chooser = EngineChooser(
            module, halves.trunk_structure(), bf16, recipe.deterministic, engine_before
        )
        self._pass = TrunkPass(self._wanted, chooser, recipe.trunk_engine, recipe.workers)
        self._found = 0  # views that were kept before
        # Where the outputs of row r in view v lie; -1 if there are none.
        self._slots = np.full((len(self._catalogue), len(views.names)), -1, np.int64)
        self._outputs = torch.empty(0, *self._shape, dtype=self._dtype)

    @property
    def row_bytes(self) -> int:
        return self._shape.numel() * self._dtype.itemsize

    def fill(self, stopped: Stopped, tell: Tell, waiting: Callable[[], None]) -> TrunkPasses:
        """Find or compute everything, or until `stopped` says so, calling `tell` with the passes
        done, to do, and found, and `waiting` if another process is at it.

        Raises `FeaturesUnavailable` if neither disk nor memory can hold the outputs.
        """
        started = time.perf_counter()
        disk = DiskFeatures(self._key, self._about, self._shape, self._dtype)
        store: FeatureStore = disk
        if self._recipe.cache == "memory":
            store = self._memory("cache is memory.")
            self._wanted.read_digests()
            self._complete(store, stopped, tell, waiting)
        else:
            try:
                disk.check_budget(len(self._wanted), self._recipe.cache_gb * 1e9)
                self._wanted.read_digests()
                self._complete(store, stopped, tell, waiting)
            except StorageError as error:
                store = self._moved_to_memory(disk, error)
                self._complete(store, stopped, tell, waiting)
        self._outputs = store.rows()
        self.problems = self._pass.problems
        self._judge(store.damaged)
        found = int((self._slots[self._wanted.rows, self._wanted.columns] >= 0).sum())
        return TrunkPasses(
            boundary=self.boundary,
            pictures=int((self._slots >= 0).any(axis=1).sum()),
            views=len(self.views.taken),
            passes=self._pass.passes,
            cached=self._found,
            seconds=time.perf_counter() - started,
            wait_seconds=self._pass.wait_seconds,
            choosing_seconds=self._pass.choosing_seconds,
            engine=self._pass.engine,
            engine_why=self._pass.engine_why,
            place="disk" if store is disk else "memory",
            bytes=found * self.row_bytes,
        )

    def batch(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Batch:
        """The outputs of `rows` in the views `columns`; rows without any are left out."""
        slots = self._slots[rows, columns]
        rows, slots = rows[slots >= 0], slots[slots >= 0]
        outputs = self._outputs.index_select(0, torch.from_numpy(slots))
        if outputs.ndim == 4:
            outputs = outputs.permute(0, 3, 1, 2)
        kept = torch.from_numpy(rows)
        return Batch(outputs, self._labels[kept], kept, [])

    def whole(self, split: str) -> Batch:
        """All outputs of a split at once: of training in every view that is taken."""
        mine = np.isin(self._wanted.rows, self._catalogue.rows(split))
        return self.batch(self._wanted.rows[mine], self._wanted.columns[mine])

    def _complete(
        self, store: FeatureStore, stopped: Stopped, tell: Tell, waiting: Callable[[], None]
    ) -> None:
        """Compute what the store lacks, as its one writer."""
        missing = self._look_up(store)
        self._found = int((~missing).sum())
        if not missing.any():
            return
        with store.filling(stopped, waiting) as mine:
            if not mine:
                return
            missing = self._look_up(store)  # another process may have been at it
            to_do, found = int(missing.sum()), int((~missing).sum())
            self._found = found
            if isinstance(store, DiskFeatures) and to_do:
                store.make_room(to_do, self._wanted.keys(), self._recipe.cache_gb * 1e9)
            before = self._pass.passes
            tell(0, to_do, found)

            def is_kept(key: bytes) -> bool:
                return bool(store.find([key])[0] >= 0)

            for keys, outputs in self._pass.compute(missing, is_kept, stopped):
                store.add(keys, outputs.to(self._dtype))
                tell(self._pass.passes - before, to_do, found)
        self._look_up(store)

    def _look_up(self, store: FeatureStore) -> NDArray[np.bool_]:
        """Write the table of slots from the store; which of the wanted views are missing."""
        slots = store.find(self._wanted.keys())
        self._slots[self._wanted.rows, self._wanted.columns] = slots
        return slots < 0

    def _memory(self, why: str) -> MemoryFeatures:
        """A store in memory, or `FeaturesUnavailable` that begins with `why`."""
        needed, limit = len(self._wanted) * self.row_bytes, psutil.virtual_memory().total / 2
        if needed > limit:
            raise FeaturesUnavailable(
                f"{why} In memory their {in_words(needed)} would take more than half of this "
                "machine's."
            )
        return MemoryFeatures(len(self._wanted), self._shape, self._dtype)

    def _moved_to_memory(self, disk: DiskFeatures, error: StorageError) -> MemoryFeatures:
        """A store in memory with whatever the disk holds; a finding says why."""
        store = self._memory(str(error))
        self._wanted.read_digests()
        keys = self._wanted.keys()
        held = {key: slot for key, slot in zip(keys, disk.find(keys).tolist()) if slot >= 0}
        store.add(list(held), disk.rows()[list(held.values())])
        self.findings.append(
            _warning(
                "feature_cache",
                f"Outputs of the frozen layers are kept in memory, for this run alone: {error}",
                "The next run computes them again.",
            )
        )
        return store

    def _judge(self, damaged: int) -> None:
        if damaged:
            self.findings.append(
                _warning(
                    "feature_cache",
                    f"{damaged:,} kept outputs of frozen layers were damaged and have been "
                    "computed again.",
                    "If it happens again, look after the disk that holds the cache.",
                    damaged,
                )
            )
        if self._pass.replaced:
            self.findings.append(
                _warning(
                    "pictures_replaced",
                    f"{len(self._pass.replaced):,} pictures were replaced while this run read "
                    f"them, {self._pass.replaced[0]} among them; it goes on with the new ones.",
                    "Train anew if this run was to see the old ones.",
                    len(self._pass.replaced),
                )
            )


@dataclass
class FeatureBatches:
    """An epoch's batches from the kept outputs, in place of a loader of pictures: as it is, or
    `varied` as in training."""

    features: FrozenFeatures
    batches: EpochBatches
    varied: bool = False

    def __iter__(self) -> Iterator[Batch]:
        order, features = self.batches.order(), self.features
        columns = np.zeros(len(order), np.int64)
        if self.varied:
            columns = features.views.choose(order, self.batches.epoch)

        def fetch(at: range) -> Batch:
            chosen = slice(at.start, at.stop, at.step)
            return features.batch(order[chosen], columns[chosen])

        if features.row_bytes < _PREFETCHED_BYTES:
            return map(fetch, self.batches.positions())
        return _prefetched(fetch, self.batches.positions())


def _prefetched(fetch: Callable[[range], Batch], spans: Iterator[range]) -> Iterator[Batch]:
    """Batches in order, each fetched while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(fetch, span) for span in islice(spans, 2)]
        while pending:
            batch = pending.pop(0).result()
            pending += [pool.submit(fetch, span) for span in islice(spans, 1)]
            yield batch


def _warning(rule: str, meaning: str, advice: str, measured: float | None = None) -> Finding:
    threshold = None if measured is None else 0.0
    return Finding(rule, "warning", "cache", meaning, advice, measured, threshold)
