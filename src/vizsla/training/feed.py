"""What feeds the loop: pictures for the whole network, or kept trunk outputs for its tail.

Whatever can be kept is made ready here, before the first step: outputs of the frozen trunk, or
else the decoded pictures. Why something is not kept is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from vizsla.data.augment import Variation
from vizsla.data.catalogue import Catalogue
from vizsla.data.fixed_views import FixedViews, has_fixed_views, with_drawn_views
from vizsla.data.image_cache import keep_pictures
from vizsla.data.loader import (
    Batch,
    EpochBatches,
    PictureDataset,
    build_loader,
    inverse_frequency,
)
from vizsla.data.transforms import Preprocessing
from vizsla.errors import SettingError, StorageError
from vizsla.models.build import Network
from vizsla.models.freezing import FreezePolicy
from vizsla.models.partition import Partition, partition
from vizsla.records import PictureProblem
from vizsla.settings import Recipe
from vizsla.training.evaluation import InputMaker
from vizsla.training.events import Observers
from vizsla.training.frozen_features import FeatureBatches, FrozenFeatures
from vizsla.training.stopping import StopRequest


@dataclass
class Feed:
    """Batches of training and validation, and how a batch's `pixels` become inputs.

    With `features` the batches hold trunk outputs and the inputs are for `halves.tail`; else both
    are None and the inputs are for the whole network. `note` says why frozen layers are computed
    every epoch. `problems` are pictures that did not decode while something was made ready.
    """

    train_batches: EpochBatches
    train: Iterable[Batch]
    valid: Iterable[Batch]
    inputs: Callable[[torch.Tensor], torch.Tensor]
    features: FrozenFeatures | None = None
    halves: Partition | None = None
    note: str | None = None
    problems: tuple[PictureProblem, ...] = ()


class _NotKept(Exception):  # noqa: N818
    """Trunk outputs are not kept; the message says why, as a clause."""


@dataclass(frozen=True)
class FeedMaker:
    """Makes the feed of a training of `module`, which lies on the accelerator's device.

    `observers` are told of what is kept; `stop` ends the making early, with a feed that is not
    to be used. `engine_before` ran the trunk of the run that is taken up again.
    """

    network: Network
    catalogue: Catalogue
    recipe: Recipe
    policy: FreezePolicy
    accelerator: Accelerator
    observers: Observers
    stop: StopRequest
    engine_before: str | None = None

    def make(self) -> Feed:
        try:
            if reason := why_not_kept(self.recipe, self.accelerator.num_processes):
                raise _NotKept(reason)
            return self._features()
        except _NotKept as why:
            if self.recipe.solver == "lbfgs":
                raise SettingError(
                    f"Solver lbfgs trains on kept outputs of the frozen layers, and here {why}. "
                    "Leave solver out to train in epochs."
                ) from None
            note = str(why) if self.recipe.unfreeze != "all" else None
            if self.recipe.views:
                self.observers.on_note("views are not used; pictures vary anew every epoch")
            return replace(self._pictures(), note=note)

    def _features(self) -> Feed:
        """A feed of trunk outputs."""
        recipe, module = self.recipe, self.network.module
        size_px = self.network.preprocessing.size_px
        halves = partition(module, self.policy.trainable, size_px)
        if halves is None:
            raise _NotKept(f"{type(module).__name__} cannot be cut where training begins")
        if not halves.traced:
            self.observers.on_note(
                f"{self.network.architecture} does not trace; it is cut at forward_features"
            )
        features = FrozenFeatures(
            halves,
            PictureDataset(self.catalogue, self.network.preprocessing, recipe.corrupt),
            FixedViews(recipe, self.network.preprocessing, recipe.seed),
            recipe,
            "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            self.network.architecture,
            self.engine_before,
        )
        try:
            passes = features.fill(
                self._stopped, self.observers.on_trunk_progress, self._tell_of_waiting
            )
        except StorageError as error:
            raise _NotKept(f"outputs cannot be kept: {str(error).rstrip('.')}") from error
        self.observers.on_features(passes, features.findings)
        train = self._train_batches()
        device = self.accelerator.device
        return Feed(
            train,
            FeatureBatches(features, train, varied=True),
            FeatureBatches(features, EpochBatches(self._valid_rows(), recipe.batch_size)),
            lambda outputs: outputs.to(device, non_blocking=True),
            features,
            halves,
            problems=tuple(features.problems),
        )

    def _pictures(self) -> Feed:
        recipe, preprocessing = self.recipe, self.network.preprocessing
        batches = self._train_batches()
        valid = PictureDataset(self.catalogue, preprocessing, recipe.corrupt)
        variation = Variation(with_drawn_views(recipe), preprocessing, recipe.seed)
        train = replace(valid, variation=variation)
        problems: list[PictureProblem] = []
        if recipe.cache == "disk" and recipe.epochs > 1:
            train = self._kept(train, self.catalogue.rows("train"), problems)
            valid = self._kept(valid, self._valid_rows(), problems)
        valid_batches = EpochBatches(self._valid_rows(), recipe.batch_size)
        return Feed(
            batches,
            build_loader(train, batches, recipe.workers),
            build_loader(valid, valid_batches, recipe.workers),
            InputMaker(preprocessing, self.accelerator.device),
            problems=tuple(problems),
        )

    def _kept(
        self, pictures: PictureDataset, rows: NDArray[np.int64], problems: list[PictureProblem]
    ) -> PictureDataset:
        """The same, from decoded pictures where they can be kept."""
        try:
            cache, count, found = keep_pictures(
                pictures,
                rows,
                self.recipe.cache_gb * 1e9,
                self.recipe.workers,
                self._stopped,
                self.observers.on_decoding_progress,
                self._tell_of_waiting,
            )
        except StorageError as error:
            self.observers.on_note(f"pictures are decoded every epoch: {error}")
            return pictures
        problems += found
        self.observers.on_pictures_kept(count)
        if cache.store.damaged:
            self.observers.on_note(
                f"{cache.store.damaged:,} decoded pictures were damaged on disk and have been "
                "decoded again"
            )
        return replace(pictures, kept=cache)

    def _tell_of_waiting(self) -> None:
        self.observers.on_note(
            "another process is filling the same part of the cache; waiting until it is done"
        )

    def _stopped(self) -> bool:
        return self.stop.signal_number is not None

    def _valid_rows(self) -> NDArray[np.int64]:
        """Each process validates its share; the sums are put together."""
        rows = self.catalogue.rows("valid")
        return rows[self.accelerator.process_index :: self.accelerator.num_processes]

    def _train_batches(self) -> EpochBatches:
        rows = self.catalogue.rows("train")
        chances = None
        if self.recipe.class_balance == "sampling":
            labels = self.catalogue.labels[rows]
            chances = inverse_frequency(labels, len(self.catalogue.classes))[labels]
        return EpochBatches(
            rows=rows,
            batch_size=self.recipe.batch_size,
            shuffle_seed=self.recipe.seed,
            chances=chances,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )


def why_not_kept(recipe: Recipe, processes: int) -> str | None:
    """Why keeping trunk outputs would not save a pass, as a clause; None where it would."""
    if recipe.unfreeze == "all":
        return "everything trains"
    if recipe.cache == "off":
        return "cache is off"
    if not has_fixed_views(recipe):
        return "pictures vary anew every epoch (views 8, say, draws eight variations once)"
    if processes > 1:
        return "outputs are kept for one process alone, and there are several"
    if recipe.epochs == 1 and recipe.solver == "gradient":
        return "one epoch sees each picture once"
    return None


def evaluation_loader(
    preprocessing: Preprocessing, catalogue: Catalogue, recipe: Recipe, rows: NDArray[np.int64]
) -> DataLoader[Batch]:
    """The pictures of `rows` as they are, in that order."""
    dataset = PictureDataset(catalogue, preprocessing, recipe.corrupt)
    return build_loader(dataset, EpochBatches(rows, recipe.batch_size), recipe.workers)
