"""What every rule of the debugger shares: settings that are checked, and how it says what it found.

A rule is a frozen settings model: its parameters are fields with defaults, ranges and help, and
`judge` is a pure function of what was recorded. The built-in ones take the parameters of SageMaker
Debugger's rules in snake case, from the same defaults.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from vizsla.debugging.record import TrainingRecord
from vizsla.findings import Finding, Severity
from vizsla.settings import SettingsBase


class DebugRule(SettingsBase):
    """Base of the built-in rules and of users' own.

    `name` is what people type. `needs` are collections that capture must record for it. A subclass
    overrides `judge`, and `asks` where capture must know its settings.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        """Findings, none when all is well. Keeps no state and writes nothing."""

    def asks(self) -> Mapping[str, Any]:
        """Options of capture that this rule's settings decide."""
        return {}

    def finding(
        self,
        meaning: str,
        advice: str,
        *,
        severity: Severity = "warning",
        step: int | None = None,
        layer: str | None = None,
        measured: float | None = None,
        threshold: float | None = None,
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule. `layer` is a tensor, layer or class; more evidence as keywords
        (plain numbers, texts and lists, since it is written as JSON)."""
        at = None if step is None else f"step {step}"
        where = ", ".join(part for part in (layer, at) if part is not None) or "training"
        known = {"layer": layer, "step": step, **evidence}
        return Finding(
            self.name, severity, where, meaning, advice, measured, threshold,
            {key: value for key, value in known.items() if value is not None},
        )  # fmt: skip


def in_words(names: Iterable[str], most: int = 3) -> str:
    """A few names and how many more: `a, b, c and 4 more`."""
    listed = list(names)
    shown, rest = listed[:most], len(listed) - most
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
