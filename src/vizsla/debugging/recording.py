"""What was recorded, step by step: the lines of `tensors.jsonl` and the files that they name.

The lower half of reading. It follows a file that grows, forgets the steps that a resumed session
computes again, and fetches arrays when they are asked for. `tensors.py` gives them names.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.debugging.format import (
    FORMAT_VERSION,
    IN_LINES,
    STORED,
    Row,
    lines_file,
    tensors_folder,
)
from vizsla.errors import InputError, RunError
from vizsla.runs.folder import RunFolder

_POLL_S = 0.5
_BEGINNING = 50
_COLUMN = {name: number for number, name in enumerate(STORED)}


class TensorUnavailable(InputError, LookupError):
    """A tensor, step or value that was not recorded; the message says what was."""


@dataclass(frozen=True)
class Table:
    """The tensors of a step, in the order of its rows."""

    names: tuple[str, ...]
    collections: tuple[str, ...]
    row: Mapping[str, int]


@dataclass(slots=True)
class StepLine:
    """One recorded step. `number` counts recorded steps of all modes; `rows` are its reductions
    (tensors, STORED) once they have been asked for."""

    mode: str
    step: int
    number: int
    time: float
    rate: float | None
    losses: dict[str, float]
    labels: list[int]
    predictions: list[int]
    confidences: list[float]
    table: str | None
    file: str | None
    rows: NDArray[np.float32] | None = field(default=None, repr=False)


class Recording:
    """The recording of one process. Of a long one keeps the beginning, against which rules
    measure, and the last `keep_steps` steps."""

    def __init__(self, run: Path, rank: int = 0, keep_steps: int | None = None) -> None:
        self.run, self._rank, self._keep = run, rank, keep_steps
        self.lines: list[StepLine] = []
        self.sessions: list[dict[str, Any]] = []
        self.repeated: list[tuple[int, float, float]] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.damaged = 0
        self._tables: dict[str, Table] = {}
        self._replaced: dict[int, StepLine] = {}
        self._names: dict[str | None, dict[str, str]] = {}
        self._by_mode: dict[str | None, list[StepLine]] = {}
        self._offset, self._count = 0, 0
        self._last: tuple[tuple[str | None, str], NDArray[Any] | None] = ((None, ""), None)

    @property
    def last_time(self) -> float | None:
        return self.lines[-1].time if self.lines else None

    def refresh(self) -> bool:
        """Read whole lines from where the last reading ended; whether there were any."""
        found = False
        for line in self._new_lines():
            found = True
            try:
                facts = json.loads(line)
                version = facts.get("format_version", FORMAT_VERSION)
                self._take(facts)
            except (ValueError, TypeError, KeyError, AttributeError):
                self.damaged += 1
                continue
            if version != FORMAT_VERSION:
                raise RunError(
                    f"The tensors of {self.run} were recorded in format {version}, and this vizsla "
                    f"reads format {FORMAT_VERSION}. Use the vizsla that recorded them."
                )
            if self._keep is not None and len(self.lines) > _BEGINNING + 2 * self._keep:
                del self.lines[_BEGINNING : -self._keep]
        if found:
            if self._keep is not None and len(self.lines) > _BEGINNING + self._keep:
                del self.lines[_BEGINNING : -self._keep]
            self._names.clear()
            self._by_mode.clear()
        return found

    def of_mode(self, mode: str | None) -> list[StepLine]:
        """The steps of a mode, or of all, in the order in which they were recorded."""
        if mode not in self._by_mode:
            self._by_mode[mode] = [one for one in self.lines if mode in (None, one.mode)]
        return self._by_mode[mode]

    def names(self, mode: str | None) -> dict[str, str]:
        """Name to collection of everything recorded in a mode, or in all."""
        if mode not in self._names:
            found: dict[str, str] = {}
            lines = self.of_mode(mode)
            for line in lines:
                found.update(dict.fromkeys(line.losses, "losses"))
            if any(line.labels for line in lines):
                found |= {"labels": "labels", "predictions": "predictions"}
            for key in dict.fromkeys(line.table for line in lines if line.table is not None):
                table = self._tables[key]
                found |= dict(zip(table.names, table.collections, strict=True))
            self._names[mode] = found
        return self._names[mode]

    def holds(self, line: StepLine, name: str) -> bool:
        """Whether anything of a tensor was recorded at a step."""
        if name in line.losses or (name in IN_LINES and line.labels):
            return True
        return line.table is not None and name in self._tables[line.table].row

    def has_value(self, line: StepLine, name: str) -> bool:
        if name in line.losses or name in IN_LINES:
            return True
        return self._array(line, f"whole/{name}") is not None

    def value(self, line: StepLine, name: str) -> NDArray[Any]:
        """The whole value of a tensor at a step that holds it."""
        if name in line.losses:
            return np.array(line.losses[name])
        if name in ("labels", "predictions"):
            return np.array(getattr(line, name), np.int64)
        found = self._array(line, f"whole/{name}")
        if found is None:
            raise TensorUnavailable(
                f"Of {name} at step {line.step} only reductions were kept (reduction_value, "
                f"histogram). Capture it whole with --capture-whole {name.split('/')[-1]}"
            )
        return found

    def reduction(self, line: StepLine, name: str, reduction: str) -> float:
        if name in line.losses:
            return _of_number(line.losses[name], reduction)
        if line.table is None or name not in self._tables[line.table].row:
            raise TensorUnavailable(f"{name} has no reductions at step {line.step}.")
        row = self._rows(line)[self._tables[line.table].row[name]]
        return float(_column(row, reduction))

    def histogram(self, line: StepLine, name: str) -> NDArray[np.int64]:
        counts = self._array(line, "histograms")
        if counts is None or line.table is None or name not in self._tables[line.table].row:
            raise TensorUnavailable(f"{name} has no histogram at step {line.step}.")
        return np.asarray(counts[self._tables[line.table].row[name]], np.int64)

    def matrix(
        self, reduction: str, names: tuple[str, ...], mode: str, last: int | None = None
    ) -> tuple[NDArray[np.int64], tuple[str, ...], NDArray[np.float64], NDArray[np.bool_]]:
        """Steps, names, values (steps, names), and which of those were recorded."""
        lines = self.of_mode(mode)
        first = 0 if last is None else max(0, len(lines) - last)
        lines = [one for one in lines[first:] if one.table is not None]
        values = np.full((len(lines), len(names)), np.nan)
        present = np.zeros(values.shape, bool)
        groups: dict[str, list[int]] = {}
        for at, line in enumerate(lines):
            groups.setdefault(str(line.table), []).append(at)
        for key, places in groups.items():
            row = self._tables[key].row
            mine = [(column, row[name]) for column, name in enumerate(names) if name in row]
            if not mine:
                continue
            columns, rows = (np.array(part) for part in zip(*mine, strict=True))
            stacked = np.stack([self._rows(lines[at])[rows] for at in places])
            block = np.ix_(np.array(places), columns)
            values[block] = _column(stacked, reduction)
            present[block] = ~np.isnan(stacked[..., _COLUMN["nans"]])  # else its file is gone
        steps = np.array([line.step for line in lines], np.int64)
        some = present.any(axis=1)
        return steps[some], names, values[some], present[some]

    def units(
        self, name: str, mode: str, last: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        lines = [one for one in self.of_mode(mode) if one.table and self.holds(one, name)]
        files: dict[str | None, list[StepLine]] = {}
        for line in lines if last is None else lines[-last:]:
            files.setdefault(line.file, []).append(line)
        found: list[tuple[int, NDArray[Any]]] = []
        for file, together in files.items():
            arrays = self._arrays(file, [_key(line, f"units/{name}") for line in together])
            for line in together:
                shares = arrays.get(_key(line, f"units/{name}"))
                found += [(line.step, shares)] if shares is not None else []
        widths = {len(shares) for _, shares in found}
        if len(widths) != 1:  # none, or of a layer whose width changed
            return np.zeros(0, np.int64), np.zeros((0, 0))
        steps = np.array([step for step, _ in found], np.int64)
        return steps, np.stack([shares for _, shares in found]).astype(np.float64)

    def is_being_written(self) -> bool:
        return RunFolder(self.run).status() == "running"

    def wait(self, there: Callable[[], bool]) -> None:
        while not there() and self.is_being_written():
            time.sleep(_POLL_S)
            self.refresh()
        self.refresh()

    def _new_lines(self) -> Iterator[bytes]:
        path = lines_file(self.run, self._rank)
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # still being written, or cut off by a kill
                    return
                self._offset += len(line)
                yield line

    def _take(self, facts: dict[str, Any]) -> None:
        if "session" in facts:
            self._begin_session(facts)
        elif "names" in facts:
            rows: list[Row] = [(n, c, tuple(s), d) for n, c, s, d in facts["tensors"]]
            names = tuple(row[0] for row in rows)
            self._tables[facts["names"]] = Table(
                names,
                tuple(row[1] for row in rows),
                {name: at for at, name in enumerate(names)},
            )
            for name, _, shape, _ in rows:
                self.shapes.setdefault(name, shape)
        else:
            self._take_step(facts)

    def _begin_session(self, facts: dict[str, Any]) -> None:
        """What the session computes again is known from now on by its new lines alone."""
        self.sessions.append(facts)
        cut = next(
            (
                at
                for at, line in enumerate(self.lines)
                if line.mode == "train" and line.step >= int(facts["first_step"])
            ),
            len(self.lines),
        )
        self._replaced |= {one.step: one for one in self.lines[cut:] if one.mode == "train"}
        del self.lines[cut:]

    def _take_step(self, facts: dict[str, Any]) -> None:
        table = facts.get("table")
        if table is not None and table not in self._tables:
            raise ValueError(table)  # its names were on a line that is damaged
        line = StepLine(
            mode=facts["mode"],
            step=int(facts["step"]),
            number=self._count,
            time=float(facts["time"]),
            rate=facts.get("lr"),
            losses={name: float(value) for name, value in facts.get("losses", {}).items()},
            labels=facts.get("labels", []),
            predictions=facts.get("predictions", []),
            confidences=facts.get("confidences", []),
            table=table,
            file=facts.get("file"),
        )
        before = self._replaced.pop(line.step, None) if line.mode == "train" else None
        if before is not None:
            for name, value in list(line.losses.items())[:1]:
                if name in before.losses:
                    self.repeated.append((line.step, before.losses[name], value))
        self._count += 1
        self.lines.append(line)

    def _rows(self, line: StepLine) -> NDArray[np.float32]:
        """A step's reductions; whatever else lies in its file is fetched with them."""
        if line.rows is None:
            together = [one for one in self.lines if one.file == line.file and one.table]
            arrays = self._arrays(line.file, [_key(one, "reductions") for one in together])
            for one in together:
                shape = (len(self._tables[str(one.table)].names), len(STORED))
                rows = arrays.get(_key(one, "reductions"))
                whole = rows is not None and rows.shape == shape
                one.rows = rows if whole else np.full(shape, np.nan, np.float32)
        assert line.rows is not None
        return line.rows

    def _array(self, line: StepLine, what: str) -> NDArray[Any] | None:
        """An array of a step; None where there is none, or its file is gone or damaged. The last
        one is kept, since what is asked for next is often another row of it."""
        key = _key(line, what)
        if self._last[0] != (line.file, key):
            self._last = (line.file, key), self._arrays(line.file, [key]).get(key)
        return self._last[1]

    def _arrays(self, file: str | None, keys: Iterable[str]) -> dict[str, NDArray[Any]]:
        """Those of the arrays `keys` that a file has."""
        if file is None:
            return {}
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(tensors_folder(self.run, self._rank) / file, "numpy") as opened:
                there = set(opened.keys())
                return {key: opened.get_tensor(key) for key in keys if key in there}
        except (OSError, SafetensorError):
            self.damaged += 1
            return {}


def _key(line: StepLine, what: str) -> str:
    return f"{line.mode}/{line.step}/{what}"


def _of_number(value: float, reduction: str) -> float:
    """A reduction of a single number."""
    counts = {"zeros": value == 0, "nans": math.isnan(value), "infs": math.isinf(value)}
    if reduction in counts:
        return float(counts[reduction])
    if reduction in ("l1", "l2", "abs_mean"):
        return abs(value)
    return {"std": 0.0, "variance": 0.0, "update": math.nan}.get(reduction, value)


def _column(rows: NDArray[np.float32], reduction: str) -> NDArray[np.float64]:
    """One reduction of rows (..., STORED), in float64."""
    if reduction == "variance":
        return np.asarray(rows[..., _COLUMN["std"]].astype(np.float64) ** 2)
    if reduction == "abs_mean":
        sums, sizes = (rows[..., _COLUMN[one]].astype(np.float64) for one in ("l1", "size"))
        return np.asarray(sums / np.maximum(sizes, 1))
    return rows[..., _COLUMN[reduction]].astype(np.float64)
