"""Every setting of the profiler once, as `vizsla.settings` has those of a training."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from vizsla.errors import RunError, SettingError
from vizsla.profiling.format import DEFAULT_INTERVAL_MS, INTERVALS_MS
from vizsla.runs.files import write_json
from vizsla.runs.folder import RunFolder
from vizsla.settings import SettingsBase

_STEPS = re.compile(r"\s*(\d{1,12})\s*(?::\s*(\d{1,12})\s*)?")
_FILE = "profile.json"


class ProfileSettings(SettingsBase):
    """What of a training is timed and sampled."""

    profile: bool = Field(
        False, description="Sample the machine, time the parts of each step, tell findings."
    )
    profile_interval_ms: int = Field(
        DEFAULT_INTERVAL_MS,
        ge=INTERVALS_MS[0],
        le=INTERVALS_MS[1],
        description="Milliseconds between two samples of the machine, 100 to 60,000.",
    )
    trace_steps: str | None = Field(
        None,
        description="Steps of which PyTorch's profiler writes a trace, which opens in Perfetto: "
        "20:25 for the five steps from the 20th on, or one step's number.",
    )

    @field_validator("trace_steps")
    @classmethod
    def _as_range(cls, value: str | None) -> str | None:
        if value is not None:
            parse_steps(value)
        return value

    @property
    def is_on(self) -> bool:
        """Whether anything of the profiler was asked for."""
        given = self.model_dump(exclude_unset=True, exclude_none=True)
        return bool(given.pop("profile", bool(given)))

    def traced(self) -> range:
        """The steps of which a trace is wanted."""
        return parse_steps(self.trace_steps) if self.trace_steps is not None else range(0)


def parse_steps(text: str) -> range:
    """Steps as they are typed. Raises `SettingError` for what is no range of steps.

    >>> parse_steps("20:25"), parse_steps("7")
    (range(20, 25), range(7, 8))
    """
    match = _STEPS.fullmatch(text)
    first = int(match[1]) if match else 0
    end = int(match[2]) if match and match[2] is not None else first + 1
    if match is None or first < 1 or end <= first:
        raise SettingError(
            f"trace_steps is {text!r}, but must be a range of steps from 1 on, such as 20:25 for "
            "the five steps from the 20th."
        )
    return range(first, end)


def write_settings(run: RunFolder, settings: ProfileSettings) -> None:
    """Keep the profiler's settings in the run, for when it is taken up again."""
    write_json(run.path / _FILE, settings.model_dump(exclude_unset=True))


def read_settings(run: RunFolder) -> ProfileSettings | None:
    """The profiler's settings of a run; None where it had none. Raises `RunError` where they are
    damaged."""
    kept = run.profile_settings()
    try:
        return None if kept is None else ProfileSettings(**kept)
    except SettingError as error:
        raise RunError(f"{run.path / _FILE} is damaged: {error}") from None
