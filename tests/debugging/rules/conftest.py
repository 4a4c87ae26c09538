"""Small real trainings that rules judge: healthy as they are, sick by what a test changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from vizsla.debugging import watch
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule

FEATURES, CLASSES = 8, 4
WatchedTraining = Callable[..., TrainingRecord]


@pytest.fixture
def train_watched(tmp_path: Path) -> WatchedTraining:
    """Train a network on points around four corners, watched at each step; its record."""
    count = iter(range(100))

    def train(
        model: nn.Module,
        rule: DebugRule,
        *,
        lr: float = 0.05,
        momentum: float = 0.0,
        steps: int = 30,
        scale: float = 1.0,
        shift: float = 0.0,
        prepare: Callable[[int, torch.Tensor], torch.Tensor] = lambda step, points: points,
    ) -> TrainingRecord:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(
            [one for one in model.parameters() if one.requires_grad], lr, momentum
        )
        loss_fn = nn.CrossEntropyLoss()
        corners = torch.randn(CLASSES, FEATURES) * 1.5
        path = tmp_path / f"watched-{next(count)}"
        with watch(
            model, path, loss_fn=loss_fn, optimizer=optimizer, rules=[rule], capture="losses",
            every=1,
        ) as debugger:  # fmt: skip
            for step in range(steps):
                labels = torch.randint(CLASSES, (32,))
                points = (corners[labels] + torch.randn(32, FEATURES)) * scale + shift
                optimizer.zero_grad()
                loss = loss_fn(model(prepare(step, points)), labels)
                loss.backward()
                optimizer.step()
                debugger.step()
        return TrainingRecord.read(path)

    return train
