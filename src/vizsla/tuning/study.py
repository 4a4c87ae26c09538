"""A study to look at and to use: its best trial, its table, its pictures. Read from its folder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from vizsla.errors import RunError
from vizsla.findings import Finding, judge_all
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe
from vizsla.tuning import plots
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.rules import STUDY_RULES, StudyFacts
from vizsla.tuning.screening import Screened, ranking_of
from vizsla.tuning.space import Space, read_space
from vizsla.tuning.storage import load
from vizsla.tuning.trials import TrialRecord, best_of, front_of, ranked, records_of

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go


class Study:
    """A study in its folder, finished or not. Reads; writes nothing.

    >>> study = open_study("studies/2026-11-21-130500-resnet18")  # doctest: +SKIP
    >>> study.best.params, study.trials.head()  # doctest: +SKIP
    """

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self._facts = folder.facts()

    @property
    def objectives(self) -> tuple[str, ...]:
        """What trials are judged by, first what matters most."""
        return tuple(self._facts["objectives"])

    @property
    def space(self) -> Space:
        """What is searched, and over which values."""
        return read_space(self._facts["search"])

    @property
    def base(self) -> dict[str, Any]:
        """The settings that all trials share."""
        return dict(self._facts["recipe"])

    @cached_property
    def optuna(self) -> optuna.Study:
        """Optuna's own study, for whatever it offers beyond this."""
        return load(self.folder)

    @property
    def records(self) -> list[TrialRecord]:
        """Every trial, best first."""
        running = self.folder.is_running()
        trials = self.optuna.get_trials(deepcopy=False)
        records = records_of(trials, self.objectives, str(self._facts["id"]), running)
        return ranked(records, self.objectives[0])

    @property
    def trials(self) -> pandas.DataFrame:
        """A row a trial, best first: trial, status, figures, settings, epochs, seconds, reason."""
        import pandas as pd

        rows = [
            {
                "trial": record.number,
                "status": record.status,
                **{name: record.values.get(name, math.nan) for name in self.objectives},
                **{name: record.params.get(name) for name in self.space},
                "epochs": len(record.curve),
                "seconds": record.seconds,
                "reason": record.reason,
            }
            for record in self.records
        ]
        columns = ["trial", "status", *self.objectives, *self.space, "epochs", "seconds", "reason"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def best(self) -> TrialRecord:
        """The trial that is best in the first objective. Raises `RunError` before there is one."""
        best = best_of(self.records, self.objectives[0])
        if best is None:
            raise RunError(f"No trial of the study {self.folder.path} has finished yet.")
        return best

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto front of several objectives: the best compromises."""
        return front_of(self.records, self.objectives)

    @property
    def best_recipe(self) -> Recipe:
        """The recipe of the best trial."""
        return self.recipe_of(self.best)

    def recipe_of(self, record: TrialRecord) -> Recipe:
        """The recipe of a trial."""
        return Recipe(**{**self.base, **record.params})

    def run_of(self, record: TrialRecord) -> RunFolder:
        """The run folder of a trial that ran on this machine."""
        return RunFolder.open(self.folder.trial(record.number).path)

    @property
    def bundle(self) -> Path:
        """The bundle of the best trial. Raises `RunError` before it has been made."""
        if not (self.folder.bundle / "bundle.json").is_file():
            raise RunError(
                f"The study {self.folder.path} has no bundle yet; go on with: "
                f"vizsla tune --resume {self.folder.path}"
            )
        return self.folder.bundle

    @property
    def screening(self) -> list[Screened]:
        """The models that were probed, best first; empty where none were."""
        return ranking_of(self.folder)

    def findings(self) -> list[Finding]:
        """What rules say about the search, worst first."""
        return judge_all(STUDY_RULES, StudyFacts(self.space, self.records, self.objectives[0]))

    def importances(self) -> dict[str, float]:
        """How much each setting decided among the trials, 0 to 1, most first; empty where there
        are too few. By PED-ANOVA (Watanabe, Bansal and Hutter, 2023)."""
        return plots.importances(self.optuna, self.objectives[0])

    def plot_history(self) -> go.Figure:
        """Each trial's value over the study, and the best so far."""
        return plots.history(self.optuna, self.objectives[0])

    def plot_parallel(self) -> go.Figure:
        """Every trial as a line through its settings."""
        return plots.parallel(self.optuna, self.objectives[0])

    def plot_slice(self) -> go.Figure:
        """The value over each setting alone."""
        return plots.slices(self.optuna, self.objectives[0])

    def plot_contour(self, settings: Sequence[str] | None = None) -> go.Figure:
        """The value over two settings; by default the two that decided most."""
        return plots.contour(self.optuna, self.objectives[0], settings)

    def plot_importances(self) -> go.Figure:
        """How much each setting decided."""
        return plots.importance_bars(self.importances(), self.objectives[0])

    def plot_curves(self) -> go.Figure:
        """Each trial's value by epoch."""
        return plots.curves(self.records, self.objectives[0])

    def plot_top(self, count: int = 10) -> go.Figure:
        """The best trials as bars."""
        return plots.top_bars(self.records[:count], self.objectives[0])

    def plot_front(self) -> go.Figure:
        """The trials by two objectives, and their Pareto front."""
        return plots.front(self.records, self.front, self.objectives)


def open_study(path: Path) -> Study:
    """The study in a folder. Raises `RunError` where there is none."""
    return Study(StudyFolder.open(path))
