"""Steps that are over, held as columns until they are written: a step adds a number to each.

Objects for steps, and JSON's own way with floating-point numbers, would take longer than all of
the timing does.
"""

from __future__ import annotations

import json
from array import array

import numpy as np


class StepColumns:
    """Number, start and seconds of each step, and a column for each phase of `phase`. Whoever ends
    a step appends to every one of them."""

    def __init__(self) -> None:
        self.steps, self.starts, self.seconds = array("q"), array("d"), array("d")
        self._phases: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def phase(self, name: str) -> array[float]:
        """The column of a phase that is new; the steps so far had none of it."""
        self._phases[name] = array("d", bytes(8 * len(self)))
        return self._phases[name]

    def taken(self, zero: float) -> str:
        """The steps as one line of `timeline.jsonl`, no longer held; `zero` is added to when they
        began. What was in no phase of its own is `other`."""
        seconds = np.array(self.seconds)
        named = {name: column for name, column in self._phases.items() if name != "other"}
        parts = {name: np.array(column) for name, column in named.items() if any(column)}
        other = np.maximum(seconds - sum(parts.values()), 0.0)
        phases = ",".join(
            f"{json.dumps(name)}:{_listed('%.6f', column)}"
            for name, column in {**parts, "other": other}.items()
        )
        line = (
            f'{{"kind":"steps","step":{_listed("%d", np.array(self.steps))},'
            f'"time":{_listed("%.4f", np.array(self.starts) + zero)},'
            f'"seconds":{_listed("%.6f", seconds)},"phases":{{{phases}}}}}\n'
        )
        del self.steps[:]
        for column in (self.starts, self.seconds, *self._phases.values()):
            del column[:]
        return line


def _listed(form: str, numbers: np.ndarray[tuple[int], np.dtype[np.generic]]) -> str:
    """Numbers as a JSON list, four times as fast as `json` lists them."""
    return f"[{((form + ',') * len(numbers) % tuple(numbers.tolist()))[:-1]}]"
