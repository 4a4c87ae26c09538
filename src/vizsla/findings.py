"""Findings: what a rule noticed, on which evidence, and what to do about it.

One `Finding` serves the data audit, the export check and every later judge; a `Rule` is a pure
function of recorded facts. What follows from a finding (stop, tell, save) is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeVar

Severity = Literal["info", "warning", "error"]
# From worst to mildest.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
# When, not where: what is found again later in a training is the same.
_MOMENT = re.compile(r"\b(step|epoch) \d+\b")

Facts = TypeVar("Facts", contravariant=True)


@dataclass(frozen=True)
class Finding:
    """Something worth a person's attention.

    `where` names a file, layer, step or split; `measured` and `threshold` are the evidence;
    `meaning` says in a sentence what it implies and `advice` what to do.
    """

    rule: str
    severity: Severity
    where: str
    meaning: str
    advice: str
    measured: float | None = None
    threshold: float | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Rule(Protocol[Facts]):
    """Judges recorded facts.

    A rule keeps no state between calls, never writes, and returns an empty iterable when all is
    well. It may be called from any thread, and again on the same facts.
    """

    @property
    def name(self) -> str: ...

    def judge(self, facts: Facts) -> Iterable[Finding]: ...


def judge_all(rules: Iterable[Rule[Facts]], facts: Facts) -> list[Finding]:
    """Every finding of every rule, worst first, else in the order of the rules."""
    return worst_first(finding for rule in rules for finding in rule.judge(facts))


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by severity; among equals in the order in which they come."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def identity_of(finding: Mapping[str, Any]) -> tuple[str, str, str]:
    """What makes a finding, as `findings.jsonl` has it, the same as an earlier one: rule, severity
    and cause. Where a rule tells no causes apart, layers do, and without those the place."""
    evidence = finding.get("evidence") or {}
    apart = evidence.get("cause") or evidence.get("layer")
    return finding["rule"], finding["severity"], str(apart or _MOMENT.sub("", finding["where"]))
