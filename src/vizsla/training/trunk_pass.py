"""Pushing pictures through the frozen trunk: which views are wanted, and computing them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vizsla.data.fixed_views import (
    AS_IT_IS,
    MIRRORED,
    FixedViews,
    ViewDataset,
    digests_of,
    record_key,
)
from vizsla.data.loader import Batch, EpochBatches, PictureDataset, build_loader
from vizsla.models.engine_choice import EngineChoice, EngineChooser
from vizsla.models.trunk_engines import BATCH, full_batch
from vizsla.records import SPLITS, PictureProblem


class WantedViews:
    """The views that a run needs: of training pictures those that an epoch may take, of the
    others the picture as it is. Entry i is view `columns[i]` (of `views.names`) of `rows[i]`."""

    def __init__(self, pictures: PictureDataset, views: FixedViews) -> None:
        self.pictures, self.views = pictures, views
        catalogue = pictures.catalogue
        train, taken = catalogue.rows("train"), np.array(views.taken)
        judged = np.concatenate([catalogue.rows(split) for split in SPLITS if split != "train"])
        as_it_is = np.full(len(judged), views.names.index(AS_IT_IS))
        self.rows = np.concatenate([np.repeat(train, len(taken)), judged])
        self.columns = np.concatenate([np.tile(taken, len(train)), as_it_is])
        self._digests: list[bytes | None] = []

    def read_digests(self) -> None:
        """Read every picture's bytes, to know what is kept of it. Comes before asking for keys."""
        catalogue = self.pictures.catalogue
        self._digests = digests_of(map(catalogue.path, range(len(catalogue))))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> list[bytes]:
        """What each view is kept under; empty, which is never found, for an unreadable file."""
        return [
            self.key(row, column)
            for row, column in zip(self.rows.tolist(), self.columns.tolist(), strict=True)
        ]

    def key(self, row: int, column: int) -> bytes:
        digest = self._digests[row]
        return b"" if digest is None else record_key(digest, self.views.names[column])

    def is_known_as(self, row: int, digest: bytes) -> bool:
        return self._digests[row] == digest

    def rename(self, row: int, digest: bytes) -> bool:
        """Give a row the digest of what was decoded; whether it had another readable file."""
        before, self._digests[row] = self._digests[row], digest
        return before is not None

    def columns_by_row(self, chosen: NDArray[np.bool_]) -> dict[int, list[tuple[int, bool]]]:
        """The wanted columns of each row of which one is chosen, and which those are."""
        wanted: dict[int, list[tuple[int, bool]]] = {row: [] for row in self.rows[chosen].tolist()}
        for row, column, is_chosen in zip(
            self.rows.tolist(), self.columns.tolist(), chosen.tolist(), strict=True
        ):
            if row in wanted:
                wanted[row].append((column, is_chosen))
        return wanted


class TrunkOutputs(NamedTuple):
    """Outputs of at most BATCH views, (views, …), under their keys."""

    keys: list[bytes]
    outputs: torch.Tensor


