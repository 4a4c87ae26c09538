"""A profile, and what rules found in it, as sections of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vizsla.findings import Finding
from vizsla.notes import notes_of
from vizsla.profiling import plots
from vizsla.profiling.clock import RunClock
from vizsla.profiling.cost import cost_words, how_known, kwh, money
from vizsla.profiling.energy import energy_of
from vizsla.profiling.machine_use import machine_lines
from vizsla.profiling.recorded import Profile, StepTimes
from vizsla.profiling.summary import Part, later_steps, parts_of, slow_steps, step_figures
from vizsla.profiling.time_plot import machine_over_time, marked_names
from vizsla.records import Section, Tile
from vizsla.words import counted, duration, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

PERFETTO = "https://ui.perfetto.dev"
_SLOWEST = 10  # steps in a table
_FEW_CORES = 4
_DAMAGED = "{} of the recording could not be read and {} left out."


def sections_of(
    profile: Profile, findings: Sequence[Finding], price: float | None = None, running: bool = False
) -> list[Section]:
    """Findings, where the time went, steps and machine over time, and what it cost. `price` is
    money an hour, of one machine; a run that is still `running` is marked so."""
    return list(_sections(profile, findings, price, "so far" if running else ""))


def section_without() -> Section:
    """What stands in the report of a run that was not profiled."""
    return Section(
        "Profile",
        "This run was not profiled, so nobody knows where its time went. Profile a training with "
        "the first of these lines, and any other command, its children included, with the second.",
        code="vizsla train --profile PICTURES\nvizsla profile -- python any_script.py",
    )


def tiles_of(profile: Profile, price: float | None = None) -> list[Tile]:
    """A few figures for the summary of a report."""
    found = []
    if (steps := step_figures(profile)) is not None:
        found.append(Tile("Step", duration(steps.median), "median"))
        share = profile.steps().share("data_wait")
        if share >= 0.01:
            found.append(Tile("Waiting for data", percent(share), "of the steps' time"))
    if (energy := energy_of(profile)) is not None:
        found.append(Tile("Energy", kwh(energy), how_known(energy)))
    if price is not None:
        amount, words = money(RunClock.of(profile), profile, price)
        found.append(Tile("Cost", amount, words))
    return found


def _sections(
    profile: Profile, findings: Sequence[Finding], price: float | None, mark: str
) -> Iterator[Section]:
    clock = RunClock.of(profile)
    yield _found(findings, profile, mark)
    yield from _where(profile, clock, mark)
    yield from _startup(profile)
    yield from _over_time(profile, clock, findings, mark)
    yield from _cores(profile, clock)
    yield from _steps(profile, mark)
    yield from _processes(profile)
    yield from _trace(profile)
    yield Section("Cost", cost_words(profile, clock, price), mark=mark)
    yield from _machines(profile)


def _found(findings: Sequence[Finding], profile: Profile, mark: str) -> Section:
    text = "" if findings else "None of what the rules know."
    if profile.damaged:
        lines = counted(profile.damaged, "line")
        text = f"{text} {_DAMAGED.format(lines, 'is' if profile.damaged == 1 else 'are')}".strip()
    return Section("Profile findings", text, notes=notes_of(findings), mark=mark)


def _where(profile: Profile, clock: RunClock, mark: str) -> Iterator[Section]:
    parts = parts_of(profile, clock)
    pauses = ""
    if clock.pauses:
        still = f"{counted(len(clock.pauses), 'time')}, for {duration(sum(clock.pauses))}"
        pauses = f" It stood still {still} in all, which is left out here."
    if not parts:
        text = (
            f"The run took {duration(clock.total)}.{pauses} What it did in that time nobody told: "
            "the machine was sampled and nothing more. To see steps and their phases, put "
            "vizsla.profiling.profile around the loop."
        )
        yield Section("Where the time went", text, mark=mark)
        return
    figure = plots.where_time_went(parts, clock.total)
    yield Section(
        "Where the time went",
        f"The run took {duration(clock.total)}.{pauses}",
        ("part", "seconds", "share", "what it is"),
        tuple(_table(parts, clock.total)),
        figure=_json(figure),
        mark=mark,
    )


def _table(parts: Sequence[Part], total: float) -> Iterator[tuple[str, ...]]:
    for part in parts:
        yield _row(part, part.label, total)
        if part.name == "steps":
            for phase in part.parts:
                yield _row(phase, f"– {phase.label}", total)


def _row(part: Part, label: str, total: float) -> tuple[str, ...]:
    share = part.seconds / total if total else 0.0
    return label, f"{part.seconds:,.{_decimals(total)}f}", percent(share), part.meaning


def _decimals(largest: float) -> int:
    """Decimals that all numbers of a column get, by the largest."""
    return 1 if largest >= 100 else 2 if largest >= 10 else 3 if largest >= 0.1 else 5


def _startup(profile: Profile) -> Iterator[Section]:
    found = [Part(name, seconds) for name, seconds in profile.startup().items()]
    if not found:
        return
    total = sum(part.seconds for part in found)
    rows = tuple(_row(part, part.label, total) for part in found)
    text = f"It took {duration(total)} until the first step was over."
    if len(profile.sessions()) > 1:
        again = counted(len(profile.sessions()) - 1, "time")
        text = f"At first it took {duration(total)}; it was taken up again {again}."
    yield Section("Start-up", text, ("part", "seconds", "share", "what it is"), rows)


def _over_time(
    profile: Profile, clock: RunClock, findings: Sequence[Finding], mark: str
) -> Iterator[Section]:
    figure = machine_over_time(profile, clock, findings)
    if not figure.data:
        return
    text = "Everything on one axis of time."
    if len(profile.steps()):
        text = "Steps and machine on one axis of time: point at a step to see what the machine did."
    if marked := marked_names(profile):
        text += f" Shaded: {', '.join(Part(name, 0.0).label for name in marked)}."
    if len(profile.nodes) > 1:
        text += f" Machines: {', '.join(profile.nodes)}."
    yield Section("Machine over time", text, figure=_json(figure), mark=mark)


def _cores(profile: Profile, clock: RunClock) -> Iterator[Section]:
    for node in profile.nodes[:1]:
        if profile.samples(node).cpu.shape[1] < _FEW_CORES:
            continue
        figure = plots.cores_over_time(profile, clock, node)
        if figure.data:
            of = f" of {node}" if len(profile.nodes) > 1 else ""
            text = (
                f"How busy each core{of} was: a row a core, the darker the busier. One dark row "
                "among light ones is a program that uses a single core."
            )
            yield Section("Cores", text, figure=_json(figure))


def _steps(profile: Profile, mark: str) -> Iterator[Section]:
    steps, figures = later_steps(profile), step_figures(profile)
    steps = steps if len(steps) else profile.steps()
    if figures is None:
        return
    slow = int(slow_steps(steps).sum())
    text = (
        f"{counted(figures.count, 'step')}, {figures.per_second:.3g} a second: half of them took "
        f"{duration(figures.median)} or less, 95 of 100 took {duration(figures.p95)} or less."
    )
    if slow:
        text += f" {counted(slow, 'step')} took far longer than the others."
    yield Section(
        "Steps",
        text,
        *_slowest(steps),
        figure=_json(plots.phases_of_steps(steps)),
        mark=mark,
        sortable=True,
    )


def _slowest(steps: StepTimes) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """A table of the steps that took longest, with their phases."""
    phases = [name for name in steps.phases if steps.total(name) > 0]
    order = np.argsort(-steps.seconds, kind="stable")[:_SLOWEST]
    digits = max(_decimals(float(np.median(steps.seconds))), 3)
    rows = tuple(
        (
            str(steps.step[at]),
            f"{steps.seconds[at]:.{digits}f}",
            *(f"{steps.phases[name][at]:.{digits}f}" for name in phases),
        )
        for at in order.tolist()
    )
    labels = (f"{Part(name, 0.0).label}, s" for name in phases)
    return ("slowest step", "seconds", *labels), rows


def _processes(profile: Profile) -> Iterator[Section]:
    """Of several processes each one's steps: where one is slower, all others wait for it."""
    if len(profile.ranks) < 2:
        return
    rows = []
    for rank in profile.ranks:
        figures, sessions = step_figures(profile, rank), profile.sessions(rank)
        node = str(sessions[-1].get("node", "")) if sessions else ""
        if figures is None:
            rows.append((str(rank), node, "0", "", "", ""))
            continue
        wait = percent(profile.steps(rank).share("data_wait"))
        median, p95 = f"{figures.median:.4g}", f"{figures.p95:.4g}"
        rows.append((str(rank), node, f"{figures.count:,}", median, p95, wait))
    columns = ("process", "machine", "steps", "median, s", "95th percentile, s", "waits for data")
    text = "Processes take each step together, and the slowest decides how long it takes."
    yield Section("Processes", text, columns, tuple(rows), sortable=True)


