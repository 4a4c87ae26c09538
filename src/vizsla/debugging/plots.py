"""Pictures of captured tensors, as Plotly figures.

A network has far more layers than a picture has room for lines, so layers become the rows of a
heatmap, steps its columns, and lines are kept for the few. Long recordings are thinned out to what
a screen can show, and values that are no numbers are marked or left blank: they never decide a
scale. A figure of what was not recorded has no traces (`figure.data` is empty).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vizsla.debugging.format import EVAL_LOSS, GRADIENT, IN_LINES
from vizsla.debugging.recording import TensorUnavailable
from vizsla.debugging.tensors import Series, Tensors
from vizsla.debugging.thinning import (
    SMOOTHED_FROM,
    Steps,
    axis_range,
    log_range,
    mass_range,
    power_ticks,
    rebinned,
    smoothed,
    thinned,
)
from vizsla.figures import ACCENT, HEAT, MUTED, SECOND, SERIES, dressed, faded, in_figure
from vizsla.thinning import Floats, columns, evenly, finite, largest

if TYPE_CHECKING:
    import plotly.graph_objects as go

FEW = 6  # tensors that can be told apart as lines, or be shown with a panel each
DEAD_BELOW = 0.01  # a unit that is active for a smaller share of its values counts as dead
USUAL_UPDATES = (1e-4, 1e-2)
_LARGEST_UPDATE = 1e3  # that is shown: all above is as bad

_POINTS = 2000  # of a curve
_COLUMNS = 400  # of a heatmap
_HISTOGRAMS = 60  # of a tensor; each is read on its own
_LEVELS = 64
_LONGEST_NAME = 34
_PORT = re.compile(r"_(?:in|out)put_\d+$")
_ABOVE = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


def losses(tensors: Tensors) -> go.Figure:
    """The training loss over steps, raw and as a running median, and the validation losses at the
    training step after which they were measured."""
    train, again = tensors.losses("train"), tensors.losses("train", EVAL_LOSS)
    found = tensors.evaluations()
    valid = Series(
        np.array([one.step for one in found], np.int64),
        np.array([one.valid_loss for one in found], np.float64),
    )
    figure = _figure()
    if len(train) >= SMOOTHED_FROM:
        faint = {"color": MUTED, "width": 1}
        _add_line(figure, train, "training, each step", mode="lines", line=faint, opacity=0.8)
        _add_line(figure, smoothed(train), "training", mode="lines", line_color=ACCENT)
    else:
        _add_line(figure, train, "training", line_color=ACCENT)
    _add_line(figure, again, "training, in eval mode", line_color=SERIES[2])
    _add_line(figure, valid, "validation", mode="lines+markers", line_color=SECOND)
    _mark_not_finite(figure, train, _scale(figure, (train, again, valid)))
    figure.update_layout(xaxis_title="training step", yaxis_title="loss", legend=_ABOVE)
    return _finished(figure)


def norms(tensors: Tensors, collection: str = "gradients") -> go.Figure:
    """The l2 norm of each tensor of a collection over training steps, on a scale of powers of ten:
    a row a tensor, in the order of the network. A norm of zero has the lightest colour."""
    return _norms_of(tensors, tensors.tensor_names(collection=collection, mode="train"), "train")


def updates(tensors: Tensors) -> go.Figure:
    """How much a step changes the weights, as a share of them: the median of all layers with their
    5th and 95th percentile, before the range that is usual where training goes well."""
    matrix = tensors.matrix("update", collection="weights")
    values = np.where(matrix.values > 0, finite(matrix.values), np.nan)
    some = np.flatnonzero(~np.isnan(values).all(axis=1))
    figure = _figure()
    if not len(some):
        return dressed(figure)
    some = some[evenly(some, _POINTS)]
    low, middle, high = np.nanpercentile(values[some], (5, 50, 95), axis=1)
    figure.add_hrect(
        *USUAL_UPDATES, fillcolor=MUTED, opacity=0.25, line_width=0, layer="below",
        name="usual", showlegend=True,
    )  # fmt: skip
    _add_band(figure, matrix.steps[some], low, high, ACCENT, "5 % to 95 % of layers")
    _add_line(figure, Series(matrix.steps[some], middle), "median of layers", line_color=ACCENT)
    # Of weights that begin at zero the first update is endless: the band may leave the axis.
    least = min(USUAL_UPDATES[0], max(low.min(), middle.min() / 100))
    most = min(max(USUAL_UPDATES[1], 2 * np.quantile(high, 0.9)), _LARGEST_UPDATE)
    _log_axis(figure, np.log10(least) - 0.3, np.log10(most))
    figure.update_layout(xaxis_title="training step", yaxis_title="update / weight", legend=_ABOVE)
    return _finished(figure)


def dead_relus(tensors: Tensors) -> go.Figure:
    """The share of each ReLU's units (channels or features) that were active for less than 1 % of
    their values at a step: a row a ReLU."""
    names = tensors.tensor_names(collection="relu_output", mode="train")
    found = {name: units for name in names if len((units := tensors.units(name))[0])}
    if not found:
        return dressed(_figure())
    steps = np.unique(np.concatenate([mine for mine, _ in found.values()]))
    dead = np.full((len(steps), len(found)), np.nan)
    for column, (mine, shares) in enumerate(found.values()):
        dead[np.searchsorted(steps, mine), column] = np.mean(shares < DEAD_BELOW, axis=1)
    return _heatmap(
        steps, tuple(found), dead, dead, np.zeros(dead.shape, bool),
        hovertemplate="%{y}<br>step %{x}: %{z:.1%} of units dead<extra></extra>",
        zmin=0, zmax=max(float(np.nanmax(dead)), 0.1),
        colorbar={"title": {"text": "dead"}, "tickformat": ".0%"},
    )  # fmt: skip


def histograms(tensors: Tensors, names: Sequence[str]) -> go.Figure:
    """How the values of a few tensors are spread, over steps: a panel a tensor. The stronger the
    colour, the more values; at most 60 steps of each, at even distances."""
    drawn = [(name, found) for name in names if (found := _spread(tensors, name)) is not None]
    if not drawn:
        return dressed(_figure())
    from plotly.subplots import make_subplots

    height = 170 * len(drawn) + 80
    figure = make_subplots(
        rows=len(drawn), cols=1, shared_xaxes=True, vertical_spacing=36 / height,
        subplot_titles=[_label(name) for name, _ in drawn],
    )  # fmt: skip
    for row, (_, (steps, middles, shares)) in enumerate(drawn, start=1):
        figure.add_heatmap(
            x=steps, y=middles, z=shares.T, colorscale=HEAT, showscale=False, zmin=0,
            zmax=float(np.quantile(shares, 0.99)) or 1.0,
            hovertemplate="step %{x}, about %{y:.3g}: %{z:.1%} of values<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
    figure.update_annotations(x=0, xanchor="left", font_size=12)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, zeroline=False, nticks=5)
    figure.update_xaxes(title_text="step", row=len(drawn), col=1)
    figure.update_layout(height=height)
    return _finished(figure).update_layout(margin_t=36)


def of_tensors(tensors: Tensors, regex: str) -> dict[str, go.Figure]:
    """What can be drawn of the tensors whose name matches, by heading: losses and norms over steps;
    of six or fewer tensors also their means, quantiles and histograms. A tensor is drawn in the
    first mode in which it was recorded, training before evaluation.

    Raises `TensorUnavailable` if there is nothing to draw.
    """
    figures: dict[str, go.Figure] = {}
    seen: set[str] = set()
    for mode in tensors.modes():
        names = [name for name in tensors.tensor_names(regex, mode=mode) if name not in seen]
        seen.update(names)
        about = "" if mode == "train" else f" ({mode})"
        for title, figure in _of_mode(tensors, names, mode).items():
            if figure.data:
                figures[f"{title}{about}"] = figure
    if not figures:
        some = tensors.tensor_names()[:3]
        raise TensorUnavailable(
            f"{tensors.path} recorded no tensor to draw whose name matches {regex!r}. It recorded "
            f"{', '.join([*some, '...']) if some else 'none at all'}"
        )
    return figures


def only_step(figure: go.Figure) -> int | None:
    """The step of a figure in which there is no other."""
    steps = np.unique(np.concatenate([trace.x for trace in figure.data] or [[]]))
    return int(steps[0]) if len(steps) == 1 else None


def _of_mode(tensors: Tensors, names: Sequence[str], mode: str) -> dict[str, go.Figure]:
    homes = {name: tensors.tensor(name).collection for name in names}
    numbers = [name for name in names if homes[name] == "losses"]
    reduced = [name for name in names if homes[name] not in IN_LINES]
    figures: dict[str, go.Figure] = {}
    if numbers:
        figures["Losses"] = _lines({one: tensors.losses(mode, one) for one in numbers}, "loss")
    if len(reduced) > FEW:
        figures["Norms"] = _norms_of(tensors, reduced, mode)
    elif reduced:
        matrix = tensors.matrix("l2", names=reduced, mode=mode)
        figures["Means"] = _means(tensors, reduced, mode)
        figures["Norms"] = _lines({one: matrix.series(one) for one in reduced}, "l2 norm")
        figures["Histograms"] = histograms(tensors, reduced)
    return figures


def _norms_of(tensors: Tensors, names: Sequence[str], mode: str) -> go.Figure:
    l2, nans, infs = (tensors.matrix(one, names=names, mode=mode) for one in ("l2", "nans", "infs"))
    if not l2.present.any():
        return dressed(_figure())
    broken = l2.present & ((nans.values + infs.values > 0) | ~np.isfinite(l2.values))
    told = np.where(broken & (l2.values == 0), np.nan, finite(l2.values))  # no value was a number
    positive = told > 0
    powers = np.full(told.shape, np.nan)
    powers[positive] = np.log10(told[positive])
    # What explodes may leave the scale: the rest is still told apart.
    low, high = np.quantile(powers[positive], (0.01, 0.99)) if positive.any() else (-1.0, 0.0)
    high = max(high, low + 0.7)
    powers[told == 0] = low
    ticks = power_ticks(low, high)
    return _heatmap(
        l2.steps, l2.names, powers, told, broken, zmin=float(low), zmax=float(high),
        hovertemplate="%{y}<br>step %{x}: %{customdata:.3g}<extra></extra>",
        colorbar={
            "title": {"text": "l2 norm"},
            "tickvals": np.log10(ticks).tolist(),
            "ticktext": [f"{tick:g}" for tick in ticks],
        },
    )  # fmt: skip


def _heatmap(
    steps: Steps, names: Sequence[str], drawn: Floats, told: Floats,
    broken: NDArray[np.bool_], **looks: Any,
) -> go.Figure:  # fmt: skip
    """A row for each tensor, the first on top; arrays are (steps, names), `told` is `%{customdata}`
    in the template. Of several steps in a column the largest value counts. Crosses mark tensors
    with values that are `broken`."""
    starts, labels = columns(steps, _COLUMNS), _labels(names)
    figure = _figure()
    figure.add_heatmap(
        x=steps[starts], y=labels, z=largest(drawn, starts).T, colorscale=HEAT,
        customdata=largest(told, starts).T, hoverongaps=False, **looks,
    )  # fmt: skip
    crosses = np.argwhere(broken)[:_POINTS]
    if len(crosses):
        figure.add_scatter(
            x=steps[crosses[:, 0]], y=[labels[column] for column in crosses[:, 1]],
            hovertemplate="%{y}<br>step %{x}: not finite<extra></extra>", **_CROSSES,
        )  # fmt: skip
    # Crosses would else ask for room around the rows.
    half = (steps[-1] - steps[0]) / (2 * max(len(starts) - 1, 1)) or 0.5
    figure.update_xaxes(showgrid=False, zeroline=False, range=[steps[0] - half, steps[-1] + half])
    figure.update_yaxes(
        type="category", range=[len(labels) - 0.5, -0.5], dtick=1, tickfont_size=10,
        automargin=True, showgrid=False,
    )  # fmt: skip
    figure.update_layout(
        xaxis_title="training step", height=max(352, 13 * len(labels) + 110), legend=_ABOVE
    )
    return _finished(figure)


def _means(tensors: Tensors, names: Sequence[str], mode: str) -> go.Figure:
    """Means as lines, each in the band from its 5th to its 95th percentile."""
    parts = [
        tensors.matrix(one, names=names, mode=mode) for one in ("mean", "quantile_5", "quantile_95")
    ]
    figure, shown = _figure(), []
    for name, colour in zip(names, SERIES, strict=False):
        mean, low, high = (part.series(name) for part in parts)
        some = evenly(mean.steps, _POINTS)
        _add_band(figure, mean.steps[some], low.values[some], high.values[some], colour)
        _add_line(
            figure, Series(mean.steps[some], mean.values[some]), _label(name), line_color=colour
        )
        shown += [low.values, high.values, mean.values]
    figure.update_yaxes(range=axis_range(shown))
    figure.update_layout(xaxis_title="step", yaxis_title="value", legend=_ABOVE)
    return _finished(figure)


def _lines(series: dict[str, Series], what: str) -> go.Figure:
    figure = _figure()
    for at, (name, one) in enumerate(series.items()):
        _add_line(figure, one, _label(name), line_color=SERIES[at % len(SERIES)])
    _scale(figure, list(series.values()))
    figure.update_layout(xaxis_title="step", yaxis_title=what, legend=_ABOVE, showlegend=True)
    return _finished(figure)


def _spread(tensors: Tensors, name: str) -> tuple[Steps, Floats, Floats] | None:
    """Steps, the middles of common levels, and the share of values (steps, levels) in each."""
    tensor = tensors.tensor(name)
    steps = np.array(tensor.steps(), np.int64)
    found = []
    for step in steps[evenly(steps, _HISTOGRAMS)].tolist():
        try:
            counts, edges = tensor.histogram(step)
        except TensorUnavailable:  # its file is gone, or it is a loss
            continue
        if counts.sum() and np.isfinite(edges).all():
            found.append((step, counts / counts.sum(), edges))
    if not found:
        return None
    # Neither steps that explode nor a few outliers shall squeeze the rest into a line.
    ends = np.array([mass_range(counts, edges) for _, counts, edges in found])
    reach = np.abs(ends).max(axis=1)
    usual = ends[reach <= 8 * np.median(reach)]
    low, high = float(usual[:, 0].min()), float(usual[:, 1].max())
    pad = 0.02 * (high - low) or 1e-3 * max(abs(high), 1.0)
    levels = np.linspace(low - pad, high + pad, _LEVELS + 1)
    shares = np.stack([rebinned(counts, edges, levels) for _, counts, edges in found])
    return np.array([step for step, _, _ in found]), (levels[1:] + levels[:-1]) / 2, shares


_CROSSES: dict[str, Any] = {
    "mode": "markers",
    "name": "not finite",
    "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": SECOND}},
}


def _mark_not_finite(figure: go.Figure, series: Series, height: float) -> None:
    """Crosses along the bottom at the steps whose value is no number."""
    broken = series.steps[~np.isfinite(series.values)][:_POINTS]
    if len(broken):
        figure.add_scatter(
            x=broken, y=np.full(len(broken), height), cliponaxis=False,
            hovertemplate="step %{x}: not finite<extra></extra>", **_CROSSES,
        )  # fmt: skip


def _add_line(figure: go.Figure, series: Series, name: str, **looks: Any) -> None:
    """A curve, if there is anything of it; with a marker a point where there are few."""
    if not len(series):
        return
    shown = thinned(series, _POINTS)
    looks = {"mode": "lines" if len(series) > 60 else "lines+markers", "marker_size": 5, **looks}
    figure.add_scatter(x=shown.steps, y=shown.values, name=name, **looks)


def _add_band(
    figure: go.Figure, steps: Steps, low: Floats, high: Floats, colour: str, name: str | None = None
) -> None:
    """The ground between two curves, where both are numbers."""
    there = np.isfinite(low) & np.isfinite(high)
    steps, low, high = steps[there], low[there], high[there]
    figure.add_scatter(
        x=np.concatenate([steps, steps[::-1]]), y=np.concatenate([high, low[::-1]]),
        fill="toself", fillcolor=faded(colour, 0.18), mode="lines", line_width=0,
        name=name, showlegend=name is not None, hoverinfo="skip",
    )  # fmt: skip


def _scale(figure: go.Figure, curves: Sequence[Series]) -> float:
    """Scale an axis for curves, by powers of ten where they lie far apart; gives its lower end."""
    if (powers := log_range(curves)) is not None:
        _log_axis(figure, *powers)
        return float(10.0 ** powers[0])
    shown = axis_range([one.values for one in curves])
    figure.update_yaxes(range=shown)
    return shown[0] if shown else 0.0


def _log_axis(figure: go.Figure, low: float, high: float) -> None:
    """From one power of ten to another, with six labels at most."""
    figure.update_yaxes(type="log", dtick=max(1, np.ceil((high - low) / 5)), range=[low, high])


def _finished(figure: go.Figure) -> go.Figure:
    """Dressed; where all is of one step, with that step alone on its axis."""
    if (step := only_step(figure)) is not None:
        figure.update_xaxes(tickvals=[step], showgrid=False, zeroline=False)
    return dressed(figure)


def _labels(names: Sequence[str]) -> list[str]:
    """Names beside an axis: without what all of them begin and end with, short, and different from
    one another."""
    ports = {found[0] if (found := _PORT.search(name)) else "" for name in names}
    start = len(GRADIENT) if all(name.startswith(GRADIENT) for name in names) else 0
    end = len(ports.pop()) if len(ports) == 1 else 0
    bare = [name[start : len(name) - end] for name in names]
    short = [_label(name) for name in bare]
    return short if len(set(short)) == len(short) else [in_figure(name) for name in bare]


def _label(name: str) -> str:
    """A name as text, for Plotly takes angle brackets for markup; long ones without the middle."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 21]}…{name[-20:]}"
    return in_figure(name)


def _figure() -> go.Figure:
    import plotly.graph_objects as graph  # takes a moment

    return graph.Figure()
