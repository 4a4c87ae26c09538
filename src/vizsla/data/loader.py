"""From a catalogue to batches: which pictures, in which order, decoded beside the training step.

PyTorch's DataLoader does the work in processes, since timm's operations draw from global
generators and would race in threads. Batches travel as bytes (a quarter of the floats) and
become floats on the device. The order of an epoch is a pure function of seed and epoch, so a
resumed run starts in the middle of an epoch by skipping to a batch.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from vizsla.data.augment import Variation
from vizsla.data.catalogue import Catalogue
from vizsla.data.cores import available_cores
from vizsla.data.decode import decode, read_bytes
from vizsla.data.transforms import Preprocessing
from vizsla.errors import PictureError
from vizsla.records import PictureProblem


class Batch(NamedTuple):
    """Pictures that decoded: bytes (batch, height, width, 3), labels and catalogue rows (batch,).

    `problems` are the pictures of this batch that did not decode, or only in part; `digests` of
    those that did are given where a cache asks for them.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    problems: list[PictureProblem]
    digests: tuple[bytes, ...] = ()


class Draw(NamedTuple):
    """One picture to load: its row, and where in which epoch it stands."""

    row: int
    epoch: int
    position: int


class Read(NamedTuple):
    """A picture as it was read: None where it did not decode, with what was wrong."""

    image: Image.Image | None
    problem: PictureProblem | None
    data: bytes = b""


class Loaded(NamedTuple):
    """A picture, or several views of one, in bytes; None where it did not decode."""

    row: int
    label: int
    pixels: NDArray[np.uint8] | None
    problem: PictureProblem | None
    digest: bytes = b""


class KeptPictures(Protocol):
    """Pictures that were decoded and prepared before."""

    def picture(self, row: int) -> Image.Image | None:
        """The prepared picture of a catalogue row; None where it has to be read."""
        ...


@dataclass
class PictureDataset(Dataset[Loaded]):
    """Decodes and places one picture; a draw without variation is the evaluation's view."""

    catalogue: Catalogue
    preprocessing: Preprocessing
    corrupt: str = "skip"
    variation: Variation | None = None
    kept: KeptPictures | None = None

    def __getitem__(self, draw: Draw) -> Loaded:
        image, problem = self._prepared(draw.row)
        if image is None:
            return Loaded(draw.row, 0, None, problem)
        if self.variation is not None:
            image = self.variation.vary(image, draw.epoch, draw.position)
        return Loaded(draw.row, self.label(draw.row), np.asarray(image), problem)

    def prepare(self, image: Image.Image) -> Image.Image:
        """What is done to a decoded picture before chance comes in."""
        return (
            self.preprocessing.fit(image)
            if self.variation is None
            else self.variation.prepare(image)
        )

    def label(self, row: int) -> int:
        return int(self.catalogue.labels[row])

    def read(self, row: int) -> Read:
        """A picture decoded, with what the policy for corrupt ones did about it."""
        path, name = self.catalogue.path(row), self.catalogue.paths[row]
        data, at_least_px = b"", self.preprocessing.decode_px
        try:
            data = read_bytes(path)
            return Read(decode(data, at_least_px=at_least_px, name=str(path)), None, data)
        except PictureError as error:
            why = str(error)
        if self.corrupt == "repair" and data:
            with contextlib.suppress(PictureError):
                image = decode(data, at_least_px=at_least_px, repair=True, name=str(path))
                return Read(image, PictureProblem(name, why, "repaired"), data)
        action = "fatal" if self.corrupt == "fail" else "skipped"
        return Read(None, PictureProblem(name, why, action))

    def _prepared(self, row: int) -> tuple[Image.Image | None, PictureProblem | None]:
        image = self.kept.picture(row) if self.kept is not None else None
        if image is not None:
            return image, None
        read = self.read(row)
        return (None if read.image is None else self.prepare(read.image)), read.problem


