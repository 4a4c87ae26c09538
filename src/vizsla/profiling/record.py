"""What a rule sees of a profiled run: its profile, its epochs, and the facts of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vizsla.profiling.recorded import Profile
from vizsla.records import EpochRecord
from vizsla.runs.folder import RunFolder


@dataclass(frozen=True)
class ProfileRecord:
    """Recorded facts of one run. `epochs` are empty for loops that are not vizsla's; `facts` is
    `run.toml`; `trunk` is what became of the outputs of frozen layers, None where they were not
    kept (`trunk.json`)."""

    profile: Profile
    epochs: Sequence[EpochRecord] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    trunk: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, run: RunFolder, profile: Profile) -> ProfileRecord:
        """The present record of a run."""
        return cls(profile, run.epochs(), run.facts(), run.trunk())
