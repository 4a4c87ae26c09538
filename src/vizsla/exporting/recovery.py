"""A short training after pruning, which brings back most of the accuracy that pruning cost.

The run's own training does the work: the same pictures, variation and loop, with every layer free
and checkpoints in a scratch folder. Pruned weights get no gradient and stay at zero.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vizsla.data.catalogue import Catalogue
from vizsla.data.transforms import Preprocessing
from vizsla.errors import Interrupted, WorkError
from vizsla.exporting.prune import weighty_layers
from vizsla.models.build import Network
from vizsla.records import EpochRecord, SplitMetrics
from vizsla.settings import Recipe
from vizsla.training.checkpoint import CheckpointStore
from vizsla.training.evaluation import evaluate
from vizsla.training.events import Observer, Observers
from vizsla.training.loop import Trainer
from vizsla.training.setup import Setup, prepare, start_accelerator


@dataclass(frozen=True)
class RecoverySettings:
    """How a pruned network is trained on.

    `recipe` is the run's own: how its pictures are varied, weighed and decoded stays so. `lr` is
    AdamW's peak rate, which falls to zero along a cosine. `workers` are loader processes; 0 loads
    in this one, None chooses from the cores.
    """

    recipe: Recipe
    epochs: int
    lr: float = 1e-3
    batch_size: int = 32
    seed: int = 0
    workers: int | None = None

    def to_recipe(self) -> Recipe:
        """The recipe of the recovery. Raises `SettingError` for a value out of range."""
        return self.recipe.replace(
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
            workers=self.workers,
            unfreeze="all",
            solver="gradient",
            optimizer="adamw",
            nesterov=False,
            schedule="cosine",
            warmup_epochs=0.0,
            accumulate=1,
            clip_norm=self.recipe.clip_norm or 1.0,  # the first steps are off by far
            views=0,
            ema_decay=None,
            patience=None,
            checkpoint_every=None,
            compile=False,
            cache="off",
        )


def recover(
    module: nn.Module,
    catalogue: Catalogue,
    preprocessing: Preprocessing,
    settings: RecoverySettings,
    tell: Callable[[str], None],
) -> nn.Module:
    """A copy of a pruned `module`, trained on the training split of `catalogue`; on the CPU, in
    eval mode. It is the best on the validation split of all epochs and of `module` itself.

    Convolution and linear weights that are exactly zero stay so. Batch norms adapt: their
    statistics are of channels that are gone. The same seed gives the same network. `tell` gets a
    line before the first epoch and one after each.

    Raises `Interrupted` after Ctrl-C or SIGTERM, `DataError` where no picture of a split decodes,
    `WorkError` where training diverges.
    """
    recipe = settings.to_recipe()
    trained = copy.deepcopy(module).float()
    network = Network(trained, recipe.model, {}, preprocessing, "a pruned network", None)
    teller = _Teller(tell)
    with tempfile.TemporaryDirectory(prefix="vizsla-recovery-") as folder:
        checkpoints = CheckpointStore(Path(folder))
        accelerator = start_accelerator(recipe)
        setup = prepare(network, catalogue, recipe, checkpoints, Observers([teller]), accelerator)
        try:
            start = _judged(setup)
            tell(f"pruned: accuracy {start.accuracy:.4f}, loss {start.loss:.4f}")
            with _zeros_kept(trained):
                Trainer(setup).fit()
        except Interrupted as error:
            raise Interrupted(
                error.signal_number, "Stopped during the recovery; nothing was exported."
            ) from None
        except WorkError as error:
            raise WorkError(
                f"The recovery diverged with a learning rate of {settings.lr:g}; lower it, or "
                "prune less."
            ) from error
        finally:
            setup.stop_loading()
        best = checkpoints.load_best()
    if best is None or teller.best is None or not _is_better(teller.best, start, recipe.monitor):
        tell("the recovery brought nothing; the network stays as it was pruned")
        best = module.state_dict()
    # A fresh copy: Accelerate has wrapped the trained one's forward pass in its precision.
    recovered = copy.deepcopy(module).float().cpu()
    recovered.load_state_dict(best)
    return recovered.eval()


class _Teller(Observer):
    """Says how each epoch went, and keeps the figures of the best."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self.best: SplitMetrics | None = None

    def on_epoch(self, record: EpochRecord, **_more: Any) -> None:
        valid = record.valid
        self._tell(
            f"recovery, epoch {record.epoch}: accuracy {valid.accuracy:.4f}, "
            f"loss {valid.loss:.4f}, {record.train_seconds:.0f} s"
        )
        if record.best:
            self.best = valid


def _judged(setup: Setup) -> SplitMetrics:
    """The validation figures of the present weights."""
    evaluation = evaluate(
        setup.judged,
        setup.valid_loader,
        setup.inputs,
        len(setup.catalogue.classes),
        setup.accelerator,
    )
    return evaluation.sums.summary()


def _is_better(one: SplitMetrics, other: SplitMetrics, monitor: str) -> bool:
    """By the figure that the recipe monitors, then by the loss."""
    figures = [getattr(metrics, monitor) for metrics in (one, other)]
    if monitor != "loss" and figures[0] != figures[1]:
        return bool(figures[0] > figures[1])
    return one.loss < other.loss


@contextlib.contextmanager
def _zeros_kept(module: nn.Module) -> Iterator[None]:
    """Inside, convolution and linear weights that are zero get no gradient. AdamW then leaves
    them where they are: its moments stay zero, and weight decay is a factor."""
    hooks = []
    for layer in weighty_layers(module).values():
        kept = (layer.weight != 0).detach()
        if not bool(kept.all()):
            mask = kept.to(layer.weight.dtype)
            hooks.append(layer.weight.register_hook(mask.mul))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
