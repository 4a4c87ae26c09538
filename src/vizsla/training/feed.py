"""What feeds the loop: pictures for the whole network, or kept trunk outputs for its tail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from vizsla.data.augment import Variation
from vizsla.data.catalogue import Catalogue
from vizsla.data.loader import (
    Batch,
    EpochBatches,
    PictureDataset,
    build_loader,
    inverse_frequency,
)
from vizsla.data.transforms import Preprocessing
from vizsla.models.freezing import FreezePolicy
from vizsla.models.partition import partition
from vizsla.settings import Recipe
from vizsla.training.evaluation import InputMaker
from vizsla.training.frozen_features import FeatureBatches, FrozenFeatures, has_fixed_views


@dataclass
class Feed:
    """Batches of training and validation, and how a batch's `pixels` become inputs.

    With `features` the batches hold trunk outputs and the inputs are for `tail`; else both are
    None and the inputs are for the whole network. `note` says why frozen layers are computed
    every epoch although their outputs recur.
    """

    train_batches: EpochBatches
    train: Iterable[Batch]
    valid: Iterable[Batch]
    inputs: Callable[[torch.Tensor], torch.Tensor]
    features: FrozenFeatures | None = None
    tail: nn.Module | None = None
    note: str | None = None


def build_feed(
    module: nn.Module,
    preprocessing: Preprocessing,
    catalogue: Catalogue,
    recipe: Recipe,
    policy: FreezePolicy,
    accelerator: Accelerator,
) -> Feed:
    """The feed of a training of `module`, which lies on the accelerator's device."""
    train_batches = _train_batches(catalogue, recipe, accelerator)
    # Each process validates its share; the sums are put together.
    valid_rows = catalogue.rows("valid")[accelerator.process_index :: accelerator.num_processes]
    variation = Variation(recipe, preprocessing, recipe.seed)
    inputs = InputMaker(preprocessing, accelerator.device)
    dataset = PictureDataset(catalogue, preprocessing, recipe.corrupt)
    note = None
    if _can_keep_features(recipe, accelerator):
        halves = partition(module, policy.trainable, preprocessing.size_px)
        if halves is None:
            note = f"{type(module).__name__} cannot be cut where training begins"
        else:
            features = FrozenFeatures(halves, dataset, recipe, inputs, accelerator)
            limit = memory_limit_bytes(recipe)
            if features.memory_bytes > limit:
                note = (
                    f"their outputs would take {features.memory_bytes / 1e9:.1f} GB and may take "
                    f"{limit / 1e9:.1f} (feature_memory_gb, and half of this machine's memory)"
                )
            else:
                valid_batches = EpochBatches(valid_rows, recipe.batch_size)
                return Feed(
                    train_batches,
                    FeatureBatches(features, train_batches, variation),
                    FeatureBatches(features, valid_batches),
                    lambda outputs: outputs.to(accelerator.device, non_blocking=True),
                    features,
                    halves.tail,
                )
    varied = PictureDataset(catalogue, preprocessing, recipe.corrupt, variation)
    return Feed(
        train_batches,
        build_loader(varied, train_batches, recipe.workers),
        evaluation_loader(preprocessing, catalogue, recipe, valid_rows),
        inputs,
        note=note,
    )


def memory_limit_bytes(recipe: Recipe) -> float:
    """What kept outputs may take: the recipe's figure, and never over half of all memory. Not of
    the free memory, so that a resumed run decides as the first did."""
    return min(recipe.feature_memory_gb * 1e9, float(psutil.virtual_memory().total) / 2)


def evaluation_loader(
    preprocessing: Preprocessing, catalogue: Catalogue, recipe: Recipe, rows: NDArray[np.int64]
) -> DataLoader[Batch]:
    """The pictures of `rows` as they are, in that order."""
    dataset = PictureDataset(catalogue, preprocessing, recipe.corrupt)
    return build_loader(dataset, EpochBatches(rows, recipe.batch_size), recipe.workers)


def _can_keep_features(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether trunk outputs recur: fixed views, and epochs enough to see them again."""
    return (
        recipe.unfreeze != "all"
        and recipe.epochs > 1
        and recipe.feature_memory_gb > 0
        and accelerator.num_processes == 1
        and has_fixed_views(recipe)
    )


def _train_batches(catalogue: Catalogue, recipe: Recipe, accelerator: Accelerator) -> EpochBatches:
    rows = catalogue.rows("train")
    chances = None
    if recipe.class_balance == "sampling":
        labels = catalogue.labels[rows]
        chances = inverse_frequency(labels, len(catalogue.classes))[labels]
    return EpochBatches(
        rows=rows,
        batch_size=recipe.batch_size,
        shuffle_seed=recipe.seed,
        chances=chances,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
