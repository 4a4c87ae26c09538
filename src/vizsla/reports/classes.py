"""The classes one by one: how well each is known, and what it is taken for."""

from __future__ import annotations

import shlex

import numpy as np

from vizsla.records import Section
from vizsla.reports.reading import SPLIT_WORDS, Evaluation, Reading
from vizsla.words import GAP, counted, number, percent

_TITLE = "Classes"
# A page of more rows would be slow to open.
_MOST_ROWS = 1500
_COLUMNS = ("class", "pictures", "precision", "recall", "F1", "most taken for")


def section_of(reading: Reading) -> Section:
    """The table of classes, the hardest first, or why there is none."""
    evaluation = reading.judged
    if evaluation is None:
        return Section(_TITLE, why_not_judged(reading))
    order = _hardest_first(evaluation)
    rows = tuple(_row(evaluation, at) for at in order[:_MOST_ROWS])
    quiet = {row for row, at in enumerate(order[:_MOST_ROWS]) if evaluation.pictures[at] == 0}
    return Section(
        _TITLE, _told(evaluation), _COLUMNS, rows, frozenset(quiet), sortable=True
    )  # fmt: skip


def why_not_judged(reading: Reading) -> str:
    """Why a run has no evaluation, and how it comes to one."""
    if reading.is_watched:
        return (
            "vizsla only watched this loop, and knows neither its pictures nor its answers. What "
            "vizsla train trains is evaluated at its end."
        )
    if reading.is_running:
        return "There is no evaluation yet: it comes at the end of the training."
    if any("evaluation-" in sentence for sentence in reading.damage):
        return (
            "The file of the evaluation is damaged. The model can be evaluated again: "
            f"vizsla evaluate {shlex.quote(str(reading.run.path))} PICTURES"
        )
    why = "There is no evaluation: the training did not come to its end."
    if reading.ran_away:
        return why
    return f"{why} Go on with: vizsla train --resume {shlex.quote(str(reading.run.path))}"


def _told(evaluation: Evaluation) -> str:
    classes, judged = len(evaluation.names), int((evaluation.pictures > 0).sum())
    perfect = int((evaluation.f1[evaluation.pictures > 0] == 1).sum())
    parts = [
        f"Of {counted(evaluation.figures.pictures, 'picture')} of the "
        f"{SPLIT_WORDS[evaluation.split]} split, the hardest class first. Precision is the share "
        "of right answers among those that name the class, recall the share of its pictures that "
        "are found, F1 the balance of both."
    ]
    if perfect:
        told = "No class has a mistake." if perfect == judged else (
            f"{counted(perfect, 'class has', 'classes have')} no mistake."
        )  # fmt: skip
        parts.append(told)
    if judged < classes:
        parts.append(f"{counted(classes - judged, 'class has', 'classes have')} no picture there.")
    if classes > _MOST_ROWS:
        parts.append(
            f"Shown are the hardest {_MOST_ROWS:,} of {classes:,}; all are in "
            f"evaluation-{evaluation.split}.json."
        )
    return " ".join(parts)


def _hardest_first(evaluation: Evaluation) -> list[int]:
    """By F1 and recall; classes without a picture come last."""
    absent = evaluation.pictures == 0
    order = np.lexsort((evaluation.recall, evaluation.f1, absent))
    return [int(at) for at in order]


def _row(evaluation: Evaluation, at: int) -> tuple[str, ...]:
    pictures = int(evaluation.pictures[at])
    precision = percent(evaluation.precision[at]) if evaluation.confusion[:, at].any() else GAP
    if not pictures:
        return evaluation.names[at], "0", precision, GAP, GAP, ""
    return (
        evaluation.names[at],
        f"{pictures:,}",
        precision,
        percent(evaluation.recall[at]),
        number(evaluation.f1[at]),
        _most_taken_for(evaluation, at),
    )


def _most_taken_for(evaluation: Evaluation, at: int) -> str:
    counts = evaluation.confusion[at].copy()
    counts[at] = 0
    other = int(counts.argmax())
    return f"{evaluation.names[other]} ({counts[other]:,})" if counts[other] else ""
