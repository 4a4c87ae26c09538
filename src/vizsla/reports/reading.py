"""What a run folder holds, read once and forgivingly: a report is made of whatever there is.

A damaged line or file is left out and counted, and the page says so. The folder's own readers
(`runs/folder.py`) refuse damage instead, for a training that goes on must not build on it.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.errors import RunError
from vizsla.findings import SEVERITIES, Finding
from vizsla.records import ClassLabel, EpochRecord, PictureProblem, SplitMetrics
from vizsla.runs.folder import WATCHED, RunFolder
from vizsla.words import apart, counted, listed

# The split whose figures a report tells first.
JUDGED_SPLITS = ("test", "valid")
_FAR_ABOVE = 100.0
SPLIT_WORDS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one split; `confusion[true, predicted]` counts pictures.

    `names` are the classes' names, each there once; `precision`, `recall` and `f1` have one value a
    class.
    """

    split: str
    figures: SplitMetrics
    names: tuple[str, ...]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    confusion: NDArray[np.int64]

    @property
    def pictures(self) -> NDArray[np.int64]:
        """Pictures of each class."""
        counts: NDArray[np.int64] = self.confusion.sum(axis=1)
        return counts


@dataclass(frozen=True)
class Reading:
    """A run as its report needs it. `damage` has a sentence for each file that is damaged."""

    run: RunFolder
    facts: Mapping[str, Any]
    status: str
    reason: str
    epochs: tuple[EpochRecord, ...]
    steps: tuple[Mapping[str, Any], ...]
    evaluations: Mapping[str, Evaluation]
    trunk: Mapping[str, Any]
    problems: tuple[PictureProblem, ...]
    damage: tuple[str, ...]

    @property
    def is_watched(self) -> bool:
        return self.facts.get("kind") == WATCHED

    @property
    def command(self) -> str:
        """The command, as it is typed, where a run is of one that was profiled; else nothing."""
        words = self.facts.get("command")
        return shlex.join(map(str, words)) if self.is_watched and isinstance(words, list) else ""

    @property
    def ran_away(self) -> bool:
        """Whether the loss was far above its beginning, or no number, when the training ended."""
        if not self.steps:
            return False
        first, last = (float(self.steps[at]["loss"]) for at in (0, -1))
        return not math.isfinite(last) or last > _FAR_ABOVE * max(first, 1.0)

    @property
    def is_running(self) -> bool:
        return self.status == "running"

    @property
    def judged(self) -> Evaluation | None:
        """The evaluation that tells most about new pictures: of the test split, if there is one."""
        return next(
            (self.evaluations[one] for one in JUDGED_SPLITS if one in self.evaluations), None
        )

    @property
    def is_lbfgs(self) -> bool:
        """Whether an epoch is one weight decay that the solver tried."""
        return any(one.weight_decay is not None for one in self.epochs)

    @property
    def trunk_seconds(self) -> float:
        """What the frozen layers took, before the first epoch."""
        seconds = self.trunk.get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else 0.0

    @property
    def seconds(self) -> float:
        """What training took so far, evaluation at each epoch's end included."""
        epochs = sum(one.train_seconds + one.valid_seconds for one in self.epochs)
        return self.trunk_seconds + epochs

    @property
    def best_epoch(self) -> EpochRecord | None:
        """The last epoch that was the best so far."""
        return next((one for one in reversed(self.epochs) if one.best), None)

    def recipe_sets(self, *names: str) -> bool:
        """Whether one of these settings is other than nothing."""
        return any(self.table("recipe").get(name) for name in names)

    def table(self, name: str) -> Mapping[str, Any]:
        """A table of `run.toml`; empty where there is none."""
        found = self.facts.get(name)
        return found if isinstance(found, Mapping) else {}


def read_run(run: RunFolder) -> Reading:
    """Read a run. Raises `RunError` where `run.toml`, which makes a folder a run, cannot be."""
    damage: list[str] = []
    facts = run.facts()
    status = _status(run)
    outcome = _forgiven(run.outcome, damage)
    running = status == "running"
    epochs, lost_epochs = _numbered(run.path / "metrics.jsonl", "epoch", _epoch, running)
    steps, lost_steps = _numbered(run.path / "steps.jsonl", "step", _step, running)
    _, lost_findings = _lines(run.path / "findings.jsonl", running)
    lost = {
        "metrics.jsonl": lost_epochs,
        "steps.jsonl": lost_steps,
        "findings.jsonl": lost_findings,
    }
    parts = [f"{counted(count, 'line')} of {name}" for name, count in lost.items() if count]
    if parts:
        damage.append(f"Damaged lines were skipped: {listed(parts)}.")
    return Reading(
        run=run,
        facts=facts,
        status=status,
        reason=str((outcome or {}).get("reason") or ""),
        epochs=tuple(epochs),
        steps=tuple(steps),
        evaluations=_evaluations(run, damage),
        trunk=_forgiven(run.trunk, damage) or {},
        problems=_problems(run, damage),
        damage=tuple(damage),
    )


