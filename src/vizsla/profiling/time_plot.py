"""Steps and machine on one axis of time: hover over a step, and see what the machine did.

Rows above one another share a single x axis, not axes that match: only so does Plotly show the
values of all rows at once. A row has one or two curves, the second dotted, and its heading says
which is which, so that no legend is needed and colours alone tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vizsla.figures import ACCENT, SECOND, SERIES, dressed, faded, in_figure
from vizsla.findings import Finding
from vizsla.profiling.clock import RunClock
from vizsla.profiling.plots import ceiling_of, time_unit, times
from vizsla.profiling.recorded import Profile, Span, StepTimes
from vizsla.profiling.samples import Samples
from vizsla.profiling.summary import slow_steps
from vizsla.thinning import Floats, extremes, finite, significant

if TYPE_CHECKING:
    import plotly.graph_objects as go

_POINTS = 800  # of a curve
_STEPS = 700  # a dot each, which takes longer to draw than a curve
_MOST_MARKED = 150  # stretches of evaluation and the like
_MOST_SLOW = 300
_FEW = 8  # machines or devices with a curve each
_ROW_PX, _GAP_PX = 112, 44
_LINE_PX = 32  # of a finding
_LITTLE_TRAFFIC = 1e5  # bytes a second, below which they are told in kB
_FOUND = "When it was that findings tell of"
_MARKED = {"evaluation": "#8b5a8c", "checkpoint": "#5c6fb0", "trace": "#a3806a", "final": "#5f8a99"}


@dataclass(frozen=True)
class Curve:
    """One line: where, what, and how its value is called and written."""

    name: str
    time: Floats
    values: Floats
    unit: str = ""
    colour: str = SECOND
    is_dotted: bool = False


@dataclass(frozen=True)
class Row:
    """One panel. `band` are the lower and upper end of a ground behind the first curve."""

    title: str
    curves: Sequence[Curve]
    band: tuple[Floats, Floats] | None = None
    top: float | None = None
    height_px: int = _ROW_PX


def machine_over_time(
    profile: Profile, clock: RunClock, findings: Sequence[Finding] = (), rank: int = 0
) -> go.Figure:
    """Steps of one process, and the machines' processors, memory, disk, network and GPUs; below
    them when it was that findings tell of, where they say so."""
    rows = list(_rows(profile))
    steps = profile.steps(rank)
    figure = _figure()
    if not rows:  # steps alone have a figure of their own
        return dressed(figure)
    if len(steps):
        _draw_steps(figure, steps, clock)
        rows.insert(0, Row("Seconds a step; slow ones in orange", ()))
    when = _when(findings)
    if when:
        rows.append(Row(_FOUND, (), top=len(when), height_px=_LINE_PX * len(when)))
    for number, row in enumerate(rows, start=1):
        _draw(figure, clock, row, number)
    if when:
        _draw_findings(figure, when, clock, _axis(len(rows)))
    _mark(figure, profile.spans(rank), clock)
    _lay_out(figure, rows, clock)
    return figure


def _rows(profile: Profile) -> Iterator[Row]:
    every = [profile.samples(node) for node in profile.nodes[:_FEW]]
    every = [samples for samples in every if len(samples)]
    if not every:
        return
    if len(every) > 1:
        yield from _rows_of_many(every)
    else:
        yield from _rows_of_one(every[0])
    for title, name, unit in (
        ("GPU in use, %", "utilization", "%"),
        ("GPU memory, GB", "memory_bytes", "GB"),
    ):
        curves = _gpu_curves(every, name, unit)
        if curves:
            several = ": a line a GPU" if len(curves) > 1 else ""
            yield Row(f"{title}{several}", curves, top=100 if unit == "%" else None)


def _rows_of_one(samples: Samples) -> Iterator[Row]:
    if _known(samples.cpu_mean):
        band = (_reduced(np.fmin, samples.cpu), _reduced(np.fmax, samples.cpu))
        several = samples.cpu.shape[1] > 1
        title = "Cores in use, %" + (": mean; band: least to most" if several else "")
        mean = Curve("cores", samples.time, samples.cpu_mean, "%")
        yield Row(title, [mean], band if several else None, 100)
    for title, pairs, unit in _PAIRS:
        known = [
            (number, name, samples.columns[column])
            for number, (name, column) in enumerate(pairs)
            if _known(samples.columns.get(column, np.zeros(0)))
        ]
        unit, share = _scaled(unit, [values for *_, values in known])
        curves = [
            Curve(
                name, samples.time, values / share, unit,
                ACCENT if number else SECOND, bool(number),
            )
            for number, name, values in known
        ]  # fmt: skip
        if curves:
            yield Row(title.format(unit=unit), curves)


def _scaled(unit: str, columns: Sequence[Floats]) -> tuple[str, float]:
    """A unit in which the numbers are no tiny ones, and its bytes."""
    if unit == "GB":
        return unit, 1e9
    little = all(np.nanmax(one) < _LITTLE_TRAFFIC for one in columns)
    return ("kB/s", 1e3) if little else (unit, 1e6)


_PAIRS = (
    ("Memory, {unit}: the machine's; dotted: the run's",
     (("memory", "memory_bytes"), ("memory of the run", "tree_bytes")), "GB"),
    ("Disk, {unit}: read; dotted: written",
     (("disk read", "read_bytes"), ("disk written", "write_bytes")), "MB/s"),
    ("Network, {unit}: received; dotted: sent",
     (("received", "received_bytes"), ("sent", "sent_bytes")), "MB/s"),
)  # fmt: skip


def _rows_of_many(every: Sequence[Samples]) -> Iterator[Row]:
    """A curve a machine."""
    use = [
        Curve(f"cores of {one.node}", one.time, one.cpu_mean, "%", _series(number))
        for number, one in enumerate(every)
        if _known(one.cpu_mean)
    ]
    if use:
        yield Row("Cores in use, %: a line a machine", use, top=100)
    for title, column, unit, share in (
        ("Memory, GB: a line a machine", "memory_bytes", "GB", 1e9),
        ("Disk read, MB/s: a line a machine", "read_bytes", "MB/s", 1e6),
        ("Network received, MB/s: a line a machine", "received_bytes", "MB/s", 1e6),
    ):
        curves = [
            Curve(
                f"{title.partition(',')[0].lower()} of {one.node}", one.time,
                one.columns[column] / share, unit, _series(number),
            )
            for number, one in enumerate(every)
            if _known(one.columns.get(column, np.zeros(0)))
        ]  # fmt: skip
        if curves:
            yield Row(title, curves)


def _gpu_curves(every: Sequence[Samples], column: str, unit: str) -> list[Curve]:
    found = [
        (samples, number, device[column])
        for samples in every
        for number, device in enumerate(samples.gpus)
        if _known(device.get(column, np.zeros(0)))
    ][:_FEW]
    what = "GPU memory" if unit == "GB" else "GPU"
    return [
        Curve(
            f"{what} {number}" + (f" of {samples.node}" if len(every) > 1 else ""), samples.time,
            values / (1e9 if unit == "GB" else 1), unit, _series(place),
        )
        for place, (samples, number, values) in enumerate(found)
    ]  # fmt: skip


def _draw(figure: go.Figure, clock: RunClock, row: Row, number: int) -> None:
    axis = _axis(number)
    if row.band is not None:
        low, high = row.band
        time = row.curves[0].time
        kept = extremes(finite(high), _POINTS // 2)
        kept = kept[np.isfinite(low[kept]) & np.isfinite(high[kept])]
        x = times(clock, time[kept])
        figure.add_scatter(
            x=[*x, *x[::-1]], y=[*significant(high[kept], 3), *significant(low[kept], 3)[::-1]],
            yaxis=axis, fill="toself", fillcolor=faded(row.curves[0].colour, 0.2), mode="lines",
            line_width=0, hoverinfo="skip",
        )  # fmt: skip
    for curve in row.curves:
        kept = extremes(finite(curve.values), _POINTS)
        figure.add_scatter(
            x=times(clock, curve.time[kept]), y=significant(curve.values[kept]), yaxis=axis,
            name=in_figure(curve.name), mode="lines" if len(kept) > 1 else "markers",
            line={"color": curve.colour, "width": 1.5, "dash": "dot" if curve.is_dotted else None},
            hovertemplate=f"{in_figure(curve.name)} %{{y:.4g}} {curve.unit}<extra></extra>",
        )  # fmt: skip


def _draw_steps(figure: go.Figure, steps: StepTimes, clock: RunClock) -> None:
    """One curve, for of two the label would show the nearest point of each. A step that is slower
    than the axis is long stands at its end, with its own number."""
    top, is_slow = ceiling_of(steps), slow_steps(steps)
    slow = np.flatnonzero(is_slow)
    slow = slow[np.argsort(steps.seconds[slow])[-_MOST_SLOW:]]
    usual = np.flatnonzero(~is_slow)
    usual = usual[extremes(steps.seconds[usual], _STEPS)]
    shown = np.sort(np.concatenate([usual, slow]))
    small = 3 if len(shown) > 200 else 5
    figure.add_scatter(
        x=times(clock, steps.time[shown] + steps.seconds[shown] / 2),
        y=significant(np.minimum(steps.seconds[shown], top)),
        customdata=[
            [step, seconds]
            for step, seconds in zip(steps.step[shown].tolist(), significant(steps.seconds[shown]))
        ],
        yaxis="y", name="step", mode="markers",
        marker={
            "color": [ACCENT if one else SECOND for one in is_slow[shown].tolist()],
            "size": [6 if one else small for one in is_slow[shown].tolist()],
            "line": {"width": 0},
        },
        hovertemplate="step %{customdata[0]}: %{customdata[1]} s<extra></extra>",
    )  # fmt: skip


def _when(findings: Sequence[Finding]) -> dict[str, list[tuple[float, float]]]:
    """The moments of each rule that tells of any."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one in findings:
        if moments := _moments(one):
            found[one.rule] = found.get(one.rule, []) + moments
    return found


