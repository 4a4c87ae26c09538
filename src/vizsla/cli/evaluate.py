"""vizsla evaluate: figures of a model on a split of pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def evaluate(
    model: Path,
    data: Path,
    /,
    *,
    split: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Evaluate a run or a bundle on pictures.

    Parameters
    ----------
    model
        A run's or a bundle's folder.
    data
        A folder of pictures, an archive or a manifest.
    split
        train, valid, test or all; by default test where there is one, else all.
    as_json
        Print one JSON document, with the confusion matrix, instead of tables.
    """
    from rich.console import Console
    from rich.table import Table

    from vizsla import api

    result = api.evaluate(model, data, split=split)
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    console = Console(highlight=False)
    metrics, name = result.metrics, result.split
    table = Table("class", "precision", "recall", "F1", "pictures", title=f"{name} split")
    for one in sorted(result.classes, key=lambda facts: facts["f1"]):
        if one["pictures"]:
            figures = (f"{one[key]:.3f}" for key in ("precision", "recall", "f1"))
            table.add_row(one["class_name"], *figures, str(one["pictures"]))
    console.print(table)
    for count, true, predicted in _confusions(result.confusion.tolist())[:5]:
        names = [result.classes[at]["class_name"] for at in (true, predicted)]
        console.print(f"{count} × {names[0]} taken for {names[1]}", markup=False)
    if result.problems:
        console.print(f"warning: {len(result.problems)} pictures could not be decoded")
        for problem in result.problems[:5]:
            console.print(f"  {problem.problem}", markup=False, soft_wrap=True)
    console.print(
        f"{name}:accuracy={metrics.accuracy:.6f} {name}:loss={metrics.loss:.6f} "
        f"{name}:top5_accuracy={metrics.top5_accuracy:.6f} {name}:macro_f1={metrics.macro_f1:.6f} "
        f"({metrics.pictures} pictures)",
        soft_wrap=True,
    )


def _confusions(matrix: list[list[int]]) -> list[tuple[int, int, int]]:
    """Mistakes by count, most frequent first: (count, true class, predicted class)."""
    mistakes = [
        (count, true, predicted)
        for true, row in enumerate(matrix)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(mistakes, key=lambda mistake: -mistake[0])
