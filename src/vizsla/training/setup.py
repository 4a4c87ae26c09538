"""Everything that a training needs, put together once before the first step.

Devices, precision and distribution are Accelerate's; the network, optimiser and loaders come
from the parts that make them. The loop then reads as prose.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.data.catalogue import Catalogue
from vizsla.data.loader import Batch, EpochBatches, inverse_frequency
from vizsla.errors import DataError, Interrupted, ModelError
from vizsla.models.build import Network
from vizsla.models.freezing import FreezePolicy, plan_freezing
from vizsla.models.partition import Partition, partition
from vizsla.phases import phase
from vizsla.records import PictureProblem
from vizsla.settings import Recipe
from vizsla.training.checkpoint import CheckpointStore
from vizsla.training.evaluation import SplitEvaluation, evaluate
from vizsla.training.events import Observers, TrainingFacts, TrainingParts
from vizsla.training.feed import Feed, FeedMaker, why_not_kept
from vizsla.training.frozen_features import FeatureBatches, FrozenFeatures
from vizsla.training.mixing import BatchMixer, build_loss
from vizsla.training.optim import build_optimizer, peak_rate
from vizsla.training.stopping import stop_requests

# isort: split
from timm.utils import ModelEmaV3


@dataclass
class Setup:
    """The parts of one training.

    `network` is the bare module and `average` its moving average, where one is kept. `trained`
    and `judged` compute them in training and validation: whole or, with `features`, as tails
    that begin where the kept outputs of the frozen trunk end (`halves`).
    """

    recipe: Recipe
    catalogue: Catalogue
    accelerator: Accelerator
    network: nn.Module
    trained: nn.Module
    judged: nn.Module
    features: FrozenFeatures | None
    halves: Partition | None
    average: ModelEmaV3 | None
    policy: FreezePolicy
    optimizer: torch.optim.Optimizer
    peak_rate: float
    loss: nn.Module
    mixer: BatchMixer
    inputs: Callable[[torch.Tensor], torch.Tensor]
    train_batches: EpochBatches
    train_loader: Iterable[Batch]
    valid_loader: Iterable[Batch]
    checkpoints: CheckpointStore
    observers: Observers
    note: str | None = None
    _told: set[str] = field(default_factory=set)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.train_batches.batch_count // self.recipe.accumulate)

    def gradient_sync(self, sync: bool) -> AbstractContextManager[Any]:
        """Whether processes exchange gradients in this backward pass."""
        return contextlib.nullcontext() if sync else self.accelerator.no_sync(self.trained)

    def tell_problems(self, problems: Iterable[PictureProblem]) -> None:
        """Tell observers of pictures not told of before. Raises `DataError` for a fatal one."""
        new = [problem for problem in problems if problem.path not in self._told]
        if new:
            self._told.update(problem.path for problem in new)
            self.observers.on_problems(new)
        refuse_fatal(new)

    def stop_loading(self) -> None:
        """Let go of the loaders, and with them of their processes."""
        self.train_loader = self.valid_loader = ()

    def judge_kept(self, split: str) -> SplitEvaluation | None:
        """The exact evaluation of the present weights on the kept outputs of a split; None where
        there are none in float32."""
        if self.features is None or self.halves is None or self.features.precision != "fp32":
            return None
        rows = self.catalogue.rows(split)
        result = evaluate(
            self.halves.tail,
            FeatureBatches(self.features, EpochBatches(rows, self.recipe.batch_size)),
            self.inputs,
            len(self.catalogue.classes),
            self.accelerator,
            exact=True,
        )
        names = {self.catalogue.paths[row] for row in rows.tolist()}
        result.problems = [problem for problem in self.features.problems if problem.path in names]
        return result

    def facts(self, first_epoch: int) -> TrainingFacts:
        return TrainingFacts(
            epochs=self.recipe.epochs,
            steps_per_epoch=self.steps_per_epoch,
            batch_size=self.recipe.batch_size,
            train_pictures=len(self.train_batches.rows),
            trained_numbers=self.policy.trained_numbers,
            all_numbers=self.policy.all_numbers,
            device=str(self.accelerator.device),
            precision="bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            learning_rate=self.peak_rate,
            first_epoch=first_epoch,
            solver=self.recipe.solver,
            note=self.note,
        )

    def parts(self, step: int) -> TrainingParts:
        optimizer = self.optimizer if self.recipe.solver == "gradient" else None
        return TrainingParts(self.network, self.trained, self.loss, optimizer, step)


def prepare(
    network: Network,
    catalogue: Catalogue,
    recipe: Recipe,
    checkpoints: CheckpointStore,
    observers: Observers,
    accelerator: Accelerator,
    engine_before: str | None = None,
) -> Setup:
    """The parts of a training of `network` on `catalogue`. For a run that is taken up again,
    `engine_before` is what ran its trunk."""
    device, class_count = accelerator.device, len(catalogue.classes)
    module = network.module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    policy = plan_freezing(module, recipe.unfreeze)
    policy.apply(module)
    average = ModelEmaV3(module, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
    rate = peak_rate(recipe)
    optimizer = build_optimizer(module, recipe, rate)
    with stop_requests() as stop, phase("cache"):
        feed = FeedMaker(
            network, catalogue, recipe, policy, accelerator, observers, stop, engine_before
        ).make()
        if stop.signal_number is not None:
            raise Interrupted(
                stop.signal_number, "Stopped before the first step; what was computed is kept."
            )
    computing = feed.halves.tail if feed.halves is not None else module
    trained, optimizer = accelerator.prepare(
        torch.compile(computing) if recipe.compile else computing, optimizer
    )
    setup = Setup(
        recipe=recipe,
        catalogue=catalogue,
        accelerator=accelerator,
        network=module,
        trained=trained,
        judged=_judged(average, feed, policy, network.preprocessing.size_px) or computing,
        features=feed.features,
        halves=feed.halves,
        average=average,
        policy=policy,
        optimizer=optimizer,
        peak_rate=rate,
        loss=build_loss(recipe.label_smoothing, _class_weights(catalogue, recipe, device)),
        mixer=BatchMixer(recipe, class_count, device),
        inputs=feed.inputs,
        train_batches=feed.train_batches,
        train_loader=feed.train,
        valid_loader=feed.valid,
        checkpoints=checkpoints,
        observers=observers,
        note=feed.note,
    )
    setup.tell_problems(feed.problems)
    return setup


def refuse_fatal(problems: Iterable[PictureProblem]) -> None:
    """Raise `DataError` for a picture that did not decode where the policy is to fail."""
    for problem in problems:
        if problem.action == "fatal":
            raise DataError(
                f"{problem.problem} Remove or replace it and go on with --resume, or train anew "
                "with corrupt set to skip or repair."
            )


def _judged(
    average: ModelEmaV3 | None, feed: Feed, policy: FreezePolicy, size_px: int
) -> nn.Module | None:
    """What computes the moving average: the whole of it, or its tail where features are kept."""
    if average is None:
        return None
    module: nn.Module = average.module
    if feed.features is None:
        return module
    halves = partition(module, policy.trainable, size_px, feed.features.boundary)
    if halves is None:
        raise ModelError(
            "The moving average cannot be cut where the network was; leave out ema_decay, or set "
            "cache to off."
        )
    return halves.tail


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate for this recipe's precision, on whatever device and processes there are."""
    # Its state is one a process and refuses another precision; a new training starts it anew.
    AcceleratorState._reset_state()
    if recipe.deterministic:  # which CUDA's matrix products refuse without a fixed workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.deterministic)
    accelerator = Accelerator(mixed_precision="no")  # the recipe decides, not the environment
    bf16 = recipe.precision == "bf16" or (
        recipe.precision == "auto"
        and computes_bf16(accelerator.device)
        and not _trains_a_kept_head(recipe, accelerator)
    )
    if bf16:
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision="bf16")
    return accelerator


def _trains_a_kept_head(recipe: Recipe, accelerator: Accelerator) -> bool:
    """Whether a processor trains a head alone on kept outputs: products so small that bf16 gains
    nothing, while in float32 the kept outputs also serve the exact evaluation."""
    kept = why_not_kept(recipe, accelerator.num_processes) is None
    return kept and recipe.unfreeze == "head" and accelerator.device.type == "cpu"


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Private, but the only door torch has; absent in some versions and on some processors.
        probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
    return False


def _class_weights(
    catalogue: Catalogue, recipe: Recipe, device: torch.device
) -> torch.Tensor | None:
    if recipe.class_balance != "loss":
        return None
    labels = catalogue.labels[catalogue.rows("train")]
    weights = inverse_frequency(labels, len(catalogue.classes))
    return torch.from_numpy(weights).to(device=device, dtype=torch.float32)