def _moments(finding: Finding) -> list[tuple[float, float]]:
    """From when to when it was, in seconds of the run, as a rule's evidence says."""
    told = finding.evidence.get("seconds_from_start")
    pairs = []
    for one in told if isinstance(told, list | tuple) else ():
        ends = one if isinstance(one, list | tuple) else (one, one)
        if len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
            pairs.append((float(ends[0]), float(ends[1])))
    return pairs


def _draw_findings(
    figure: go.Figure, when: Mapping[str, Sequence[tuple[float, float]]], clock: RunClock, axis: str
) -> None:
    """A line of strokes a rule, under its name; a stroke of a moment is a dot."""
    scale = time_unit(clock)[1]
    for number, (rule, pairs) in enumerate(when.items()):
        height = len(when) - number - 0.75
        figure.add_scatter(
            x=[round(one / scale, 4) for start, end in pairs for one in (start, end, end)],
            y=[one for _ in pairs for one in (height, height, None)], yaxis=axis, name=rule,
            mode="lines+markers", hoverinfo="skip", line={"color": ACCENT, "width": 5},
            marker={"color": ACCENT, "size": 5},
        )  # fmt: skip
        figure.add_annotation(
            text=in_figure(rule), x=0, xref="paper", xanchor="left", y=height, yref=axis,
            yanchor="bottom", yshift=3, showarrow=False, font_size=11,
        )  # fmt: skip


