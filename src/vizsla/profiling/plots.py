"""Pictures of a profile, as Plotly figures.

Long recordings are thinned out to what a screen can show, their peaks kept, and numbers are cut to
the digits that can be seen. A figure of what was not recorded has no traces (`figure.data` is
empty).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vizsla.figures import ACCENT, HEAT, MUTED, SECOND, dressed, in_figure
from vizsla.profiling.clock import RunClock
from vizsla.profiling.format import STEP_PHASES
from vizsla.profiling.recorded import Profile, StepTimes
from vizsla.profiling.summary import Part, slow_steps
from vizsla.thinning import Floats, columns, significant
from vizsla.words import duration, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {
    "start-up": "#7d6f63",
    "data_wait": ACCENT,
    "transfer": "#c2922b",
    "forward": SECOND,
    "backward": "#4f8f77",
    "optimiser": "#7d8b35",
    "debugger": "#c0697c",
    "other": MUTED,
    "evaluation": "#8b5a8c",
    "checkpoint": "#5c6fb0",
    "fit": "#4f7a5e",
    "trace": "#a3806a",
    "probe": "#a59a6a",
    "final": "#5f8a99",
    "unrecorded": "#c9c1b8",
}
_OWN = "#b08fa8"  # of phases and spans under a user's own name

_STRETCHES = 240  # of steps, as a picture of their phases has them
_CELLS = 16_000  # of a heatmap
_MOST_SLOW = 200
_ABOVE = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


def where_time_went(parts: Sequence[Part], total: float) -> go.Figure:
    """The whole run as one bar, and below it a bar for each part under its name, which says which
    colour is which: steps are there by their phases."""
    figure, shown = _figure(), _shown(parts)
    if not shown or not total:
        return dressed(figure)
    names = [f"{in_figure(part.label)}  {percent(part.seconds / total)}" for part in shown]
    for part, name in zip(shown, names):
        figure.add_bar(
            y=["<b>whole run</b>", name], x=significant(np.full(2, 100 * part.seconds / total)),
            orientation="h", name=in_figure(part.label), marker_color=_colour(part.name),
            marker_line_width=0, customdata=[duration(part.seconds)] * 2,
            hovertemplate="%{customdata}, %{x:.3g} %",
        )  # fmt: skip
    figure.update_layout(
        barmode="stack", bargap=0.35, showlegend=False, height=27 * len(shown) + 110
    )
    figure.update_xaxes(title_text="percent of the time", range=[0, 100], fixedrange=True)
    figure.update_yaxes(autorange="reversed", automargin=True, fixedrange=True, showgrid=False)
    return dressed(figure).update_layout(margin_l=10)


def phases_of_steps(steps: StepTimes) -> go.Figure:
    """What a step's time goes to, over the training: means of as many steps as it takes, their
    95th percentile, and the steps that were far slower."""
    figure = _figure()
    if not len(steps):
        return dressed(figure)
    starts = columns(steps.step, _STRETCHES)
    counts = np.diff([*starts, len(steps)])
    middle = steps.step[starts + counts // 2].tolist()
    for name, column in _leading_phases(steps).items():
        figure.add_scatter(
            x=middle, y=significant(np.add.reduceat(column, starts) / counts),
            name=in_figure(Part(name, 0.0).label), stackgroup="phases", mode="lines",
            line={"width": 0.5, "color": _colour(name)}, fillcolor=_colour(name),
            hovertemplate="%{y:.3g} s",
        )  # fmt: skip
    top = _ceiling(steps.seconds)
    if counts.min() >= 5:
        p95 = [np.quantile(one, 0.95) for one in np.split(steps.seconds, starts[1:])]
        figure.add_scatter(
            x=middle, y=significant(np.array(p95)), name="95th percentile", mode="lines",
            line={"color": MUTED, "dash": "dot", "width": 1.5}, hovertemplate="%{y:.3g} s",
        )  # fmt: skip
    _mark_slow(figure, steps, top)
    figure.update_layout(
        xaxis_title="step", yaxis_title="seconds a step", legend=_ABOVE, showlegend=True,
        hovermode="x unified", height=430,
    )  # fmt: skip
    figure.update_yaxes(range=[0, top])
    return dressed(figure)


def cores_over_time(profile: Profile, clock: RunClock, node: str) -> go.Figure:
    """Each core's use over time: a row a core."""
    figure, samples = _figure(), profile.samples(node)
    cores = samples.cpu.shape[1]
    if cores < 2 or len(samples) < 2:
        return dressed(figure)
    starts = columns(samples.time, max(50, _CELLS // cores))
    counts = np.diff([*starts, len(samples)])
    known = ~np.isnan(samples.cpu)
    sums = np.add.reduceat(np.where(known, samples.cpu, 0.0), starts, axis=0)
    present = np.add.reduceat(known.astype(np.float64), starts, axis=0)
    means = np.where(present > 0, sums / np.maximum(present, 1), np.nan)
    unit, scale = time_unit(clock)
    figure.add_heatmap(
        x=times(clock, samples.time[starts + counts // 2]), y=list(range(cores)),
        z=[significant(row, 3) for row in means.T], zmin=0, zmax=100, colorscale=HEAT,
        hoverongaps=False, colorbar={"title": {"text": "percent"}},
        hovertemplate=f"core %{{y}} at %{{x:.4g}} {unit}: %{{z:.0f}} %<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(title_text=f"{unit} since the run began", showgrid=False)
    figure.update_yaxes(
        title_text="core", autorange="reversed", showgrid=False, zeroline=False,
        dtick=max(1, cores // 8), tick0=0,
    )  # fmt: skip
    return dressed(figure).update_layout(height=min(560, 150 + 12 * cores + 60))


def time_unit(clock: RunClock) -> tuple[str, float]:
    """The unit of a run's time axis, and its seconds."""
    if clock.total < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if clock.total < 3 * 3600 else ("hours", 3600.0)


def times(clock: RunClock, moments: Floats) -> list[float | int | None]:
    """Moments on the time axis, as exactly as it can be zoomed."""
    scale = time_unit(clock)[1]
    digits = max(0, 5 - len(str(int(clock.total / scale))))
    return [
        int(one) if float(one).is_integer() else one
        for one in np.round(clock.seconds(moments) / scale, digits).tolist()
    ]


def ceiling_of(steps: StepTimes) -> float:
    """The upper end of an axis of steps' seconds."""
    return _ceiling(steps.seconds)


def _shown(parts: Sequence[Part]) -> list[Part]:
    """Steps by their phases, the rest as it is: start-up has a section of its own."""
    shown: list[Part] = []
    for part in parts:
        shown += part.parts if part.name == "steps" else [part]
    return shown


def _leading_phases(steps: StepTimes) -> dict[str, Floats]:
    """Phases that can be seen, in the order of a step; small ones are put to the rest."""
    names = [name for name in (*STEP_PHASES, *steps.phases) if name in steps.phases]
    names = [name for name in dict.fromkeys(names) if name != "other"]
    large = [name for name in names if steps.share(name) >= 0.005]
    rest = steps.phases.get("other", np.zeros(len(steps)))
    rest = rest + sum(steps.phases[name] for name in names if name not in large)
    return {**{name: steps.phases[name] for name in large}, "other": rest}


def _mark_slow(figure: go.Figure, steps: StepTimes, top: float) -> None:
    slow = np.flatnonzero(slow_steps(steps))
    slow = np.sort(slow[np.argsort(steps.seconds[slow])[-_MOST_SLOW:]])
    if len(slow):
        figure.add_scatter(
            x=steps.step[slow].tolist(), y=significant(np.minimum(steps.seconds[slow], top)),
            customdata=significant(steps.seconds[slow]), mode="markers", name="slow steps",
            marker={"color": ACCENT, "size": 6, "symbol": "circle-open", "line": {"width": 1.5}},
            hovertemplate="step %{x}: %{customdata} s", cliponaxis=False,
        )  # fmt: skip


def _ceiling(seconds: Floats) -> float:
    """An end of an axis that a lone slow step does not decide."""
    most, usual = float(seconds.max()), float(np.quantile(seconds, 0.95))
    return 1.05 * most if most <= 4 * usual else 3 * usual


def _colour(name: str) -> str:
    return COLOURS.get(name, _OWN)


def _figure() -> go.Figure:
    import plotly.graph_objects as graph  # takes a moment

    return graph.Figure()
