"""Writing captured tensors. One writer a process; a kill loses what was held back, no more.

Steps that bring tensors are held until there is a file's worth or some seconds have gone by, so
that a long run makes neither a file a step nor one file that a kill could damage.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.checksum import crc_of
from vizsla.debugging.format import FORMAT_VERSION, Row, lines_file, tensors_folder
from vizsla.runs.files import append_lines, read_lines, storage_error, write_whole

_FILE_BYTES = 32_000_000
_HELD_STEPS = 256


@dataclass
class StepRecord:
    """What was captured in one step. `table` names the rows of `arrays["reductions"]`."""

    mode: str
    step: int
    time: float = field(default_factory=time.time)
    rate: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    table: tuple[Row, ...] = ()
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


class TensorWriter:
    """Appends steps to the recording of a run, as its next session. `next_steps` are the numbers
    that follow on the steps of earlier ones, for modes but training."""

    def __init__(
        self, run: Path, first_step: int, capture: Mapping[str, Any], rank: int = 0
    ) -> None:
        self._lines, self._folder = lines_file(run, rank), tensors_folder(run, rank)
        self._session, self.next_steps = 1, dict[str, int]()
        for line in read_lines(self._lines):
            self._session += "session" in line
            mode = str(line.get("mode", "train"))
            if mode != "train":  # whose steps its owner counts
                self.next_steps[mode] = 1 + int(line.get("step") or 0)
        self._files = 0
        self._held: list[StepRecord] = []
        self._held_bytes = 0
        self._tables: dict[tuple[tuple[str, str, str], ...], str] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(self._folder, error) from error
        append_lines(
            self._lines,
            [
                {
                    "session": self._session,
                    "format_version": FORMAT_VERSION,
                    "begun": datetime.now().astimezone().isoformat(timespec="seconds"),
                    "time": round(time.time(), 3),
                    "first_step": first_step,
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "capture": dict(capture),
                }
            ],
        )

    def add(self, record: StepRecord) -> None:
        """Take a step; it is written with the next `flush`, or now if much is held."""
        self._held.append(record)
        self._held_bytes += sum(array.nbytes for array in record.arrays.values())
        if self._held_bytes >= _FILE_BYTES or len(self._held) >= _HELD_STEPS:
            self.flush()

    def flush(self) -> None:
        """Write what is held. Raises `StorageError`, and has then given it up."""
        held, self._held, self._held_bytes = self._held, [], 0
        if not held:
            return
        file = self._write_arrays(held)
        lines: list[dict[str, Any]] = []
        for record in held:
            lines += self._table_line(record)
            lines.append(self._step_line(record, file))
        append_lines(self._lines, lines)

    def _write_arrays(self, held: list[StepRecord]) -> str:
        arrays = {
            f"{record.mode}/{record.step}/{what}": np.ascontiguousarray(array)
            for record in held
            for what, array in record.arrays.items()
        }
        if not arrays:
            return ""
        from safetensors.numpy import save

        self._files += 1
        name = f"{self._session:02d}-{self._files:06d}.safetensors"
        write_whole(self._folder / name, lambda file: file.write(save(arrays)), durable=False)
        return name

    def _table_line(self, record: StepRecord) -> list[dict[str, Any]]:
        """The table of a step, if it is new to this session."""
        key = _key(record.table)
        if not key or key in self._tables:
            return []
        name = f"{crc_of(json.dumps(key)):08x}"
        self._tables[key] = name
        return [{"names": name, "tensors": [list(row) for row in record.table]}]

    def _step_line(self, record: StepRecord, file: str) -> dict[str, Any]:
        line: dict[str, Any] = {
            "step": record.step,
            "mode": record.mode,
            "time": round(record.time, 3),
        }
        if record.rate is not None:
            line["lr"] = record.rate
        if record.losses:
            line["losses"] = {name: _number(value) for name, value in record.losses.items()}
        if record.labels:
            line["labels"] = record.labels
            line["predictions"] = record.predictions
            line["confidences"] = [_number(round(one, 4)) for one in record.confidences]
        if record.table:
            line["table"] = self._tables[_key(record.table)]
        if record.arrays:
            line["file"] = file
        return line


def _key(table: tuple[Row, ...]) -> tuple[tuple[str, str, str], ...]:
    """A table without its shapes, which change with the size of a batch."""
    return tuple((name, collection, kind) for name, collection, _, kind in table)


def _number(value: float) -> float | str:
    """JSON knows no NaN and no infinity; readers take their names for them."""
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)
