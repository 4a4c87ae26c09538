"""Small studies on drawn dogs, shared where they are only read."""

from __future__ import annotations

from typing import Any

import pytest

from vizsla import tune
from vizsla.data.synthetic import DrawnDataset
from vizsla.settings import Settings
from vizsla.tuning.events import RunningTrial, StudyObserver
from vizsla.tuning.study import Study
from vizsla.tuning.trials import TrialRecord

# A head on a frozen toy: a trial is a fraction of a second once the cache is filled.
HEAD = Settings(
    model="test_resnet", weights="none", unfreeze="head", size_px=64, epochs=3, workers=0,
    batch_size=16, precision="fp32",
)  # fmt: skip
SPACE = {"lr": "1e-4..1e-1:log", "batch_size": [8, 16]}


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


@pytest.fixture(scope="session")
def head() -> Settings:
    return HEAD


@pytest.fixture(scope="session")
def search() -> dict[str, Any]:
    return SPACE


@pytest.fixture(scope="session")
def finished_study(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Six trials by tpe, none pruned, two at a time. Do not change it."""
    return tune(
        dogs.folder, SPACE, recipe=HEAD, studies=tmp_path_factory.mktemp("studies"), trials=6,
        pruner="none", jobs=2,
    )  # fmt: skip
