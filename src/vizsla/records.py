"""Small frozen records that cross folders. Plain dataclasses: a server reads them without pydantic.

Behaviour lives with the code that makes or uses a record, not here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SPLITS = ("train", "valid", "test")

_CODED_FOLDER = re.compile(r"(?P<code>\d+)[.\-_ ]+(?P<name>\S.*)")


@dataclass(frozen=True)
class ClassLabel:
    """One class: its folder, the code that predictions carry, and the name that people read.

    `001.Affenpinscher` has code `001` and name `Affenpinscher`; a folder without a number in
    front is its own code and name.
    """

    folder: str
    code: str
    name: str

    @classmethod
    def from_folder(cls, folder: str) -> ClassLabel:
        match = _CODED_FOLDER.fullmatch(folder)
        if match is None:
            return cls(folder, folder, folder)
        return cls(folder, match["code"], match["name"])


@dataclass(frozen=True)
class RankedClass:
    """One entry of a prediction's ranking."""

    label: str
    class_name: str
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture: best class first in `top_k`, confidences in 0 to 1."""

    predicted_label: str
    class_name: str
    confidence: float
    top_k: tuple[RankedClass, ...]
    path: str | None = None

    def to_dict(self) -> dict[str, Any]:
        # Not asdict, which takes as long as the rest of what a server does for an answer.
        facts: dict[str, Any] = {
            "predicted_label": self.predicted_label,
            "class_name": self.class_name,
            "confidence": self.confidence,
            "top_k": [vars(entry).copy() for entry in self.top_k],
        }
        return facts if self.path is None else {**facts, "path": self.path}


@dataclass(frozen=True)
class PictureProblem:
    """A picture that was skipped or repaired while decoding."""

    path: str
    problem: str
    action: str  # "skipped", "repaired", or "fatal" where the policy is to fail


@dataclass(frozen=True)
class SplitMetrics:
    """Figures of one split. Loss is mean cross entropy in nats; the rest are shares in 0 to 1.

    `macro_f1` is the mean of the classes' F1 scores, so that a rare class weighs as much as a
    frequent one; classes absent from the split are left out of the mean.
    """

    loss: float
    accuracy: float
    top5_accuracy: float
    macro_f1: float
    pictures: int


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`. `epoch` counts from 1, `step` counts optimiser updates.

    Where a solver tries one weight decay after the other instead of training in epochs, each is a
    line with its `weight_decay`.
    """

    epoch: int
    step: int
    learning_rate: float
    train: SplitMetrics
    valid: SplitMetrics
    train_seconds: float
    valid_seconds: float
    wait_seconds: float
    pictures_per_second: float
    best: bool = False
    weight_decay: float | None = None


@dataclass(frozen=True)
class Note:
    """A line that stands out, and words below it. Its `tone` (error, warning, info) is shown as a
    word and as a colour."""

    tone: str
    head: str
    text: str


@dataclass(frozen=True)
class Tile:
    """One figure that is read at a glance: what it is, its value, and a few words below."""

    name: str
    value: str
    words: str = ""


@dataclass(frozen=True)
class PictureCard:
    """A small picture with words below it.

    `source` is a `data:` URI, or None where the picture cannot be shown; `alt` then stands in its
    place. `note` is in small print.
    """

    source: str | None
    alt: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report: a heading, words, and notes, a table or a picture.

    `figure` is a Plotly figure as JSON text. Cells of `rows` are shown as they are, numbers to the
    right; a row whose number is in `quiet_rows` is greyed, and a cell at (row, column) in
    `best_cells` stands out. A `sortable` table is sorted by a column where its reader asks for it.
    `code` is text to copy, line by line. `mark` is a word beside the heading, such as "so far".
    Sections that follow one another with the same `part` are one group in the contents.
    What a section has is shown in the order tiles, text, notes, code, pictures, figure, table.
    """

    title: str
    text: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    quiet_rows: frozenset[int] = frozenset()
    figure: str | None = None
    notes: tuple[Note, ...] = ()
    tiles: tuple[Tile, ...] = ()
    pictures: tuple[PictureCard, ...] = ()
    code: str = ""
    mark: str = ""
    part: str = ""
    sortable: bool = False
    best_cells: frozenset[tuple[int, int]] = frozenset()
