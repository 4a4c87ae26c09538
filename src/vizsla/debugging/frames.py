"""Captured tensors as a pandas frame: a row for each tensor and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from vizsla.debugging.format import IN_LINES, REDUCTIONS

if TYPE_CHECKING:
    from vizsla.debugging.tensors import Tensors

_COLUMNS = ["step", "mode", "tensor", "collection", "value", *REDUCTIONS]


def frame_of(tensors: Tensors, names: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The frame of the tensors called so in each mode; `value` is of losses, reductions of the
    rest."""
    frames = [frame for mode, some in names.items() for frame in _of_mode(tensors, mode, some)]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=_COLUMNS)
    return pd.concat(frames, ignore_index=True).reindex(columns=_COLUMNS)


def _of_mode(tensors: Tensors, mode: str, names: Sequence[str]) -> list[pd.DataFrame]:
    homes = {name: tensors.tensor(name).collection for name in names}
    frames = []
    for name in (one for one in names if homes[one] == "losses"):
        series = tensors.losses(mode, name)
        frames.append(pd.DataFrame({"step": series.steps, "tensor": name, "value": series.values}))
    reduced = [name for name in names if homes[name] not in IN_LINES]
    if reduced:
        parts = {one: tensors.matrix(one, names=reduced, mode=mode) for one in REDUCTIONS}
        matrix = parts["mean"]
        rows, columns = np.nonzero(matrix.present)
        values = {one: part.values[rows, columns] for one, part in parts.items()}
        tensor = np.array(reduced, object)[columns]
        frames.append(pd.DataFrame({"step": matrix.steps[rows], "tensor": tensor, **values}))
    for frame in frames:
        frame["mode"] = mode
        frame["collection"] = frame["tensor"].map(homes)
    return frames
