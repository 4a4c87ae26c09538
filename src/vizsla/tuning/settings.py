"""Every setting of a study once, as `vizsla.settings` has those of a training."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from vizsla.errors import SettingError, nearest
from vizsla.settings import Monitor, SettingsBase

Sampler = Literal["tpe", "random", "grid", "cmaes", "gp"]
Pruner = Literal["asha", "hyperband", "none"]

# What a trial can be judged by, and whether more of it is better.
OBJECTIVES = {
    "accuracy": True,
    "macro_f1": True,
    "top5_accuracy": True,
    "loss": False,
    "latency_ms": False,
    "size_mb": False,
}
FOOTPRINT = ("latency_ms", "size_mb")
# A trial keeps its best epoch by one of these.
MONITORS: dict[str, Monitor] = {"accuracy": "accuracy", "macro_f1": "macro_f1", "loss": "loss"}
DEFAULT_TRIALS = 10
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.IGNORECASE)


class StudySettings(SettingsBase):
    """How a study searches, and when it ends."""

    trials: int | None = Field(
        None, ge=1, le=1_000_000, description="Trials to run; 10 where no timeout is given."
    )
    timeout: str | None = Field(
        None, description="Longest time for all trials, such as 90s, 30m or 1h30m."
    )
    study_patience: int | None = Field(
        None, ge=1, description="End the study after so many trials without a better one."
    )
    sampler: Sampler = Field(
        "tpe",
        description="How settings are chosen: tpe, random, grid, cmaes (numbers alone), or gp "
        "(a Gaussian process).",
    )
    pruner: Pruner = Field(
        "asha",
        description="How bad trials are ended early: asha (successive halving), hyperband, none.",
    )
    prune_on: str | None = Field(
        None,
        description="Rules of the debugger that end a trial as well, such as "
        "loss_not_decreasing,exploding_tensor.",
    )
    objective: str = Field(
        "",
        description="What is best: accuracy, macro_f1, loss or top5_accuracy of validation; with a "
        "comma and latency_ms or size_mb, the best compromises. By default the recipe's monitor.",
    )
    jobs: int = Field(1, ge=1, le=256, description="Trials side by side, sharing the cores.")
    screen: int | None = Field(
        None,
        ge=1,
        description="Of several models in the search keep so many, by a linear probe of each.",
    )
    name: str | None = Field(
        None,
        description="The study's name; with a storage, a machine that gives the name of a study "
        "there joins it.",
    )
    storage: str | None = Field(
        None,
        description="Where Optuna keeps the study, such as postgresql+psycopg://host/db, for "
        "several machines; by default a journal file in the study's folder.",
    )
    warm_start: str | None = Field(
        None, description="The folder of an earlier study, to begin with what it found."
    )

    @field_validator("timeout")
    @classmethod
    def _timeout_is_a_time(cls, value: str | None) -> str | None:
        if value is not None:
            seconds_of(value)
        return value

    @field_validator("name")
    @classmethod
    def _name_is_a_folders(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            raise SettingError(
                f"name is {value!r}, but must be of letters, digits, points, hyphens and "
                "underscores."
            )
        return value

    @field_validator("objective")
    @classmethod
    def _objectives_are_known(cls, value: str) -> str:
        split_objectives(value)
        return value

    @property
    def debugger(self) -> dict[str, Any] | None:
        """Settings of the debugger that judges each trial; None where no rule does. It captures
        what its rules need."""
        if self.prune_on is None:
            return None
        return {"capture": "losses", "rules": self.prune_on, "on_finding": ["stop"]}

    @property
    def timeout_s(self) -> float | None:
        return None if self.timeout is None else seconds_of(self.timeout)

    @property
    def trial_limit(self) -> int | None:
        """Trials to run; None where time alone decides."""
        if self.trials is None and self.timeout is None:
            return DEFAULT_TRIALS
        return self.trials

    def objectives(self, monitor: Monitor) -> tuple[str, ...]:
        """What trials are judged by, first what matters most."""
        return split_objectives(self.objective) or (monitor,)

    def replace(self, **changes: Any) -> StudySettings:
        return StudySettings(**{**self.model_dump(exclude_unset=True), **changes})


def split_objectives(text: str) -> tuple[str, ...]:
    """The names in `text`, checked: one that validation measures comes first."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in OBJECTIVES:
            raise SettingError(
                f"objective is {text!r}: there is no {name!r}.{nearest(name, OBJECTIVES)} "
                f"There are {', '.join(OBJECTIVES)}."
            )
    if len(set(names)) < len(names):
        raise SettingError(f"objective is {text!r}, which names one twice.")
    if names and names[0] in FOOTPRINT:
        raise SettingError(
            f"objective is {text!r}: {names[0]} alone is best where nothing is learnt; begin with "
            "a figure of validation, such as accuracy."
        )
    return names


def seconds_of(text: str) -> float:
    """A time as people write it, in seconds.

    >>> seconds_of("1h30m")
    5400.0
    """
    match = _DURATION.fullmatch(text.strip())
    parts = match.groups() if match else ()
    if not any(parts):
        raise SettingError(f"timeout is {text!r}, but must be a time such as 90s, 30m or 1h30m.")
    hours, minutes, seconds = (float(part or 0) for part in parts)
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise SettingError(f"timeout is {text!r}, but must be above 0.")
    return total
