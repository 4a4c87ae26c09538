"""Two runs side by side: the settings that differ, and their figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vizsla.runs.folder import RunFolder

FIGURES = ("accuracy", "top5_accuracy", "macro_f1", "loss")


@dataclass(frozen=True)
class Comparison:
    """Rows of a table: a name and one value for each run, None where a run has none.

    `settings` holds only what differs; `same_data` says whether all runs saw the same pictures,
    without which their figures cannot be held against each other.
    """

    names: tuple[str, ...]
    settings: dict[str, tuple[Any, ...]]
    figures: dict[str, tuple[float | None, ...]]
    same_data: bool


def compare_runs(runs: list[RunFolder]) -> Comparison:
    """What distinguishes the runs, read from their folders."""
    facts = [run.facts() for run in runs]
    recipes: list[dict[str, Any]] = [fact["recipe"] for fact in facts]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = {key: tuple(recipe.get(key) for recipe in recipes) for key in keys}
    return Comparison(
        names=tuple(run.name for run in runs),
        settings={key: row for key, row in rows.items() if len(set(row)) > 1},
        figures=_figures(runs),
        same_data=len({_data(fact) for fact in facts}) == 1,
    )


def _data(facts: dict[str, Any]) -> tuple[str | None, str | None]:
    """What the run saw; nothing is known of a loop that was only watched."""
    data = facts.get("data", {})
    return data.get("fingerprint"), data.get("division")


def _figures(runs: list[RunFolder]) -> dict[str, tuple[float | None, ...]]:
    rows: dict[str, tuple[float | None, ...]] = {}
    for split in ("valid", "test"):
        evaluations = [run.evaluation(split) or {} for run in runs]
        for figure in FIGURES:
            row = tuple(facts.get(figure) for facts in evaluations)
            if any(value is not None for value in row):
                rows[f"{split} {figure}"] = row
    epochs = [run.epochs() for run in runs]
    rows["epochs"] = tuple(float(len(records)) for records in epochs)
    rows["training seconds"] = tuple(
        sum(record.train_seconds + record.valid_seconds for record in records) for records in epochs
    )
    return rows