def collate(loaded: list[Loaded]) -> Batch:
    """One batch of those that decoded; it may be empty."""
    problems = [item.problem for item in loaded if item.problem is not None]
    good = [item for item in loaded if item.pixels is not None]
    pixels = np.stack([item.pixels for item in good if item.pixels is not None]) if good else None
    return Batch(
        torch.from_numpy(pixels)
        if pixels is not None
        else torch.empty(0, 0, 0, 3, dtype=torch.uint8),
        torch.tensor([item.label for item in good], dtype=torch.int64),
        torch.tensor([item.row for item in good], dtype=torch.int64),
        problems,
        tuple(item.digest for item in good),
    )


@dataclass
class EpochBatches:
    """The batches of draws of one epoch, from `first_batch` on, for one of `world` processes.

    With `shuffle_seed` None the rows keep their order. `chances` (one per row, any scale) draws
    rows with replacement, as often as there are rows. A last batch that would leave a process
    fewer than two pictures is dropped in training: batch norm has no variance of one.
    """

    rows: NDArray[np.int64]
    batch_size: int
    shuffle_seed: int | None = None
    chances: NDArray[np.float64] | None = None
    rank: int = 0
    world: int = 1
    epoch: int = 0
    first_batch: int = 0

    def __len__(self) -> int:
        return max(0, self.batch_count - self.first_batch)

    @property
    def batch_count(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(len(self.rows), self.batch_size * self.world)
        if self.shuffle_seed is None:
            return whole + int(rest > 0)
        return whole + int(rest >= 2 * self.world or (whole == 0 and rest >= self.world))

    def order(self) -> NDArray[np.int64]:
        """The rows of this epoch in their order."""
        if self.shuffle_seed is None:
            return self.rows
        generator = np.random.default_rng([self.shuffle_seed, self.epoch])
        if self.chances is None:
            return generator.permutation(self.rows)
        shares = self.chances / self.chances.sum()
        return generator.choice(self.rows, size=len(self.rows), p=shares)

    def positions(self) -> Iterator[range]:
        """Where in the epoch's order each remaining batch lies."""
        span = self.batch_size * self.world
        for batch in range(self.first_batch, self.batch_count):
            whole = range(batch * span, min((batch + 1) * span, len(self.rows)))
            yield whole[self.rank :: self.world]

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.order()
        for positions in self.positions():
            yield [Draw(int(order[at]), self.epoch, at) for at in positions]


def build_loader(
    dataset: Dataset[Loaded], batches: EpochBatches, workers: int | None
) -> DataLoader[Batch]:
    """A loader that stays up over the epochs; set `batches.epoch` before iterating it."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        **loader_options(workers, batches.batch_count),
    )


def loader_options(workers: int | None, items: int) -> dict[str, Any]:
    """Keywords of a DataLoader for so many processes, of so many items at most."""
    count = min(default_workers() if workers is None else workers, max(items, 1))
    return {
        "num_workers": count,
        "persistent_workers": count > 0,
        "prefetch_factor": 3 if count else None,
        "worker_init_fn": _leave_signals_to_the_parent if count else None,
        # Each pass draws a seed for its workers; from a generator of its own, not the caller's.
        "generator": torch.Generator(),
    }


def default_workers() -> int:
    """Loader processes for this machine: one a core, at most eight."""
    return min(available_cores(), 8)


def _leave_signals_to_the_parent(_worker: int) -> None:
    """Ctrl-C and a job's SIGTERM reach the whole process group; only the parent decides when to
    stop. So a worker leaves the group, and still dies when its parent ends it or is gone."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def inverse_frequency(labels: NDArray[np.int32], class_count: int) -> NDArray[np.float64]:
    """A weight for each class, so that all classes weigh alike and the mean picture weighs 1."""
    counts = np.bincount(labels, minlength=class_count)
    weights = len(labels) / (np.maximum(counts, 1) * (counts > 0).sum())
    return np.where(counts > 0, weights, 0.0)
