"""Every setting of the debugger once, as `vizsla.settings` has those of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator

from vizsla.debugging.actions import Action, parse_actions
from vizsla.debugging.plan import CapturePlan, make_plan
from vizsla.debugging.rules.choosing import (
    AnyRule,
    capture_options,
    choose_rules,
    needed_collections,
)
from vizsla.errors import RunError, SettingError
from vizsla.extras import require
from vizsla.rulebook import with_absolute_paths
from vizsla.runs.files import write_json
from vizsla.runs.folder import RunFolder
from vizsla.settings import SettingsBase


class DebugSettings(SettingsBase):
    """What of a training is captured, which rules judge it, and what follows."""

    debug: bool = Field(
        False, description="Capture tensors, judge them while training goes on, tell findings."
    )
    capture: str | None = Field(
        None,
        description="What to capture: collections (losses, weights, biases, gradients, inputs, "
        "outputs, labels, predictions, relu_input, relu_output, tanh_input, sigmoid_input, "
        "batch_norm) and regular expressions for names of tensors, with commas; by default losses, "
        "weights, gradients, labels, predictions, inputs.",
    )
    capture_every: str | None = Field(
        None,
        description="Steps between captured ones; for each mode with train=50;eval=10. By default "
        "50, some more at the beginning, and twenty times or so in a short training. Losses are "
        "recorded every step.",
    )
    capture_steps: str | None = Field(
        None,
        description="Steps to capture alone: a range such as 0:200 or 0:200:10, or 0,10,100; for "
        "each mode with train=0:200;eval=5.",
    )
    capture_whole: str | None = Field(
        None,
        description="Tensors to keep whole beside their reductions: collections and regular "
        "expressions.",
    )
    capture_half: bool = Field(False, description="Keep whole tensors in half precision.")
    capture_budget_mb: float = Field(
        1024.0, gt=0, description="Most that whole tensors of a session may take, in MB."
    )
    rules: str | None = Field(
        None,
        description="Rules that judge, with settings after colons: "
        "overfit,vanishing_gradient:threshold=1e-8,my_rules.py:MyRule; default, all and none "
        "stand for several.",
    )
    on_finding: list[str] | None = Field(
        None,
        description="What follows from a warning or an error: stop, checkpoint, notify=URL, "
        "run=COMMAND; with a rule and a colon before it of that rule alone. May be given again.",
    )
    tensorboard: bool = Field(
        False, description="Write TensorBoard event files into the run's folder as well."
    )

    @field_validator("capture_every", "capture_steps", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def is_on(self) -> bool:
        """Whether anything of the debugger was asked for."""
        given = self.model_dump(exclude_unset=True, exclude_none=True)
        return bool(given.pop("debug", bool(given)))

    def checked(self) -> DebugSettings:
        """These settings, once all of them make sense. Raises `SettingError`."""
        self.plan(rules := self.chosen_rules())
        self.actions(rules)
        if self.tensorboard:
            require("tensorboard", "tensorboard", "Writing TensorBoard files")
        return self

    def chosen_rules(self) -> list[AnyRule]:
        return choose_rules(self.rules)

    def plan(self, rules: Sequence[AnyRule]) -> CapturePlan:
        """What is captured for these settings and rules."""
        return make_plan(
            self.capture, self.capture_every, self.capture_steps, self.capture_whole,
            needed=needed_collections(rules), half=self.capture_half,
            budget_mb=self.capture_budget_mb, **capture_options(rules),
        )  # fmt: skip

    def actions(self, rules: Sequence[AnyRule]) -> list[Action]:
        return parse_actions(self.on_finding or [], [rule.name for rule in rules])


def write_settings(run: RunFolder, settings: DebugSettings) -> None:
    """Keep the debugger's settings in the run, for when it is taken up again, from wherever."""
    kept = settings.model_dump(exclude_unset=True)
    if settings.rules is not None:
        kept["rules"] = with_absolute_paths(settings.rules)
    write_json(run.path / "debug.json", kept)


def read_settings(run: RunFolder) -> DebugSettings | None:
    """The debugger's settings of a run; None where it had none. Raises `RunError` where they are
    damaged."""
    kept = run.debug_settings()
    try:
        return None if kept is None else DebugSettings(**kept)
    except SettingError as error:
        raise RunError(f"{run.path / 'debug.json'} is damaged: {error}") from None
