"""A training without the export that follows it, so that a test of the loop takes half a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vizsla.data.synthetic import DrawnDataset
from vizsla.pipeline import TrainingJob
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.training.checkpoint import CheckpointStore
from vizsla.training.events import Observer, Observers
from vizsla.training.loop import Trainer
from vizsla.training.recording import RunRecorder
from vizsla.training.setup import Setup, prepare


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for one another's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Fitted:
    """A training that has run its loop, with everything that it was made of."""

    run: RunFolder
    setup: Setup
    start: dict[str, torch.Tensor]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return self.setup.network.state_dict()


Fit = Callable[..., Fitted]


@pytest.fixture
def fit(dogs: DrawnDataset, tmp_path: Path) -> Fit:
    """Call with settings, or `data` and `observers`, to train a tiny network on `dogs`."""

    def train(
        data: Path = dogs.folder, observers: tuple[Observer, ...] = (), **settings: Any
    ) -> Fitted:
        recipe = Recipe(
            **{
                "model": "test_resnet",
                "weights": "none",
                "unfreeze": "all",
                "size_px": 64,
                "epochs": 1,
                "batch_size": 8,
                "workers": 0,
                "precision": "fp32",
                **settings,
            }
        )
        job = TrainingJob.started(data, recipe, tmp_path / "runs", observers)
        setup = prepare(
            job.network,
            job.catalogue,
            job.recipe,
            CheckpointStore(job.run_folder.checkpoints),
            Observers([RunRecorder(job.run_folder), *observers]),
            job.accelerator,
        )
        start = {name: value.clone() for name, value in setup.network.state_dict().items()}
        Trainer(setup).fit()
        return Fitted(job.run_folder, setup, start)

    return train