def _trace(profile: Profile) -> Iterator[Section]:
    files = profile.traces()
    if not files:
        return
    fact = profile.fact("trace") or {}
    operators = [one for one in fact.get("operators") or [] if isinstance(one, dict)]
    rows = tuple(_operator(one) for one in operators if "name" in one)
    names = ", ".join(path.name for path in files)
    text = (
        f"What PyTorch's profiler recorded of some steps is in {names}, beside this page. Open "
        f'{PERFETTO} and choose "Open trace file".'
    )
    if rows:
        text += " The operators that took longest in themselves:"
    columns = ("operator", "own time, ms", "calls") if rows else ()
    yield Section("Trace", text, columns, rows)


def _operator(one: dict[str, Any]) -> tuple[str, ...]:
    own, calls = one.get("self_ms"), one.get("calls")
    return (
        str(one["name"]),
        f"{own:,.4g}" if isinstance(own, int | float) else "",
        f"{calls:,}" if isinstance(calls, int) else "",
    )


def _machines(profile: Profile) -> Iterator[Section]:
    rows: list[tuple[str, ...]] = []
    for node in profile.nodes:
        samples = profile.samples(node)
        rows += machine_lines(samples)
        every = f"every {samples.interval_s:g} s"
        rows.append(("samples", f"{len(samples):,}, {every}"))
    if rows:
        yield Section("Machine", rows=tuple(rows))


def _json(figure: go.Figure) -> str | None:
    return figure.to_json() if figure.data else None
