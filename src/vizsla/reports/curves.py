"""Learning curves of a run: loss and accuracy in panels above one another, over one axis.

Beside the figures of whole epochs the training loss of single steps is drawn faintly, thinned by
means over as many steps as it takes; a run without a whole epoch yet has these alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vizsla.figures import ACCENT, MUTED, SECOND, dressed
from vizsla.records import EpochRecord, Section, SplitMetrics
from vizsla.reports.reading import Reading
from vizsla.words import number, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TITLE = "Learning curves"
_MOST_POINTS = 1000
_FAR_APART = 1000.0
# Above so many epochs, a mark at each of them is one thick line.
_MOST_MARKS = 60
# Up to so many, each has a number on the axis, and no half of one has.
_FEW_EPOCHS = 12


def section_of(reading: Reading) -> Section:
    """The curves, or why there are none."""
    mark = "so far" if reading.is_running else ""
    if reading.epochs:
        figure = _of_epochs(reading)
        return Section(_TITLE, _told(reading), figure=figure.to_json(), mark=mark)
    if reading.steps:
        text = "The training loss of each step; no epoch has ended yet."
        return Section(_TITLE, text, figure=_of_steps(reading).to_json(), mark=mark)
    if reading.is_watched:
        text = "vizsla watched this loop and did not train it: its losses are with what the " \
            "debugger captured."  # fmt: skip
    else:
        text = "Nothing was trained yet: the first curve is drawn once a few steps are done."
    return Section(_TITLE, text, mark=mark)


def thinned(
    values: Sequence[float] | NDArray[np.float64], most: int = _MOST_POINTS
) -> NDArray[np.float64]:
    """Means of neighbours, `most` of them at most; a part with a value that is none stays none."""
    column = np.asarray(values, np.float64)
    if len(column) <= most:
        return column
    starts = np.linspace(0, len(column), most, endpoint=False).astype(np.int64)
    sums: NDArray[np.float64] = np.add.reduceat(column, starts)
    return sums / np.diff(np.append(starts, len(column)))


def epoch_axis(last: int) -> dict[str, Any]:
    """An axis of so many epochs."""
    return {"title": {"text": "epoch"}, **({"dtick": 1} if last <= _FEW_EPOCHS else {})}


def loss_axis(losses: Iterable[float]) -> dict[str, Any]:
    """How an axis of losses is scaled: by powers of ten where they lie far apart, as where they
    ran away, for else all but the largest is one flat line."""
    known = [one for one in losses if math.isfinite(one)]
    if not known or min(known) <= 0 or max(known) < _FAR_APART * min(known):
        return {}
    powers = math.log10(max(known) / min(known))
    return {"type": "log", "dtick": max(1, math.ceil(powers / 5))}


def _told(reading: Reading) -> str:
    best = reading.best_epoch
    what = "Each point is a weight decay that the solver tried" if reading.is_lbfgs else ""
    parts = [f"{what}." if what else ""]
    if best is not None:
        at = f"weight decay {best.weight_decay:.3g}" if reading.is_lbfgs else f"epoch {best.epoch}"
        parts.append(
            f"The best is {at}, marked by the dotted line: validation loss "
            f"{number(best.valid.loss)}, accuracy {percent(best.valid.accuracy)}."
        )
    if reading.recipe_sets("mixup", "cutmix", "label_smoothing", "drop_rate", "random_erasing"):
        parts.append(
            "Training sees pictures made harder on purpose, so its curves may be the worse ones."
        )
    return " ".join(part for part in parts if part)


def _of_epochs(reading: Reading) -> go.Figure:
    import plotly.graph_objects as graph

    figure = graph.Figure()
    epochs = sorted(reading.epochs, key=_place)
    at = [_place(one) for one in epochs]
    _draw_steps(figure, reading)
    draw = _drawer(figure, at)
    draw("training loss", "y", SECOND, [one.train.loss for one in epochs])
    draw("validation loss", "y", ACCENT, [one.valid.loss for one in epochs])
    draw("training accuracy", "y2", SECOND, _percent(epochs, lambda one: one.train))
    draw("validation accuracy", "y2", ACCENT, _percent(epochs, lambda one: one.valid))
    rates = [one.learning_rate for one in epochs]
    varies = len(set(rates)) > 1 and not reading.is_lbfgs
    if varies:
        draw("learning rate", "y3", MUTED, rates)
    if reading.best_epoch is not None:
        at_best = _place(reading.best_epoch)
        figure.add_shape(
            type="line", x0=at_best, x1=at_best, y0=0, y1=1, yref="paper",
            line={"dash": "dot", "color": MUTED},
        )  # fmt: skip
    _lay_out(figure, ["loss", "accuracy, %", "rate"] if varies else ["loss", "accuracy, %"])
    parts = [part for one in epochs for part in (one.train, one.valid)]
    figure.update_layout(yaxis=loss_axis(one.loss for one in parts))
    if reading.is_lbfgs:
        figure.update_xaxes(title_text="weight decay", type="log", dtick=1)
    else:
        figure.update_xaxes(rangemode="tozero", **epoch_axis(epochs[-1].epoch))
    return figure


def _of_steps(reading: Reading) -> go.Figure:
    import plotly.graph_objects as graph

    losses = [one["loss"] for one in reading.steps]
    figure = graph.Figure(
        graph.Scatter(
            x=_rounded(thinned([one["step"] for one in reading.steps])),
            y=_rounded(thinned(losses)),
            mode="lines",
            line_color=SECOND,
            name="training loss",
        )
    )
    figure.update_layout(xaxis_title="step", yaxis_title="loss")
    figure.update_yaxes(**loss_axis(losses))
    return dressed(figure)


def _draw_steps(figure: go.Figure, reading: Reading) -> None:
    """The loss of each step, at its place between the ends of the epochs."""
    if not reading.steps or reading.is_lbfgs:
        return
    steps = np.array([one["step"] for one in reading.steps], np.float64)
    ends = np.array([0, *(one.step for one in reading.epochs)], np.float64)
    numbers = np.array([0, *(one.epoch for one in reading.epochs)], np.float64)
    within = np.interp(steps, ends, numbers)
    beyond = (steps - ends[-1]) * numbers[-1] / max(ends[-1], 1)  # of the epoch that goes on
    place = within + np.where(steps > ends[-1], beyond, 0)
    figure.add_scatter(
        x=_rounded(thinned(place)),
        y=_rounded(thinned([one["loss"] for one in reading.steps])),
        mode="lines",
        line={"color": SECOND, "width": 1},
        opacity=0.5,
        name="each step",
        hoverinfo="skip",
        yaxis="y",
    )


def _drawer(figure: go.Figure, at: list[float]) -> Callable[[str, str, str, list[float]], None]:
    mode = "lines+markers" if len(at) <= _MOST_MARKS else "lines"

    def draw(name: str, axis: str, colour: str, values: list[float]) -> None:
        figure.add_scatter(
            x=at, y=_rounded(values), yaxis=axis, mode=mode, line_color=colour,
            name=name.split()[0], legendgroup=name.split()[0], showlegend=axis == "y",
            hovertemplate=f"%{{y:.4g}}<extra>{name}</extra>",
        )  # fmt: skip

    return draw


def _lay_out(figure: go.Figure, titles: list[str]) -> None:
    """Panels from top to bottom, a third one small, over one axis at the bottom."""
    heights = [0.47, 0.47] if len(titles) == 2 else [0.41, 0.41, 0.1]
    gap = (1 - sum(heights)) / (len(titles) - 1)
    top = 1.0
    for place, (title, height) in enumerate(zip(titles, heights), start=1):
        figure.update_layout(
            {
                f"yaxis{place if place > 1 else ''}": {
                    "domain": [max(0.0, top - height), top], "title": {"text": title},
                    "anchor": "x",
                }
            }
        )  # fmt: skip
        top -= height + gap
    last = f"y{len(titles)}"
    figure.update_layout(
        height=420 + 60 * len(titles),
        hovermode="x unified",
        hoversubplots="axis",
        xaxis={"anchor": last},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
    )
    if len(titles) > 2:
        figure.update_layout(yaxis3_nticks=2)
    dressed(figure)
    figure.update_layout(margin_t=50)


def _place(record: EpochRecord) -> float:
    """Where an epoch stands on its axis."""
    return record.epoch if record.weight_decay is None else record.weight_decay


def _percent(
    epochs: Sequence[EpochRecord], part: Callable[[EpochRecord], SplitMetrics]
) -> list[float]:
    return [100 * part(one).accuracy for one in epochs]


def _rounded(values: Sequence[float] | NDArray[np.float64]) -> list[Any]:
    """Five digits are more than a screen shows, and less than half the file."""
    return [float(f"{value:.5g}") for value in values]