def marked_names(profile: Profile, rank: int = 0) -> list[str]:
    """What is shaded in the figure, in the order in which it happens."""
    names = {span.name for span in profile.spans(rank)}
    return [name for name in _MARKED if name in names]


def _mark(figure: go.Figure, spans: Sequence[Span], clock: RunClock) -> None:
    """The ground of all rows where something else than steps went on."""
    marked = (span for span in spans if span.name in _MARKED)
    shown = sorted(marked, key=lambda one: -one.seconds)[:_MOST_MARKED]
    shapes = []
    for span in shown:
        start, end = times(clock, np.array([span.time, span.time + span.seconds]))
        shapes.append(
            {
                "type": "rect", "x0": start, "x1": end, "xref": "x", "y0": 0, "y1": 1,
                "yref": "paper", "layer": "below", "line": {"width": 0},
                "fillcolor": faded(_MARKED[span.name], 0.18),
            }
        )  # fmt: skip
    figure.update_layout(shapes=shapes)  # all at once: one after the other takes a second


def _lay_out(figure: go.Figure, rows: Sequence[Row], clock: RunClock) -> None:
    """Rows from top to bottom, each under its heading, over the one axis of time."""
    inside = sum(row.height_px + _GAP_PX for row in rows)
    layout: dict[str, Any] = {}
    above = 0
    for number, row in enumerate(rows, start=1):
        end = 1 - (above + _GAP_PX) / inside
        above += row.height_px + _GAP_PX
        layout[f"yaxis{number if number > 1 else ''}"] = {
            "domain": [max(0.0, end - row.height_px / inside), end], "anchor": "x", "nticks": 4,
            "rangemode": "tozero", "range": None if row.top is None else [0, row.top],
            "zeroline": False, "showticklabels": row.title != _FOUND,
            "showgrid": row.title != _FOUND,
        }  # fmt: skip
        figure.add_annotation(
            text=row.title, x=0, xref="paper", xanchor="left", y=end, yref="paper",
            yanchor="bottom", showarrow=False, font_size=12, align="left",
        )  # fmt: skip
    figure.update_layout(
        **layout, showlegend=False, hovermode="x unified", hoversubplots="axis", hoverdistance=-1,
        height=inside + 60,
    )  # fmt: skip
    unit, scale = time_unit(clock)
    end = max(clock.total / scale, 1e-3)
    figure.update_xaxes(
        title_text=f"{unit} since the run began", anchor=_axis(len(rows)), zeroline=False,
        range=[-0.01 * end, 1.01 * end],
        hoverformat=".4~g", unifiedhovertitle_text=f"after %{{x:.4~g}} {unit}",
    )  # fmt: skip
    dressed(figure).update_layout(margin={"t": 8, "l": 48})


def _axis(number: int) -> str:
    return f"y{number if number > 1 else ''}"


def _series(number: int) -> str:
    return SERIES[(number + 1) % len(SERIES)]


def _reduced(how: np.ufunc, matrix: Floats) -> Floats:
    """The least or largest number of each sample, NaN where there is none."""
    found: Floats = how.reduce(matrix, axis=1)
    return found


def _known(values: Floats) -> bool:
    return bool(np.isfinite(values).any())


def _figure() -> go.Figure:
    import plotly.graph_objects as graph  # takes a moment

    return graph.Figure()
