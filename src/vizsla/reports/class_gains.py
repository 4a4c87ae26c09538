"""What the classes gained and lost between runs, held against the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vizsla.figures import SERIES, axis_names, dressed, in_figure
from vizsla.records import Section
from vizsla.reports.reading import JUDGED_SPLITS, SPLIT_WORDS, Evaluation, Reading
from vizsla.words import GAP, counted, listed, number, some_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TITLE = "Gains and losses by class"
# The classes that changed most, on the figure.
_MOST_DRAWN = 30
_MOST_ROWS = 1500


@dataclass(frozen=True)
class _Scores:
    """F1 by class of one run, and the pictures that it was judged by."""

    name: str
    f1: dict[str, float]
    pictures: dict[str, int]


def sections_of(names: Sequence[str], readings: Sequence[Reading]) -> list[Section]:
    """The classes that changed most as a figure and all as a table, or why there are none."""
    if len(readings) < 2:
        return []
    split, judged = _judged(readings)
    scores = [_scores(name, one) for name, one in zip(names, judged) if one is not None]
    if judged[0] is None or len(scores) < 2:
        without = [name for name, one in zip(names, judged) if one is None]
        text = f"Needs an evaluation of the first run and of another; {listed(without)} has none."
        return [Section(_TITLE, text)]
    first, others = scores[0], scores[1:]
    shared = [name for name in first.f1 if any(name in one.f1 for one in others)]
    order = sorted(shared, key=lambda name: min(_changes(first, others, name)))
    text = _told(split, first, others, order)
    missing = [name for name, one in zip(names, judged) if one is None]
    if missing:
        text += f" {listed(missing)} {'has' if len(missing) == 1 else 'have'} no such evaluation."
    if len(order) > _MOST_ROWS:
        text += f" Shown are the first {_MOST_ROWS:,} of {len(order):,} classes."
    changed = [name for name in order if any(_changes(first, others, name))]
    return [
        Section(
            _TITLE,
            text,
            _columns(first, others),
            tuple(_row(first, others, name) for name in order[:_MOST_ROWS]),
            figure=_figure(first, others, changed).to_json() if changed else None,
            sortable=True,
        )
    ]


def _judged(readings: Sequence[Reading]) -> tuple[str, list[Evaluation | None]]:
    """The split by which the first run and most others can be judged, and their evaluations."""

    def found(split: str) -> list[Evaluation | None]:
        return [one.evaluations.get(split) for one in readings]

    def worth(split: str) -> tuple[bool, int]:
        evaluations = found(split)
        return evaluations[0] is not None, sum(one is not None for one in evaluations)

    split = max(JUDGED_SPLITS, key=worth)
    return split, found(split)


def _scores(name: str, evaluation: Evaluation) -> _Scores:
    pictures = dict(zip(evaluation.names, evaluation.pictures.tolist()))
    f1 = zip(evaluation.names, evaluation.f1.tolist())
    return _Scores(name, {key: value for key, value in f1 if pictures[key]}, pictures)


def _changes(first: _Scores, others: Sequence[_Scores], name: str) -> list[float]:
    return [one.f1[name] - first.f1[name] for one in others if name in one.f1]


def _told(split: str, first: _Scores, others: Sequence[_Scores], shared: Sequence[str]) -> str:
    parts = [
        f"F1 of each class in the {SPLIT_WORDS[split]} split against that of {first.name}, the "
        "largest loss first."
    ]
    for other in others:
        changes = [other.f1[name] - first.f1[name] for name in shared if name in other.f1]
        gained, lost = sum(one > 0 for one in changes), sum(one < 0 for one in changes)
        parts.append(
            f"In {other.name} {counted(gained, 'class', 'classes')} gained and {lost:,} lost."
        )
        for one, than in ((first, other), (other, first)):
            alone = [name for name in one.f1 if name not in than.f1]
            if alone:
                parts.append(f"Only {one.name}, not {than.name}, was judged on {some_of(alone)}.")
    return " ".join(parts)


def _columns(first: _Scores, others: Sequence[_Scores]) -> tuple[str, ...]:
    change = [f"change {one.name}" if len(others) > 1 else "change" for one in others]
    return "class", "pictures", first.name, *(one.name for one in others), *change


def _row(first: _Scores, others: Sequence[_Scores], name: str) -> tuple[str, ...]:
    values = [one.f1.get(name) for one in others]
    changes = [None if value is None else value - first.f1[name] for value in values]
    return (
        name,
        f"{first.pictures[name]:,}",
        number(first.f1[name]),
        *map(number, values),
        *(GAP if one is None else f"{one:+.3f}" for one in changes),
    )


def _figure(first: _Scores, others: Sequence[_Scores], changed: Sequence[str]) -> go.Figure:
    """Bars to the left are losses, to the right gains."""
    import plotly.graph_objects as graph

    most = sorted(changed, key=lambda name: -max(map(abs, _changes(first, others, name))))
    kept = set(most[:_MOST_DRAWN])
    shown = [name for name in changed if name in kept]
    labels = axis_names(shown)
    figure = graph.Figure()
    for at, other in enumerate(others, start=1):
        figure.add_bar(
            x=[
                float(f"{other.f1[name] - first.f1[name]:.4g}") if name in other.f1 else None
                for name in shown
            ],
            y=labels,
            orientation="h",
            name=in_figure(other.name),
            marker_color=SERIES[at % len(SERIES)],
            hovertemplate="%{y}: %{x:+.3f}",
        )
    figure.update_layout(
        height=140 + (14 + 12 * len(others)) * len(shown),
        xaxis={"title": {"text": "change of F1"}},
        yaxis={"type": "category", "autorange": "reversed", "automargin": True},
        showlegend=len(others) > 1,
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
    )
    dressed(figure)
    return figure.update_layout(margin_t=50)
