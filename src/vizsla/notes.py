"""Findings as a report shows them."""

from __future__ import annotations

from collections.abc import Iterable

from vizsla.findings import Finding, worst_first
from vizsla.records import Note


def notes_of(findings: Iterable[Finding]) -> tuple[Note, ...]:
    """A note a finding, worst first: a run writes them as they come, and a reader wants to know
    the worst."""
    return tuple(
        Note(one.severity, _head_of(one), f"{one.meaning}\n{one.advice}")
        for one in worst_first(findings)
    )


def _head_of(finding: Finding) -> str:
    """The rule, where it struck, and the evidence: what the command line prints."""
    parts = [finding.rule, finding.where]
    if finding.measured is not None:
        against = "" if finding.threshold is None else f" (threshold {finding.threshold:g})"
        parts.append(f"measured {finding.measured:.4g}{against}")
    return " · ".join(parts)
