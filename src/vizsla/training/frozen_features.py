"""Outputs of the frozen trunk, computed once for each view of a picture and kept in memory.

Where a recipe varies pictures by mirroring alone, a training picture has two views, and its
trunk outputs never change: they are computed before the first step, and every epoch trains the
tail on them. The views of a batch are the ones that an uncached run would have drawn, and trunk
passes always run over the same pictures together, so that a resumed run finds the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from vizsla.data.augment import Variation
from vizsla.data.catalogue import Catalogue
from vizsla.data.loader import Batch, Draw, EpochBatches, PictureDataset, build_loader
from vizsla.models.partition import Partition
from vizsla.records import PictureProblem
from vizsla.settings import AugmentSettings, Recipe
from vizsla.training.evaluation import InputMaker


@dataclass(frozen=True)
class TrunkPasses:
    """What was computed: pictures and passes through the trunk up to `boundary`."""

    boundary: str
    pictures: int
    passes: int
    seconds: float
    memory_bytes: int


def has_fixed_views(settings: AugmentSettings) -> bool:
    """Whether a training picture is only ever seen as it is or mirrored."""
    return (
        settings.train_crop == "same"
        and settings.augment == "none"
        and not settings.vflip
        and not settings.random_erasing
        and not settings.mixup
        and not settings.cutmix
    )


class FrozenFeatures:
    """The trunk outputs of a run's training and validation pictures."""

    def __init__(
        self,
        halves: Partition,
        dataset: PictureDataset,
        recipe: Recipe,
        inputs: InputMaker,
        accelerator: Accelerator,
    ) -> None:
        self.boundary = halves.boundary
        self._trunk = halves.trunk
        self._dataset = dataset
        self._recipe = recipe
        self._inputs = inputs
        self._accelerator = accelerator
        self._labels = torch.from_numpy(dataset.catalogue.labels.astype(np.int64))
        size_px = dataset.preprocessing.size_px
        example = self._compute(torch.zeros(1, size_px, size_px, 3, dtype=torch.uint8))[0]
        self._shape, self._dtype = example.shape[1:], example.dtype
        self._views = _views(recipe, dataset.catalogue)
        self.memory_bytes = self._views * example.numel() * example.element_size()
        self._store = torch.empty(0)  # filled by `fill`; whether it fits is asked before
        # Where the outputs of row r lie: as it is [r, 0], mirrored [r, 1]; -1 if there are none.
        self._slots = np.full((len(dataset.catalogue), 2), -1, np.int64)

    def fill(
        self, stopped: Callable[[], bool], tell: Callable[[int, int], None]
    ) -> tuple[TrunkPasses, list[PictureProblem]]:
        """Compute everything, or until `stopped` says so, calling `tell` with the passes done and
        to do; what was computed, and the pictures that did not decode."""
        started, used = time.perf_counter(), 0
        self._store = torch.empty(self._views, *self._shape, dtype=self._dtype)
        problems: list[PictureProblem] = []
        catalogue = self._dataset.catalogue
        for split in ("train", "valid"):
            mirrored = split == "train" and self._recipe.hflip > 0
            batches = EpochBatches(catalogue.rows(split), self._recipe.batch_size)
            for batch in build_loader(self._dataset, batches, self._recipe.workers):
                problems += batch.problems
                if stopped():
                    break
                if len(batch.rows):
                    for view, outputs in enumerate(self._compute(batch.pixels, mirrored)):
                        slots = np.arange(used, used + len(outputs))
                        self._store[used : used + len(outputs)] = outputs
                        self._slots[batch.rows.numpy(), view] = slots
                        used += len(outputs)
                    tell(used, len(self._store))
        done = int((self._slots >= 0).any(axis=1).sum())
        seconds = time.perf_counter() - started
        return TrunkPasses(self.boundary, done, used, seconds, self.memory_bytes), problems

    def batch(self, draws: list[Draw], variation: Variation | None) -> Batch:
        """The trunk outputs of `draws`, in the view that `variation` draws for each."""
        rows = np.array([draw.row for draw in draws], np.int64)
        views = np.array(
            [
                variation is not None and variation.mirrors(draw.epoch, draw.position)
                for draw in draws
            ],
            np.int64,
        )
        slots = self._slots[rows, views]
        rows, slots = rows[slots >= 0], slots[slots >= 0]
        outputs = self._store[torch.from_numpy(slots)]
        if outputs.ndim == 4:
            outputs = outputs.permute(0, 3, 1, 2)
        kept = torch.from_numpy(rows)
        return Batch(outputs, self._labels[kept], kept, [])

    @torch.inference_mode()
    def _compute(self, pixels: torch.Tensor, mirrored: bool = False) -> list[torch.Tensor]:
        """Trunk outputs of the pictures as they are, and mirrored; pictures' axes last but one."""
        inputs = self._inputs(pixels)
        views = [inputs, inputs.flip(3)] if mirrored else [inputs]
        with self._accelerator.autocast():
            outputs = [self._trunk(view) for view in views]
        # Height and width before channels, as the layers that follow want them in memory.
        return [
            (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).cpu() for output in outputs
        ]


@dataclass
class FeatureBatches:
    """An epoch's batches from the stored outputs, in place of a loader of pictures."""

    features: FrozenFeatures
    batches: EpochBatches
    variation: Variation | None = None

    def __iter__(self) -> Iterator[Batch]:
        for draws in self.batches:
            yield self.features.batch(draws, self.variation)


def _views(recipe: Recipe, catalogue: Catalogue) -> int:
    per_picture = 2 if recipe.hflip > 0 else 1
    return per_picture * len(catalogue.rows("train")) + len(catalogue.rows("valid"))
