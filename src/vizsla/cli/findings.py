"""How findings are printed: the evidence on one line, meaning and advice below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vizsla.findings import Finding, identity_of

if TYPE_CHECKING:
    from vizsla.debugging.judging import Judgement
    from vizsla.debugging.rules.choosing import AnyRule
    from vizsla.debugging.tensors import Tensors


def print_findings(judged: Judgement, told: Sequence[Mapping[str, Any]]) -> None:
    """What the debugger recorded, what rules make of it, what they could not judge, and what was
    `told` while it trained and is no longer so."""
    console = Console(highlight=False)
    tensors, rules = judged.record.tensors, judged.rules
    steps = [f"{len(tensors.steps(mode)):,} {mode}" for mode in tensors.modes()]
    saves = len(tensors.matrix("mean", collection="gradients").steps)
    saves = saves or len(tensors.matrix("mean").steps)
    console.print(
        f"recorded  {', '.join(steps)} steps; {len(tensors.tensor_names()):,} tensors, of the "
        f"network at {saves:,} steps",
        soft_wrap=True,
    )
    names = {rule.name for rule in rules}
    print_judged(console, judged.findings, names, told, _unjudged(tensors, rules))
    if tensors.damaged:
        console.print(f"warning   {tensors.damaged} lines or files were damaged and left out")


def print_judged(
    console: Console,
    findings: Sequence[Finding],
    rules: Iterable[str],
    told: Sequence[Mapping[str, Any]],
    unjudged: Mapping[str, str],
) -> None:
    """Findings as they come; what one of these `rules` has `told` before and does not find now;
    and which rules could not judge, with why."""
    for finding in findings:
        print_finding(console, finding)
    if not findings:
        console.print("findings  none of what the rules know")
    names = set(rules)
    now = {(finding.rule, finding.severity) for finding in findings}
    for one in told:
        if one["rule"] in names and (one["rule"], one["severity"]) not in now:
            _print_line(
                console, "earlier", f"{one['rule']}  {one['where']}: told while it trained, and no "
                "longer so",
            )  # fmt: skip
    head = "unjudged"
    for why in dict.fromkeys(unjudged.values()):  # several rules often lack the same
        lacking = ", ".join(rule for rule, reason in unjudged.items() if reason == why)
        _print_line(console, head, f"{lacking}: {why}", "dim")
        head = ""


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


def new_of(findings: Iterable[Finding], told: Iterable[Mapping[str, Any]]) -> list[Finding]:
    """The findings that were not told before."""
    known = {identity_of(one) for one in told}
    return [one for one in findings if identity_of(one.to_dict()) not in known]


def _unjudged(tensors: Tensors, rules: Sequence[AnyRule]) -> dict[str, str]:
    there = tensors.collections()
    lacking = {
        rule.name: [one for one in getattr(rule, "needs", ()) if one not in there] for rule in rules
    }
    return {
        name: f"needs {', '.join(needs)}, which was not captured"
        for name, needs in lacking.items()
        if needs
    }


def _print_line(console: Console, head: str, text: str, style: str = "") -> None:
    console.print(Text(f"{head:<9} {text}", style=style), soft_wrap=True)
