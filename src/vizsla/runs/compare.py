"""Runs side by side: what differs in settings, data and surroundings, and their figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vizsla.errors import RunError
from vizsla.runs.folder import RunFolder

FIGURES = ("accuracy", "top5_accuracy", "macro_f1", "loss")
_DATA = ("source", "fingerprint", "division", "split_seed", "pictures", "classes")


@dataclass(frozen=True)
class Comparison:
    """Rows of a table: a name and one value for each run, None where a run has none.

    `names` are those of the folders, each there once. `settings`, `data` and `surroundings`
    (versions and hardware) hold only what differs; `same_data` says whether all runs saw the same
    pictures, without which their figures cannot be held against each other. `damage` has a sentence
    for each file that could not be read.
    """

    names: tuple[str, ...]
    settings: dict[str, tuple[Any, ...]]
    figures: dict[str, tuple[float | None, ...]]
    same_data: bool
    data: dict[str, tuple[Any, ...]]
    surroundings: dict[str, tuple[Any, ...]]
    damage: tuple[str, ...] = ()


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """What distinguishes the runs, read from their folders. Raises `RunError` where a run's
    `run.toml` cannot be read."""
    facts = [run.facts() for run in runs]
    damage: list[str] = []
    return Comparison(
        names=_names(runs),
        settings=_differences([_table(fact, "recipe") for fact in facts]),
        figures=_figures(runs, damage),
        same_data=len({_data(fact) for fact in facts}) == 1,
        data=_differences([_data_facts(fact) for fact in facts]),
        surroundings=_differences(
            [{**_table(fact, "versions"), **_table(fact, "hardware")} for fact in facts]
        ),
        damage=tuple(damage),
    )


def _names(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """Folders' names; with the folder above where two are alike, and numbered where one run comes
    again."""
    often = Counter(run.name for run in runs)
    paths = {run.path.resolve() for run in runs}
    alike = {name for name in often if sum(path.name == name for path in paths) > 1}
    names = [
        f"{run.path.resolve().parent.name}/{run.name}" if run.name in alike else run.name
        for run in runs
    ]
    return tuple(
        name if (before := names[:at].count(name)) == 0 else f"{name} ({before + 1})"
        for at, name in enumerate(names)
    )


def _differences(tables: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = {key: tuple(table.get(key) for table in tables) for key in keys}
    return {key: row for key, row in rows.items() if any(one != row[0] for one in row)}


def _table(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = facts.get(name)
    return found if isinstance(found, Mapping) else {}


def _data(facts: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What the run saw; nothing is known of a loop that was only watched."""
    data = _table(facts, "data")
    return data.get("fingerprint"), data.get("division")


def _data_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    data = _table(facts, "data")
    known = {key: data[key] for key in _DATA if key in data}
    if isinstance(known.get("classes"), list):
        known["classes"] = len(known["classes"])
    if isinstance(counts := known.pop("pictures", None), Mapping):
        known |= {f"{split} pictures": count for split, count in counts.items()}
    return known


def _figures(runs: Sequence[RunFolder], damage: list[str]) -> dict[str, tuple[float | None, ...]]:
    rows: dict[str, tuple[float | None, ...]] = {}
    for split in ("valid", "test"):
        evaluations = [_evaluation(run, split, damage) for run in runs]
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


def _evaluation(run: RunFolder, split: str, damage: list[str]) -> dict[str, Any]:
    """What could be read: one damaged file is no reason to compare nothing at all."""
    try:
        return run.evaluation(split) or {}
    except (RunError, OSError):
        damage.append(f"{run.path / f'evaluation-{split}.json'} is damaged and was left out.")
        return {}
