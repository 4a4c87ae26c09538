"""Checkpoints: everything that a training needs to go on as if it had never stopped.

There is no generator state in them. Each step and each picture seeds its own chance from the
recipe's seed and its position, so that weights, optimiser and position are the whole state.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vizsla.errors import RunError
from vizsla.runs.files import write_whole

FORMAT_VERSION = 1


@dataclass
class Progress:
    """Where the training stands. `epoch` is the one in progress, from 0; `batch` the next in it.

    `step` counts updates over the whole run. `best_value` is oriented so that larger is better;
    `best_loss` decides between equals.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_value: float | None = None
    best_loss: float = 0.0
    best_epoch: int = 0
    epochs_without_better: int = 0
    epoch_seconds: float = 0.0
    epoch_wait_seconds: float = 0.0


@dataclass
class Checkpoint:
    """The resume state: position, sums of the epoch in progress, weights, optimiser."""

    progress: Progress
    sums: dict[str, torch.Tensor]
    network: dict[str, torch.Tensor]
    averaged: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]


class CheckpointStore:
    """The checkpoints of one run: `last.pt` to go on from, `best.pt` the best weights so far."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save_last(self, checkpoint: Checkpoint) -> None:
        payload = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(checkpoint.progress),
            "sums": checkpoint.sums,
            "network": checkpoint.network,
            "averaged": checkpoint.averaged,
            "optimizer": checkpoint.optimizer,
        }
        write_whole(self._folder / "last.pt", lambda file: torch.save(payload, file))

    def load_last(self) -> Checkpoint | None:
        """The last checkpoint, or None before the first."""
        payload = self._load("last.pt")
        if payload is None:
            return None
        if payload.get("format_version") != FORMAT_VERSION:
            raise RunError(
                f"{self._folder / 'last.pt'} has format version {payload.get('format_version')}, "
                f"and this vizsla reads {FORMAT_VERSION}; resume with the version that wrote it."
            )
        return Checkpoint(
            progress=Progress(**payload["progress"]),
            sums=payload["sums"],
            network=payload["network"],
            averaged=payload["averaged"],
            optimizer=payload["optimizer"],
        )

    def save_best(self, network: dict[str, torch.Tensor]) -> None:
        write_whole(self._folder / "best.pt", lambda file: torch.save(network, file))

    def load_best(self) -> dict[str, torch.Tensor] | None:
        """The weights of the best epoch so far, or None before the first."""
        return self._load("best.pt")

    def _load(self, name: str) -> dict[str, Any] | None:
        path = self._folder / name
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (
            RuntimeError,
            EOFError,
            OSError,
            ValueError,
            KeyError,
            pickle.UnpicklingError,
        ) as error:
            raise RunError(f"The checkpoint {path} is damaged: {error}.") from None
        return content
