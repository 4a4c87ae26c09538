"""What tests of studies share."""

from __future__ import annotations

from typing import Any

import pytest

from vizsla.tuning.events import RunningTrial, StudyObserver
from vizsla.tuning.trials import TrialRecord


class Noting(StudyObserver):
    """Remembers what a study told."""

    def __init__(self) -> None:
        self.begun: list[RunningTrial] = []
        self.over: list[TrialRecord] = []
        self.notes: list[str] = []
        self.most_at_once = 0

    def on_trial_begun(self, trial: RunningTrial, **more: Any) -> None:
        self.begun.append(trial)

    def on_trial_over(self, record: TrialRecord, **more: Any) -> None:
        self.over.append(record)

    def on_note(self, note: str, **more: Any) -> None:
        self.notes.append(note)

    def on_change(self, state: Any, **more: Any) -> None:
        self.most_at_once = max(self.most_at_once, len(state.running))


@pytest.fixture
def noting() -> Noting:
    return Noting()
