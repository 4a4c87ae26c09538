"""How findings are printed: the evidence on one line, meaning and advice below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vizsla.debugging.judging import Judgement
from vizsla.debugging.rules.choosing import AnyRule
from vizsla.debugging.tensors import Tensors
from vizsla.findings import Finding


def print_findings(judged: Judgement, told: Sequence[Mapping[str, Any]]) -> None:
    """What was recorded, what rules make of it, what they could not judge, and what was `told`
    while it trained and is no longer so."""
    console = Console(highlight=False)
    tensors, rules, findings = judged.record.tensors, judged.rules, judged.findings
    steps = [f"{len(tensors.steps(mode)):,} {mode}" for mode in tensors.modes()]
    saves = len(tensors.matrix("mean", collection="gradients").steps)
    saves = saves or len(tensors.matrix("mean").steps)
    console.print(
        f"recorded  {', '.join(steps)} steps; {len(tensors.tensor_names()):,} tensors, of the "
        f"network at {saves:,} steps",
        soft_wrap=True,
    )
    for finding in findings:
        print_finding(console, finding)
    if not findings:
        console.print("findings  none of what the rules know")
    _print_earlier(console, rules, findings, told)
    _print_unjudged(console, tensors, rules)
    if tensors.damaged:
        console.print(f"warning   {tensors.damaged} lines or files were damaged and left out")


def _print_earlier(
    console: Console,
    rules: Sequence[AnyRule],
    findings: Sequence[Finding],
    told: Sequence[Mapping[str, Any]],
) -> None:
    names = {rule.name for rule in rules}
    now = {(finding.rule, finding.severity) for finding in findings}
    for one in told:
        if one["rule"] in names and (one["rule"], one["severity"]) not in now:
            console.print(
                f"earlier   {one['rule']}  {one['where']}: told while it trained, and no longer so",
                soft_wrap=True,
            )


def _print_unjudged(console: Console, tensors: Tensors, rules: Sequence[AnyRule]) -> None:
    there = tensors.collections()
    for rule in rules:
        lacking = [one for one in getattr(rule, "needs", ()) if one not in there]
        if lacking:
            console.print(
                f"unjudged  {rule.name}: needs {', '.join(lacking)}, which was not captured",
                soft_wrap=True,
            )


def print_finding(console: Console, finding: Finding) -> None:
    """One finding: the evidence on one line, its meaning and advice below."""
    style = {"error": "bold red", "warning": "yellow"}.get(finding.severity, "dim")
    head = Text(f"{finding.severity:<9} ", style=style)
    head.append(f"{finding.rule}", style="bold")
    head.append(f"  {finding.where}")
    if finding.measured is not None:
        against = "" if finding.threshold is None else f" (threshold {finding.threshold:g})"
        head.append(f"  measured {finding.measured:.4g}{against}")
    console.print(head, soft_wrap=True)
    for text in (finding.meaning, finding.advice):
        console.print(Padding(Text(text), (0, 0, 0, 10)))
