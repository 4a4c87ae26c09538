"""One captured tensor, by the names that `smdebug` gave its methods."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.debugging.format import BINS, GLOBAL, MODES, REDUCTIONS
from vizsla.debugging.recording import Recording, StepLine, TensorUnavailable
from vizsla.errors import SettingError, nearest


@dataclass(frozen=True)
class Tensor:
    """One tensor over the steps at which it was recorded. Unless a `mode` is given, steps are those
    of training if the tensor was recorded there, else of its mode."""

    name: str
    collection: str
    _recording: Recording

    @cached_property
    def _by_mode(self) -> dict[str, dict[int, StepLine]]:
        found: dict[str, dict[int, StepLine]] = {}
        for line in self._recording.of_mode(None):
            if self._recording.holds(line, self.name):
                found.setdefault(line.mode, {})[line.step] = line
        return found

    def steps(self, mode: str | None = None) -> list[int]:
        """Steps at which it was recorded, in a mode."""
        return list(self._lines(mode))

    def prev_steps(self, step: int, n: int, mode: str | None = None) -> list[int]:
        """The last `n` of its steps up to `step`."""
        return [one for one in self.steps(mode) if one <= step][-n:]

    def value(self, step: int, mode: str | None = None) -> NDArray[Any]:
        """The whole tensor at a step; a loss as an array of one number. Raises `TensorUnavailable`
        where only its reductions were kept."""
        return self._recording.value(self._line(step, mode), self.name)

    def values(self, mode: str | None = None) -> dict[int, NDArray[Any]]:
        """Step to value, where values were kept."""
        return {
            step: self._recording.value(line, self.name)
            for step, line in self._lines(mode).items()
            if self._recording.has_value(line, self.name)
        }

    def reduction_value(
        self, step: int, reduction_name: str, mode: str | None = None, abs: bool = False
    ) -> float:
        """One reduction at a step; with `abs`, of the absolute values: mean, max, l1 or l2."""
        check_reduction(reduction_name)
        line = self._line(step, mode)
        if not abs or reduction_name in ("l1", "l2"):
            return self._recording.reduction(line, self.name, reduction_name)
        if reduction_name == "mean":
            return self._recording.reduction(line, self.name, "abs_mean")
        if reduction_name == "max":
            ends = (self._recording.reduction(line, self.name, end) for end in ("min", "max"))
            return max(map(builtins.abs, ends))
        raise SettingError(
            f"Of absolute values mean, max, l1 and l2 are kept, and {reduction_name} is not."
        )

    def reduction_values(self, step: int, mode: str | None = None) -> dict[str, float]:
        """Every reduction at a step."""
        line = self._line(step, mode)
        return {name: self._recording.reduction(line, self.name, name) for name in REDUCTIONS}

    def histogram(
        self, step: int, mode: str | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Counts (BINS,) and edges (BINS + 1,) of at most 4,096 values at even distances."""
        line = self._line(step, mode)
        low, high = (self._recording.reduction(line, self.name, end) for end in ("min", "max"))
        return self._recording.histogram(line, self.name), np.linspace(low, high, BINS + 1)

    def _lines(self, mode: str | None) -> dict[int, StepLine]:
        if mode is not None and mode.lower() == GLOBAL:
            lines = [line for part in self._by_mode.values() for line in part.values()]
            return {line.number: line for line in sorted(lines, key=lambda line: line.number)}
        chosen = mode_of(mode) or next((m for m in MODES if m in self._by_mode), "train")
        return self._by_mode.get(chosen, {})

    def _line(self, step: int, mode: str | None) -> StepLine:
        lines = self._lines(mode)
        if step not in lines:
            near = sorted(lines, key=lambda one: abs(one - step))[:3]
            hint = f" It has {', '.join(map(str, sorted(near)))} near it." if near else ""
            where = f" in mode {mode}" if mode is not None else ""
            raise TensorUnavailable(f"{self.name} was not recorded at step {step}{where}.{hint}")
        return lines[step]


def mode_of(mode: str | None) -> str | None:
    """A mode as we name it; None for all together. `smdebug`'s capitals and enumeration fit."""
    if mode is None:
        return None
    name = str(getattr(mode, "value", mode)).lower()
    if name == GLOBAL:
        return None
    if name not in MODES:
        raise SettingError(
            f"There is no mode {mode!r}.{nearest(name, MODES)} There are {', '.join(MODES)}, "
            f"{GLOBAL}."
        )
    return name


def check_reduction(name: str) -> None:
    if name not in REDUCTIONS:
        raise SettingError(
            f"There is no reduction {name!r}.{nearest(name, REDUCTIONS)} There are "
            f"{', '.join(REDUCTIONS)}."
        )