def as_findings(findings: Iterable[Finding | Mapping[str, Any]]) -> list[Finding]:
    """Findings from their records or the lines of `findings.jsonl`, what is none left out."""
    known = {field.name for field in fields(Finding)}
    found: list[Finding] = []
    for one in findings:
        if isinstance(one, Mapping):
            try:
                one = Finding(**{key: value for key, value in one.items() if key in known})
            except TypeError:
                continue  # a line without what every finding has
        if one.severity in SEVERITIES:
            found.append(one)
    return found


def read_answers(reading: Reading, split: str) -> list[tuple[str, str, str, float]]:
    """Path, label, answer and confidence of each picture of a split; none without its file."""
    rows: list[tuple[str, str, str, float]] = []
    try:
        path = reading.run.path / f"predictions-{split}.csv"
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                try:
                    confidence = float(row["confidence"])
                    rows.append((row["path"], row["label"], row["predicted"], confidence))
                except (KeyError, TypeError, ValueError):
                    continue  # a row cut off
    except (OSError, csv.Error):
        return []
    return rows


def class_names(reading: Reading) -> dict[str, str]:
    """What the class of each folder is called, each name there once."""
    folders = reading.table("data").get("classes")
    folders = [str(one) for one in folders] if isinstance(folders, list) else []
    return dict(zip(folders, apart(ClassLabel.from_folder(one).name for one in folders)))


def _status(run: RunFolder) -> str:
    try:
        return run.status()
    except RunError:  # one of the files that tell it is damaged
        return "finished" if (run.bundle / "bundle.json").is_file() else "interrupted"


def _forgiven(
    read: Callable[[], dict[str, Any] | None], damage: list[str]
) -> dict[str, Any] | None:
    try:
        return read()
    except (RunError, OSError) as error:
        damage.append(str(error))
        return None


def _lines(path: Path, running: bool) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a JSON-lines file, and how many are damaged. The last of a running run
    may still be being written."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return [], 0
    unfinished = lines.pop()
    if unfinished and not running:
        lines.append(unfinished)
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found, len(lines) - len(found)


def _numbered(
    path: Path, key: str, parse: Callable[[dict[str, Any]], Any], running: bool
) -> tuple[list[Any], int]:
    """Records in the order of their numbers; the later of two with one number counts."""
    lines, damaged = _lines(path, running)
    records: dict[int, Any] = {}
    for line in lines:
        try:
            records[int(line[key])] = parse(line)
        except (KeyError, TypeError, ValueError):
            damaged += 1
    return [records[at] for at in sorted(records)], damaged


def _epoch(line: dict[str, Any]) -> EpochRecord:
    parts = {name: _metrics(line[name]) for name in ("train", "valid")}
    record = EpochRecord(**{**line, **parts})
    float(record.train_seconds + record.valid_seconds + record.learning_rate)  # numbers, or damage
    return record


def _metrics(facts: Mapping[str, Any]) -> SplitMetrics:
    names = [field.name for field in fields(SplitMetrics) if field.name != "pictures"]
    return SplitMetrics(
        **{name: float(facts[name]) for name in names}, pictures=int(facts["pictures"])
    )


def _step(line: dict[str, Any]) -> dict[str, Any]:
    return {**line, "loss": float(line["loss"])}


def _evaluations(run: RunFolder, damage: list[str]) -> dict[str, Evaluation]:
    found: dict[str, Evaluation] = {}
    for split in JUDGED_SPLITS:
        facts = _forgiven(lambda split=split: run.evaluation(split), damage)  # type: ignore[misc]
        if facts is None:
            continue
        try:
            found[split] = _evaluation(split, facts)
        except (KeyError, TypeError, ValueError):
            damage.append(
                f"{run.path / f'evaluation-{split}.json'} is damaged: it lacks figures of an "
                "evaluation."
            )
    return found


def _evaluation(split: str, facts: Mapping[str, Any]) -> Evaluation:
    classes = facts["per_class"]
    confusion = np.asarray(facts["confusion"], np.int64)
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError("the confusion matrix is not of the classes")
    scores = {
        name: np.array([one[name] for one in classes], np.float64)
        for name in ("precision", "recall", "f1")
    }
    names = tuple(apart(str(one["class_name"]) for one in classes))
    return Evaluation(split, _metrics(facts), names, confusion=confusion, **scores)


def _problems(run: RunFolder, damage: list[str]) -> tuple[PictureProblem, ...]:
    try:
        return tuple(run.problems())
    except (OSError, TypeError, UnicodeDecodeError, csv.Error):
        damage.append(f"{run.path / 'corrupt_pictures.csv'} is damaged and was not read.")
        return ()
