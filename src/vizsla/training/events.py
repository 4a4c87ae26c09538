"""What the loop tells while it trains, and to whom.

The loop calls observers and knows nothing of what they do: write a run folder, draw a progress
display, record tensors, time phases. An observer never changes the training; it may ask for its
end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vizsla.findings import Finding
from vizsla.observing import TellAll
from vizsla.records import EpochRecord, PictureProblem
from vizsla.runs.folder import RunFolder
from vizsla.training.stopping import StopRequest


@dataclass(frozen=True)
class TrainingFacts:
    """What is fixed before the first step."""

    epochs: int
    steps_per_epoch: int
    batch_size: int
    train_pictures: int
    trained_numbers: int
    all_numbers: int
    device: str
    precision: str
    learning_rate: float
    first_epoch: int = 0
    solver: str = "gradient"
    note: str | None = None  # why frozen layers are computed every epoch


@dataclass(frozen=True)
class StepFacts:
    """One optimiser update. `loss` is a tensor on the device: reading it waits for the device."""

    step: int
    epoch: int
    step_in_epoch: int
    pictures: int
    learning_rate: float
    loss: torch.Tensor
    seconds: float
    wait_seconds: float


@dataclass(frozen=True)
class TrainingParts:
    """What a training computes with, to look at and not to touch: the bare `network`, what is
    `computed` of it in training (the whole or a tail), the loss, and the optimiser, where there is
    one. `step` updates are done."""

    network: nn.Module
    computed: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer | None
    step: int = 0


class Observer:
    """Base of everything that listens; each hook does nothing unless overridden.

    Hooks are called in the training process's main thread and should return quickly. Each takes
    further keywords, so that facts can be added without breaking an observer.
    """

    def on_run(self, run: RunFolder, **more: Any) -> None:
        """The run folder is there, with its facts and its catalogue; nothing is trained yet."""

    def on_start(
        self, facts: TrainingFacts, stop: StopRequest, *, parts: TrainingParts, **more: Any
    ) -> None:
        """Before the first step, also of a resumed run; what can be kept has been made. Whoever
        keeps `stop` may ask it, until `on_end`, to make an epoch the last, or a step."""

    def on_note(self, note: str, **more: Any) -> None:
        """Something that was decided while the training was made ready, in a sentence."""

    def on_finding(self, finding: Finding, **more: Any) -> None:
        """A judge of the training, another observer, has found something while it goes on."""

    def on_trunk_progress(self, passes: int, of: int, found: int, **more: Any) -> None:
        """So many of the trunk's passes are done, before the first step; `found` were kept
        before."""

    def on_features(self, passes: Any, findings: list[Finding], **more: Any) -> None:
        """Every view's trunk outputs are there (a `TrunkPasses`)."""

    def on_decoding_progress(self, pictures: int, of: int, found: int, **more: Any) -> None:
        """So many pictures are decoded and kept, before the first step."""

    def on_pictures_kept(self, count: Any, **more: Any) -> None:
        """Decoded pictures are there for every epoch (a `KeptPicturesCount`)."""

    def on_step(self, facts: StepFacts, **more: Any) -> None:
        """After an update."""

    def on_judged(self, logits: torch.Tensor, labels: torch.Tensor, **more: Any) -> None:
        """After each batch of a validation: logits (pictures, classes) and labels (pictures,), on
        the device."""

    def on_problems(self, problems: list[PictureProblem], **more: Any) -> None:
        """Pictures that did not decode, or only in part; each is told of once."""

    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        """After an epoch's evaluation, before its checkpoint."""

    def on_save(self, **more: Any) -> None:
        """Before a checkpoint: whatever is held back must be written now."""

    def on_end(self, **more: Any) -> None:
        """However training ends: finished, stopped early, interrupted or failed."""

    def on_evaluation(self, split: str, figures: dict[str, Any], **more: Any) -> None:
        """The best weights have been judged on a split."""

    def on_bundle(self, run: RunFolder, **more: Any) -> None:
        """The run's bundle has been written; the run is finished."""


class Observers(TellAll, Observer):
    """Several observers as one, called in order."""
