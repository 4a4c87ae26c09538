"""What every rule of the debugger shares: what it needs of capture, and where its findings are.

The built-in ones take the parameters of SageMaker Debugger's rules in snake case, from the same
defaults.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from vizsla.debugging.record import TrainingRecord
from vizsla.findings import Finding, Severity
from vizsla.rulebook import BaseRule


class DebugRule(BaseRule):
    """Base of the built-in rules and of users' own.

    `needs` are collections that capture must record for it. A subclass overrides `judge`, and
    `asks` where capture must know its settings.
    """

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
        where: str | None = None,
        measured: float | None = None,
        threshold: float | None = None,
        step: int | None = None,
        layer: str | None = None,
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule. `layer` is a tensor, layer or class; it and the step are where it
        is, unless that is said. More evidence as keywords, as `BaseRule` has it."""
        at = None if step is None else f"step {step}"
        place = ", ".join(part for part in (layer, at) if part is not None)
        return super().finding(
            meaning, advice, severity=severity, where=where or place, measured=measured,
            threshold=threshold, layer=layer, step=step, **evidence,
        )  # fmt: skip


def in_words(names: Iterable[str], most: int = 3) -> str:
    """A few names and how many more: `a, b, c and 4 more`."""
    listed = list(names)
    shown, rest = listed[:most], len(listed) - most
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
