"""Several runs on one page: their figures, their curves over one another, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vizsla.errors import RunError
from vizsla.figures import SERIES, dressed, in_figure
from vizsla.records import EpochRecord, Note, Section
from vizsla.reports import class_gains
from vizsla.reports.curves import epoch_axis, loss_axis
from vizsla.reports.reading import SPLIT_WORDS, Reading, read_run
from vizsla.runs.compare import Comparison, compare_runs
from vizsla.runs.folder import RunFolder
from vizsla.words import GAP, duration, listed, number, percent

if TYPE_CHECKING:
    import plotly.graph_objects as go

# What a figure of `compare_runs` is called, how it is shown, and whether more of it is better.
_MEASURES = {
    "accuracy": ("accuracy", percent, True),
    "top5_accuracy": ("top-5 accuracy", percent, True),
    "macro_f1": ("macro F1", number, True),
    "loss": ("loss", number, False),
}
_SAME = "The runs do not differ in these."


def sections_of(runs: Sequence[RunFolder]) -> tuple[str, list[Section]]:
    """The sentences under the title, and all sections of the page.

    Figures are held against the first run's. Raises `RunError` for no runs at all, and where a
    run's `run.toml` cannot be read.
    """
    if not runs:
        raise RunError("Comparing needs runs, and none were given.")
    comparison = compare_runs(runs)
    readings = [read_run(run) for run in runs]
    sections = [
        _figures(comparison, readings),
        _curves(comparison.names, readings),
        _differing("Settings", comparison.settings, comparison.names),
        _data(comparison, readings),
        *class_gains.sections_of(comparison.names, readings),
        _time(comparison.names, readings),
        _differing("Versions and hardware", comparison.surroundings, comparison.names),
    ]
    return _lead(comparison, readings), sections


def _lead(comparison: Comparison, readings: Sequence[Reading]) -> str:
    names = comparison.names
    parts = [f"{len(names)} runs." if len(names) > 1 else "One run, with nothing to compare it to."]
    going = [name for name, one in zip(names, readings) if one.is_running]
    if going:
        are = "is" if len(going) == 1 else "are"
        parts.append(f"{listed(going)} {are} still training: this is how far it has come.")
    parts.append(_leader(comparison))
    if len({one.run.path.resolve() for one in readings}) < len(readings):
        parts.append("One run is here more than once.")
    parts += comparison.damage
    return " ".join(part for part in parts if part)


def _leader(comparison: Comparison) -> str:
    """Which run answers best, where that can be said."""
    if not comparison.same_data or len(comparison.names) < 2:
        return ""
    for split in ("test", "valid"):
        row = comparison.figures.get(f"{split} accuracy", ())
        known = [value for value in row if value is not None]
        if len(known) > 1:
            best = max(known)
            ahead = [name for name, value in zip(comparison.names, row) if value == best]
            what = f"{SPLIT_WORDS[split]} accuracy"
            if len(ahead) == len(known):
                return f"All have the same {what}, {percent(best)}."
            return f"The best {what} is {percent(best)}, of {listed(ahead)}."
    return ""


def _figures(comparison: Comparison, readings: Sequence[Reading]) -> Section:
    rows: list[tuple[str, ...]] = [("status", *(one.status for one in readings))]
    best: set[tuple[int, int]] = set()
    for name, values in comparison.figures.items():
        split, _, measure = name.partition(" ")
        if measure not in _MEASURES or split not in SPLIT_WORDS:
            continue
        words, shown, more_is_better = _MEASURES[measure]
        if comparison.same_data:
            best |= {(len(rows), 1 + at) for at in _best(values, more_is_better)}
        rows.append((f"{SPLIT_WORDS[split]} {words}", *map(shown, values)))
    rows.append(("best epoch", *(str(one.best_epoch.epoch) if one.best_epoch else GAP
                                 for one in readings)))  # fmt: skip
    rows.append(("epochs", *(str(len(one.epochs)) for one in readings)))
    text = "The best of each row stands out." if best else ""
    if len(rows) == 3:
        text = "None of the runs has been evaluated yet: that comes at the end of a training."
    return Section(
        "Figures",
        text,
        ("figure", *comparison.names),
        tuple(rows),
        notes=_warnings(comparison, readings),
        best_cells=frozenset(best),
    )


def _best(values: Sequence[float | None], more_is_better: bool) -> list[int]:
    """The places of the best value; none where all are alike."""
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return []
    best = max(known) if more_is_better else min(known)
    return [at for at, value in enumerate(values) if value == best]


def _warnings(comparison: Comparison, readings: Sequence[Reading]) -> tuple[Note, ...]:
    unknown = [
        name
        for name, one in zip(comparison.names, readings)
        if not one.table("data").get("fingerprint")
    ]
    if unknown:
        return (
            Note(
                "warning",
                "It is not known which pictures all runs saw",
                f"Nothing is recorded of those of {listed(unknown)}; figures compare only if they "
                "are the same.",
            ),
        )
    if comparison.same_data:
        return ()
    return (
        Note(
            "error",
            "The runs saw different pictures or divisions: their figures do not compare",
            "What looks better may only have had easier pictures. Train both on the same data with "
            "the same seed, or evaluate both on the same pictures: vizsla evaluate RUN PICTURES",
        ),
    )


def _curves(names: Sequence[str], readings: Sequence[Reading]) -> Section:
    title = "Learning curves"
    left = [name for name, one in zip(names, readings) if not _has_curves(one)]
    if len(left) == len(names):
        return Section(title, "None of the runs has trained in epochs.")
    text = "Validation as a line, training as dots."
    if left:
        text += f" {listed(left)} {'has' if len(left) == 1 else 'have'} no epochs to draw."
    return Section(title, text, figure=_drawn(names, readings).to_json())


def _has_curves(reading: Reading) -> bool:
    return bool(reading.epochs) and not reading.is_lbfgs


def _drawn(names: Sequence[str], readings: Sequence[Reading]) -> go.Figure:
    import plotly.graph_objects as graph

    figure = graph.Figure()
    for at, (name, reading) in enumerate(zip(names, readings)):
        if _has_curves(reading):
            _draw(figure, in_figure(name), reading.epochs, SERIES[at % len(SERIES)])
    epochs = [one for reading in readings if _has_curves(reading) for one in reading.epochs]
    losses = [part.loss for one in epochs for part in (one.train, one.valid)]
    figure.update_layout(
        height=600,
        hovermode="x unified",
        xaxis={**epoch_axis(max(one.epoch for one in epochs)), "anchor": "y2"},
        yaxis={"title": {"text": "loss"}, "domain": [0.53, 1], **loss_axis(losses)},
        yaxis2={"title": {"text": "accuracy, %"}, "domain": [0, 0.47]},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom"},
    )
    dressed(figure)
    return figure.update_layout(margin_t=50)


def _draw(figure: go.Figure, name: str, epochs: Sequence[EpochRecord], colour: str) -> None:
    for part, dash, width in (("train", "dot", 1.25), ("valid", "solid", 2)):
        metrics = [getattr(one, part) for one in epochs]
        for axis, values in (
            ("y", [one.loss for one in metrics]),
            ("y2", [100 * one.accuracy for one in metrics]),
        ):
            figure.add_scatter(
                x=[one.epoch for one in epochs],
                y=[float(f"{value:.5g}") for value in values],
                yaxis=axis, name=name, legendgroup=name, mode="lines+markers",
                showlegend=part == "valid" and axis == "y",
                line={"color": colour, "dash": dash, "width": width}, marker_size=4,
                hovertemplate=f"%{{y:.4g}}<extra>{name}, {SPLIT_WORDS[part]}</extra>",
            )  # fmt: skip


def _differing(title: str, rows: dict[str, tuple[Any, ...]], names: Sequence[str]) -> Section:
    if not rows:
        return Section(title, _SAME)
    table = tuple((name, *map(_shown, values)) for name, values in rows.items())
    return Section(title, "What differs between the runs.", ("what", *names), table)


def _data(comparison: Comparison, readings: Sequence[Reading]) -> Section:
    section = _differing("Data", comparison.data, comparison.names)
    return section if section.rows or not comparison.same_data or not _known(readings) else Section(
        "Data", "All runs saw the same pictures, divided alike."
    )  # fmt: skip


def _known(readings: Sequence[Reading]) -> bool:
    return all(one.table("data").get("fingerprint") for one in readings)


def _time(names: Sequence[str], readings: Sequence[Reading]) -> Section:
    rows = (
        ("training time", *(duration(one.seconds) if one.epochs else GAP for one in readings)),
        ("of it frozen layers", *(duration(one.trunk_seconds) if one.trunk_seconds else GAP
                                  for one in readings)),
        ("an epoch", *(_epoch_time(one.epochs) for one in readings)),
        ("of it waiting for pictures", *(_waiting(one.epochs) for one in readings)),
        ("pictures a second", *(_speed(one.epochs) for one in readings)),
    )  # fmt: skip
    text = (
        "Epochs count with their evaluation. Frozen layers are computed once and kept: a run that "
        "finds them kept takes less time than the one that kept them."
    )
    return Section("Time", text, ("what", *names), rows)


def _epoch_time(epochs: Sequence[EpochRecord]) -> str:
    if not epochs:
        return GAP
    return duration(sum(one.train_seconds + one.valid_seconds for one in epochs) / len(epochs))


def _waiting(epochs: Sequence[EpochRecord]) -> str:
    seconds = sum(one.train_seconds for one in epochs)
    return percent(sum(one.wait_seconds for one in epochs) / seconds) if seconds else GAP


def _speed(epochs: Sequence[EpochRecord]) -> str:
    seconds = sum(one.train_seconds for one in epochs)
    return f"{sum(one.train.pictures for one in epochs) / seconds:,.0f}" if seconds else GAP


def _shown(value: Any) -> str:
    if value is None:
        return GAP
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str) and len(value) == 64:  # a hash, of which a beginning tells enough
        return value[:16]
    return f"{value:g}" if isinstance(value, float) else str(value)
