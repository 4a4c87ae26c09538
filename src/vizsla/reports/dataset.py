"""The pictures of a run: how many of which class in which split, and which were of no use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vizsla.data.sources import read_manifest
from vizsla.errors import VizslaError
from vizsla.figures import ACCENT, SECOND, SERIES, axis_names, dressed
from vizsla.records import SPLITS, Section
from vizsla.reports.reading import SPLIT_WORDS, Reading
from vizsla.words import GAP, apart, counted

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TITLE = "Data"
# Of more classes than this, bars lie no longer side by side with their names.
_NAMED_CLASSES = 30
_MOST_DRAWN = 2000
_MOST_PROBLEMS = 50
_COLOURS = {"train": SECOND, "valid": ACCENT, "test": SERIES[2]}


def sections_of(reading: Reading) -> list[Section]:
    """What is known of the pictures, and those that were skipped or repaired."""
    data = reading.table("data")
    counts = data.get("pictures")
    if not isinstance(counts, Mapping):
        text = (
            "vizsla only watched this loop and does not know its pictures."
            if reading.is_watched
            else "run.toml says nothing of the pictures."
        )
        return [Section(_TITLE, text)]
    classes = _counts_of_classes(reading)
    rows = [(f"{SPLIT_WORDS.get(split, split)} pictures", f"{int(counts[split]):,}")
            for split in counts]  # fmt: skip
    rows += [
        ("source", str(data.get("source", GAP))),
        ("fingerprint", str(data.get("fingerprint", GAP))[:16]),
        ("division", _division(data)),
    ]
    figure = _figure(*classes) if classes is not None and _is_worth_drawing(*classes) else None
    section = Section(
        _TITLE,
        _told(reading, classes),
        ("what", "value"),
        tuple(rows),
        figure=figure.to_json() if figure is not None else None,
    )
    return [section, *_skipped(reading)]


def _counts_of_classes(reading: Reading) -> tuple[list[str], NDArray[np.int64]] | None:
    """Names of the classes, and pictures by split and class, from the run's own catalogue."""
    try:
        catalogue = read_manifest(reading.run.catalogue, exact=True)
    except (VizslaError, OSError):  # the page says less without it, and is still a page
        return None
    counts = np.stack([catalogue.counts(split) for split in SPLITS])
    return apart(one.name for one in catalogue.classes), counts


def _division(data: Mapping[str, object]) -> str:
    seed = data.get("split_seed")
    made = "as the data came divided" if seed is None else f"by vizsla, with seed {seed}"
    return f"{str(data.get('division', GAP))[:16]}, {made}"


def _told(reading: Reading, classes: tuple[list[str], NDArray[np.int64]] | None) -> str:
    if classes is None:
        return "The run's catalogue.csv is gone or damaged, so there is nothing on single classes."
    names, counts = classes
    train = counts[0]
    least, most = int(train.argmin()), int(train.argmax())
    total = counted(int(counts.sum()), "picture")
    told = f"{total} of {counted(len(names), 'class', 'classes')}. "
    if train[least] == train[most]:
        return f"{told}Each class has {counted(int(train[most]), 'training picture')}."
    ratio = train[most] / max(int(train[least]), 1)
    return (
        f"{told}The largest class, {names[most]}, has "
        f"{counted(int(train[most]), 'training picture')}, and the smallest, {names[least]}, has "
        f"{train[least]:,}: {ratio:.1f} times as many."
    )


def _is_worth_drawing(names: list[str], counts: NDArray[np.int64]) -> bool:
    return 1 < len(names) <= _MOST_DRAWN and len(set(counts[0].tolist())) > 1


def _figure(names: list[str], counts: NDArray[np.int64]) -> go.Figure:
    """Pictures of each class, the largest first, split upon split."""
    import plotly.graph_objects as graph

    order = np.argsort(-counts.sum(axis=0), kind="stable")
    labels = axis_names([names[at] for at in order])
    lying = len(names) <= _NAMED_CLASSES
    figure = graph.Figure()
    for split, row in zip(SPLITS, counts):
        if row.any():
            amounts = row[order].tolist()
            figure.add_bar(
                x=amounts if lying else labels,
                y=labels if lying else amounts,
                orientation="h" if lying else "v",
                name=SPLIT_WORDS[split],
                marker_color=_COLOURS[split],
            )
    across = {"type": "category", "automargin": True}
    figure.update_layout(
        barmode="stack",
        bargap=0.25 if lying else 0,
        height=130 + 26 * len(names) if lying else 380,
        xaxis={"title": {"text": "pictures"}} if lying else across,
        yaxis={**across, "autorange": "reversed"} if lying else {"title": {"text": "pictures"}},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.01,
            "yanchor": "bottom",
            "traceorder": "normal",
        },
        meta={"least_rem": 0 if lying else 36},
    )
    dressed(figure)
    return figure.update_layout(margin_t=50)


def _skipped(reading: Reading) -> list[Section]:
    """The pictures that did not decode, if there are any."""
    problems = reading.problems
    if not problems:
        return []
    text = f"{counted(len(problems), 'picture')} did not decode as a whole."
    if len(problems) > _MOST_PROBLEMS:
        text += f" Shown are the first {_MOST_PROBLEMS}; all are in corrupt_pictures.csv."
    rows = tuple((one.path, one.action, one.problem) for one in problems[:_MOST_PROBLEMS])
    return [Section("Corrupt pictures", text, ("picture", "what was done", "why"), rows)]
