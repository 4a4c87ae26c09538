"""A profile on a terminal: where the time went, how the machine was used, and what to change."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vizsla.cli.findings import print_judged
from vizsla.judging import ANYTHING
from vizsla.profiling.clock import RunClock
from vizsla.profiling.cost import energy_words
from vizsla.profiling.machine_use import machine_lines
from vizsla.profiling.recorded import Profile
from vizsla.profiling.report import PERFETTO
from vizsla.profiling.rules.base import ProfileRule
from vizsla.profiling.summary import Part, parts_of, slow_steps, step_figures
from vizsla.runs.folder import RunFolder
from vizsla.words import counted, duration, percent

if TYPE_CHECKING:
    from vizsla.profiling.judging import Judgement

_LABEL = 26  # of a part of the time, with its indent
_BAR = 20
_INDENT = 10  # of words behind a heading
_MOST_MACHINES = _MOST_PROCESSES = 4  # the report has all


def print_profile(
    console: Console, run: RunFolder, judged: Judgement, ended: str | None = None
) -> None:
    """Everything that a person wants to know first. `ended` is how a command failed."""
    profile = judged.record.profile
    clock, is_running = RunClock.of(profile), run.status() == "running"
    _line(console, "profile", f"{run.path}{' (still going: so far)' if is_running else ''}")
    if ended is not None:
        _line(console, "command", ended, "bold red")
    _words(console, "recorded", _amount_of(profile, clock))
    _print_parts(console, parts_of(profile, clock), clock)
    _print_steps(console, profile)
    _print_machines(console, profile)
    _words(console, "energy", energy_words(profile))
    for path in profile.traces():
        _line(console, "trace", f'{path}; open it at {PERFETTO} with "Open trace file"')
    console.print()
    names = [rule.name for rule in judged.rules]
    print_judged(console, judged.findings, names, run.findings(), _unjudged(judged))
    if profile.damaged:
        was = "was" if profile.damaged == 1 else "were"
        _line(console, "warning", f"{counted(profile.damaged, 'line')} {was} damaged and left out")
    _line(console, "next", f"vizsla report {run.path}")


def _amount_of(profile: Profile, clock: RunClock) -> str:
    samples = sum(len(profile.samples(node)) for node in profile.nodes)
    steps = sum(len(profile.steps(rank)) for rank in profile.ranks)
    parts = [duration(clock.total)]
    if samples:
        parts.append(f"{counted(samples, 'sample')} of {counted(len(profile.nodes), 'machine')}")
    if steps:
        of = f" of {len(profile.ranks)} processes" if len(profile.ranks) > 1 else ""
        parts.append(f"{counted(steps, 'step')}{of}")
    if not profile.ranks:
        parts.append("no steps: vizsla.profiling.profile around a loop tells them")
    if clock.pauses:
        parts.append(f"without {duration(sum(clock.pauses))} in which it stood still")
    return ", ".join(parts)


def _print_parts(console: Console, parts: Sequence[Part], clock: RunClock) -> None:
    if not parts:
        return
    console.print()
    console.print(Text("where the time went", style="bold"))
    for part in parts:
        _print_part(console, part, clock.total, 2)
        for one in part.parts:
            _print_part(console, one, clock.total, 4)


def _print_part(console: Console, part: Part, total: float, indent: int) -> None:
    share = part.seconds / total if total else 0.0
    label = f"{' ' * indent}{part.label}"
    line = Text(f"{label:<{_LABEL}} {duration(part.seconds):>12} {percent(share):>8}  ")
    # The bars of parts stand for the whole run as well: lengths compare over all lines.
    line.append(_bar(share, console), style="" if indent == 2 else "yellow")
    line.rstrip()
    console.print(line, soft_wrap=True)


def _bar(share: float, console: Console) -> str:
    """A bar for a share in 0 to 1, in eighths of a character where they can be shown."""
    if console.options.ascii_only:
        return "#" * round(share * _BAR)
    whole, eighths = divmod(round(min(share, 1.0) * _BAR * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def _print_steps(console: Console, profile: Profile) -> None:
    several = len(profile.ranks) > 1
    for rank in profile.ranks[:_MOST_PROCESSES]:
        figures = step_figures(profile, rank)
        if figures is None:
            continue
        if rank == profile.ranks[0]:
            console.print()
        slow = int(slow_steps(profile.steps(rank)).sum())
        _words(
            console,
            "steps",
            (f"of process {rank}: " if several else "")
            + f"{duration(figures.median)} in the middle, {duration(figures.p95)} at the 95th "
            f"percentile, {figures.per_second:.3g} a second; the slowest took "
            f"{duration(figures.slowest)} (step {figures.slowest_step})"
            + (f"; {slow:,} of them far slower than the others" if slow else ""),
        )
    if (left := len(profile.ranks) - _MOST_PROCESSES) > 0:
        _words(
            console,
            "steps",
            f"of {counted(left, 'more process', 'more processes')}: see the report",
        )


def _print_machines(console: Console, profile: Profile) -> None:
    for node in profile.nodes[:_MOST_MACHINES]:
        if len(profile.nodes) > 1:
            console.print()
        for name, words in machine_lines(profile.samples(node)):
            _words(console, name, words)
    if len(profile.nodes) > _MOST_MACHINES:
        left = counted(len(profile.nodes) - _MOST_MACHINES, "more machine")
        _line(console, "machine", f"and {left}: see the report")


def _unjudged(judged: Judgement) -> dict[str, str]:
    """Rules that say why they do not apply to this run. A user's own may say nothing, or fail,
    of which there is a finding."""
    found = {}
    for rule in judged.rules:
        with contextlib.suppress(*ANYTHING):
            why = rule.applies(judged.record) if isinstance(rule, ProfileRule) else None
            if why is not None:
                found[rule.name] = why
    return found


def _line(console: Console, head: str, text: str, style: str = "") -> None:
    console.print(Text(f"{head:<9} ").append(text, style=style), soft_wrap=True)


def _words(console: Console, head: str, text: str) -> None:
    """Words that are wrapped beside their heading; what someone copies goes by `_line`."""
    lines = textwrap.wrap(text, max(20, console.width - _INDENT))
    _line(console, head, f"\n{' ' * _INDENT}".join(lines))
