"""What a rule sees of a training: its tensors, its epochs, and the facts of its run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vizsla.debugging.tensors import Tensors
from vizsla.records import EpochRecord
from vizsla.runs.folder import RunFolder


@dataclass(frozen=True)
class TrainingRecord:
    """Recorded facts of one run. `epochs` are empty for loops that are not vizsla's; `facts` is
    `run.toml`; `seconds_silent` is the time since the last record of a run that goes on, or since
    its last session began if that was later, and None of one that is over."""

    tensors: Tensors
    epochs: Sequence[EpochRecord] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    seconds_silent: float | None = None

    @classmethod
    def of(cls, run: RunFolder, tensors: Tensors, running: bool) -> TrainingRecord:
        """The present record of a run, `tensors` as they have been read."""
        begun = tensors.sessions[-1].get("time") if tensors.sessions else None
        last = max(tensors.last_time or 0.0, begun or 0.0)
        silent = time.time() - last if running and last else None
        return cls(tensors, run.epochs(), run.facts(), silent)

    @classmethod
    def read(cls, path: Path) -> TrainingRecord:
        """The record of a run folder as it is now."""
        run = RunFolder.open(path)
        return cls.of(run, Tensors(path), run.status() == "running")

    def class_name(self, label: int) -> str:
        """A class as people know it; its number where the run does not say."""
        names = self.facts.get("data", {}).get("classes", [])
        return str(names[label]) if 0 <= label < len(names) else f"class {label}"
