"""Which classes are taken for which: the worst pairs as a table, and the whole matrix to zoom.

A matrix of a hundred classes is read on no phone and in no print; the pairs come first for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vizsla.figures import ACCENT, SECOND, axis_names, dressed, in_figure
from vizsla.records import Section
from vizsla.reports.classes import why_not_judged
from vizsla.reports.reading import SPLIT_WORDS, Evaluation, Reading
from vizsla.words import counted, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PAIRS, _MATRIX = "Confused classes", "Confusion matrix"
_MOST_PAIRS = 20
# Up to so many classes, cells have room for their counts.
_COUNTED_CLASSES = 30
# A matrix of more would weigh megabytes; of these the most confused classes are shown.
_MOST_CLASSES = 150
# Right answers, none, mistakes. The pale ones leave ink readable on any cell, by day and by night.
_STRONG = ((0.0, SECOND), (0.5, "#faf5ee"), (1.0, ACCENT))
_PALE = ((0.0, "#b4d0dd"), (0.5, "#faf5ee"), (1.0, "#ecc8ab"))
_INK = "#211d19"


def sections_of(reading: Reading) -> list[Section]:
    """The worst pairs and the matrix, or one section that says why there are none."""
    evaluation = reading.judged
    if evaluation is None:
        return [Section(_MATRIX, why_not_judged(reading))]
    return [_pairs(evaluation), _matrix(evaluation)]


def _pairs(evaluation: Evaluation) -> Section:
    mistakes = _mistakes(evaluation)
    total = int(mistakes.sum())
    if not total:
        return Section(_PAIRS, "No class is taken for another: every answer is right.")
    worst = _worst_pairs(mistakes, evaluation.pictures)
    pairs = int((mistakes > 0).sum())
    shown = (
        f"the worst {_MOST_PAIRS} of {pairs:,} pairs" if pairs > _MOST_PAIRS else
        counted(pairs, "pair")
    )  # fmt: skip
    rows = tuple(
        (
            evaluation.names[true],
            evaluation.names[taken],
            f"{mistakes[true, taken]:,} of {evaluation.pictures[true]:,}",
            percent(mistakes[true, taken] / evaluation.pictures[true]),
        )
        for true, taken in worst
    )
    return Section(
        _PAIRS,
        f"{counted(total, 'mistake')} among {counted(evaluation.figures.pictures, 'picture')} of "
        f"the {SPLIT_WORDS[evaluation.split]} split: {shown}, by how many pictures of the first "
        "class were taken for the second.",
        ("class", "taken for", "pictures", "share"),
        rows,
        sortable=True,
    )


def _worst_pairs(mistakes: NDArray[np.int64], pictures: NDArray[np.int64]) -> list[tuple[int, int]]:
    """By count; among equals the larger share of the class first."""
    true, taken = np.nonzero(mistakes)
    counts = mistakes[true, taken]
    order = np.lexsort((-counts / np.maximum(pictures[true], 1), -counts))[:_MOST_PAIRS]
    return [(int(true[at]), int(taken[at])) for at in order]


def _matrix(evaluation: Evaluation) -> Section:
    chosen = _chosen(evaluation)
    text = (
        "A row for each class, a column for each answer. Blue cells are right answers, orange ones "
        "mistakes; the stronger the colour, the larger the share of the class, where the strongest "
        "orange is the worst mistake. With a mouse, drag over a part to see it larger, and "
        "double-click to see all again."
    )
    if len(chosen) < len(evaluation.names):
        text += (
            f" Shown are the {len(chosen)} classes of {len(evaluation.names):,} with most mistakes."
        )
    return Section(_MATRIX, text, figure=_figure(evaluation, chosen).to_json())


def _chosen(evaluation: Evaluation) -> NDArray[np.int64]:
    if len(evaluation.names) <= _MOST_CLASSES:
        return np.arange(len(evaluation.names))
    mistakes = _mistakes(evaluation)
    involved = mistakes.sum(axis=0) + mistakes.sum(axis=1)
    return np.sort(np.argsort(-involved, kind="stable")[:_MOST_CLASSES])


def _figure(evaluation: Evaluation, chosen: NDArray[np.int64]) -> go.Figure:
    import plotly.graph_objects as graph

    counts = evaluation.confusion[np.ix_(chosen, chosen)]
    totals = np.maximum(evaluation.pictures[chosen], 1)[:, None]
    shares = counts / totals
    depths = shares / max(shares[~np.eye(len(chosen), dtype=bool)].max(initial=0), 0.05)
    np.fill_diagonal(depths, -shares.diagonal())
    names = axis_names([evaluation.names[at] for at in chosen])
    few = len(chosen) <= _COUNTED_CLASSES
    figure = graph.Figure(
        graph.Heatmap(
            x=names,
            y=names,
            z=[[float(f"{one:.3g}") if one else None for one in row] for row in depths.tolist()],
            zmin=-1,
            zmax=1,
            customdata=_hovered(counts, totals),
            hovertemplate="%{y}, answered %{x}: %{customdata}<extra></extra>",
            hoverongaps=False,
            colorscale=_PALE if few else _STRONG,
            showscale=False,
            xgap=1 if few else 0,
            ygap=1 if few else 0,
            **_counted_cells(counts) if few else {},
        )
    )
    return _laid_out(figure, len(chosen))


def _counted_cells(counts: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "text": [[str(one) if one else "" for one in row] for row in counts.tolist()],
        "texttemplate": "%{text}",
        "textfont": {"color": _INK},
    }


def _hovered(counts: NDArray[np.int64], totals: NDArray[np.int64]) -> list[list[Any]]:
    """What each cell says beside its classes; nothing where nothing was counted."""
    return [
        [in_figure(f"{one} of {total} ({percent(one / total)})") if one else 0 for one in row]
        for row, (total,) in zip(counts.tolist(), totals.tolist())
    ]


def _laid_out(figure: go.Figure, classes: int) -> go.Figure:
    grid = {"type": "category", "showgrid": False, "zeroline": False, "automargin": True}
    figure.update_layout(
        height=min(760, 260 + 34 * classes),
        xaxis={**grid, "title": {"text": "answer"}},
        yaxis={**grid, "title": {"text": "class"}, "autorange": "reversed"},
        # On a phone it keeps a width at which cells can be told apart, and scrolls in its place.
        meta={"least_rem": min(44, 12 + 2 * classes)},
    )
    return dressed(figure)


def _mistakes(evaluation: Evaluation) -> NDArray[np.int64]:
    mistakes = evaluation.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    return mistakes
