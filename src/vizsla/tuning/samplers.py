"""Optuna's parts for a space: distributions, sampler, pruner, and a trial's suggestions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning

from vizsla.errors import SettingError
from vizsla.extras import require
from vizsla.tuning.settings import StudySettings
from vizsla.tuning.space import Dimension, Range, Space


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's counterpart of a dimension."""
    if not isinstance(dimension, Range):
        return CategoricalDistribution(dimension.values)
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=log, step=dimension.step)


def suggest(trial: optuna.trial.Trial, space: Space) -> dict[str, Any]:
    """The settings of a trial: those it has, or new ones."""
    return {name: _suggested(trial, name, dimension) for name, dimension in space.items()}


def _suggested(trial: optuna.trial.Trial, name: str, dimension: Dimension) -> Any:
    if not isinstance(dimension, Range):
        return trial.suggest_categorical(name, dimension.values)
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        step = int(dimension.step or 1)
        return trial.suggest_int(name, int(low), int(high), log=log, step=step)
    return trial.suggest_float(name, low, high, log=log, step=dimension.step)


def build_sampler(
    settings: StudySettings, space: Space, seed: int, objectives: int
) -> optuna.samplers.BaseSampler:
    """The sampler of `settings`. Raises `SettingError` where it does not fit the space."""
    # Optuna's ten random trials at first would be all of a small study.
    startup = min(10, max(3, math.ceil((settings.trial_limit or 40) / 4)))
    kind = settings.sampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if kind == "grid":
            return _Grid(_grids(space), seed=seed)
        if kind == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if kind == "cmaes":
            require("cmaes", "tune", "The sampler cmaes")
            _check_cmaes(space, objectives)
            return optuna.samplers.CmaEsSampler(
                seed=seed,
                n_startup_trials=startup,
                consider_pruned_trials=True,
            )
        if kind == "gp":
            require("scipy", "tune", "The sampler gp")
            return optuna.samplers.GPSampler(
                seed=seed,
                n_startup_trials=startup,
            )
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=startup,
            multivariate=True,
            group=True,
            constant_liar=settings.jobs > 1 or settings.storage is not None,
        )


class _Grid(optuna.samplers.GridSampler):
    """Optuna's, which would end the study itself; here the conductor does, when all is tried."""

    def after_trial(self, *_: Any, **__: Any) -> None:
        pass


def build_pruner(
    settings: StudySettings, objectives: int, epochs: int
) -> optuna.pruners.BasePruner:
    """The pruner of `settings` for trials of at most `epochs`; none where several objectives leave
    no order among trials."""
    if settings.pruner == "none" or objectives > 1:
        return optuna.pruners.NopPruner()
    if settings.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(1, max(epochs, 3), reduction_factor=3)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)


def grid_size(space: Space) -> int:
    """How many combinations a grid over the space has."""
    return math.prod(len(values) for values in _grids(space).values())


def _grids(space: Space) -> dict[str, tuple[Any, ...]]:
    grids = {}
    for name, dimension in space.items():
        values = dimension.grid()
        if values is None:
            raise SettingError(
                f"The sampler grid tries every combination, and {name}={dimension} has no end; "
                f"name its values ({name}=1e-4,1e-3) or give it a step ({name}=0..0.5:step=0.1)."
            )
        grids[name] = values
    return grids


def _check_cmaes(space: Space, objectives: int) -> None:
    numbers = [name for name, dimension in space.items() if isinstance(dimension, Range)]
    if len(numbers) < 2:
        raise SettingError(
            f"The sampler cmaes needs two ranges of numbers or more, and the search has "
            f"{', '.join(numbers) or 'none'}; use tpe."
        )
    if objectives > 1:
        raise SettingError("The sampler cmaes has one objective; use tpe for several.")