class TrunkPass:
    """Computes views that are not kept yet. Counts what it does while it goes."""

    def __init__(
        self, wanted: WantedViews, chooser: EngineChooser, engine: str, workers: int | None
    ) -> None:
        self.passes = 0
        self.wait_seconds = 0.0
        self.choosing_seconds = 0.0
        self.engine, self.engine_why = "none", "nothing to compute"
        self.problems: list[PictureProblem] = []
        self.replaced: list[str] = []
        self._wanted = wanted
        self._chooser, self._engine = chooser, engine
        self._choice: EngineChoice | None = None
        self._workers = workers

    def compute(
        self,
        missing: NDArray[np.bool_],
        is_kept: Callable[[bytes], bool],
        stopped: Callable[[], bool],
    ) -> Iterator[TrunkOutputs]:
        """The wanted views that are `missing`, each once, until `stopped` says so. Of a picture
        that turns out to have another key, those that `is_kept` are left out."""
        of = int(missing.sum())
        # While the engine computes one batch, the next is put together.
        with ThreadPoolExecutor(1) as engine, self._engine_released():
            running: Future[TrunkOutputs] | None = None
            for views in _grouped(self._views(missing, is_kept, stopped)):
                started = engine.submit(self._run, views, of)
                if running is not None:
                    yield self._counted(running.result())
                running = started
            if running is not None and not stopped():
                yield self._counted(running.result())

    @contextlib.contextmanager
    def _engine_released(self) -> Iterator[None]:
        """Let go of the engine's memory when the pass is over."""
        try:
            yield
        finally:
            self._choice = None

    def _counted(self, done: TrunkOutputs) -> TrunkOutputs:
        self.passes += len(done.keys)
        return done

    def _run(self, views: list[tuple[bytes, torch.Tensor]], of: int) -> TrunkOutputs:
        pixels = torch.stack([picture for _, picture in views])
        if self._choice is None:
            started = time.perf_counter()
            self._choice = self._chooser.choose(self._engine, pixels, of)
            self.engine, self.engine_why = self._choice.engine.name, self._choice.why
            self.choosing_seconds = time.perf_counter() - started
        outputs = self._choice.engine(full_batch(pixels))[: len(pixels)]
        return TrunkOutputs([key for key, _ in views], outputs)

    def _views(
        self,
        missing: NDArray[np.bool_],
        is_kept: Callable[[bytes], bool],
        stopped: Callable[[], bool],
    ) -> Iterator[tuple[bytes, torch.Tensor]]:
        columns, done = self._wanted.columns_by_row(missing), set[bytes]()
        for batch in self._loaded(list(columns)):
            self.problems += batch.problems
            if stopped() or any(problem.action == "fatal" for problem in batch.problems):
                return
            for at, (row, digest) in enumerate(zip(batch.rows.tolist(), batch.digests)):
                renamed = self._note_digest(row, digest)
                for column, is_missing in columns[row]:
                    key = self._wanted.key(row, column)
                    lacking = not is_kept(key) if renamed else is_missing
                    if lacking and key not in done:  # two pictures of the same bytes are one
                        done.add(key)
                        yield key, self._view(batch.pixels[at], column)

    def _note_digest(self, row: int, digest: bytes) -> bool:
        """Whether something else was decoded than the file was before: another, or a part."""
        if self._wanted.is_known_as(row, digest):
            return False
        name = self._wanted.pictures.catalogue.paths[row]
        repaired = name in {problem.path for problem in self.problems}
        if self._wanted.rename(row, digest) and not repaired:
            self.replaced.append(name)
        return True

    def _loaded(self, rows: list[int]) -> Iterator[Batch]:
        """The pictures of `rows`, those of training in their drawn views too."""
        pictures = self._wanted.pictures
        train = set(pictures.catalogue.rows("train").tolist())
        for views, wanted in (
            (self._wanted.views, [row for row in rows if row in train]),
            (None, [row for row in rows if row not in train]),
        ):
            if wanted:
                batches = EpochBatches(np.array(wanted, np.int64), BATCH)
                loader = build_loader(ViewDataset(pictures, views), batches, self._workers)
                yield from self._waited_for(iter(loader))

    def _waited_for(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, noting how long they were waited for."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _view(self, pixels: torch.Tensor, column: int) -> torch.Tensor:
        """One view from (1 + drawn, height, width, 3)."""
        name = self._wanted.views.names[column]
        if name == AS_IT_IS:
            return pixels[0]
        return pixels[0].flip(1) if name == MIRRORED else pixels[column - 1]


def _grouped(
    views: Iterator[tuple[bytes, torch.Tensor]],
) -> Iterator[list[tuple[bytes, torch.Tensor]]]:
    """Lists of BATCH, the last of what is left."""
    while group := list(islice(views, BATCH)):
        yield group
