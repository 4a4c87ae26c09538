"""Recordings for the debugger's tests: written as capture writes them, from given numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.debugging.format import BINS, GRADIENT, STORED
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors

RecordMaker = Callable[..., TrainingRecord]
LOSS = "CrossEntropyLoss_output_0"


@pytest.fixture
def make_record(tmp_path: Path) -> RecordMaker:
    """A record from numbers, through the real writer and reader; see `record_of`."""
    count = iter(range(1000))

    def make(**facts: Any) -> TrainingRecord:
        return record_of(tmp_path / f"run-{next(count)}", **facts)

    return make


def record_of(
    path: Path,
    *,
    steps: Sequence[int] | None = None,
    losses: Sequence[float] = (),
    rates: Sequence[float] = (),
    eval_losses: Mapping[int, float] | None = None,
    tensors: Mapping[str, Mapping[str, Any]] | None = None,
    collection: str | None = None,
    shape: tuple[int, ...] = (4, 4),
    units: Mapping[str, Any] | None = None,
    answers: Sequence[tuple[Sequence[int], Sequence[int], Sequence[float]]] = (),
    mode: str = "train",
    facts: Mapping[str, Any] | None = None,
    seconds_silent: float | None = None,
) -> TrainingRecord:
    """`losses`, `rates`, `answers` (labels, predictions, confidences) and the lists of `tensors`
    (name to reduction to a number a step, or one for all) have an entry a step. `eval_losses` maps
    the training step after which an evaluation came to its loss. `units` maps an activation to
    (steps, units) shares. `collection` is that of tensors which their names do not tell."""
    tensors = tensors or {}
    lengths = [len(losses), len(answers), len(rates)]
    lengths += [np.size(values) for one in tensors.values() for values in one.values()]
    lengths += [len(shares) for shares in (units or {}).values()]
    steps = range(max(lengths, default=0)) if steps is None else steps
    names = [*tensors, *(name for name in units or {} if name not in tensors)]
    table = tuple((name, _home(name, collection), shape, "float32") for name in names)
    path.mkdir(parents=True)
    writer = TensorWriter(path, min(steps, default=0), {})
    for at, step in enumerate(steps):
        record = StepRecord(mode, step)
        record.losses = {LOSS: float(losses[at])} if at < len(losses) else {}
        record.rate = rates[at] if at < len(rates) else None
        if at < len(answers):
            labels, predictions, confidences = answers[at]
            record.labels, record.predictions = list(labels), list(predictions)
            record.confidences = list(confidences)
        if table:
            record.table = table
            record.arrays = {
                "reductions": _reductions(names, tensors, at, shape),
                "histograms": np.ones((len(names), BINS), np.uint16),
            }
        for name, shares in (units or {}).items():
            record.arrays[f"units/{name}"] = np.asarray(shares[at], np.float16)
        writer.add(record)
        if step in (eval_losses or {}):
            writer.add(StepRecord("eval", step, losses={LOSS: (eval_losses or {})[step]}))
    writer.flush()
    return TrainingRecord(Tensors(path), (), facts or {}, seconds_silent)


def _home(name: str, collection: str | None) -> str:
    if collection is not None:
        return collection
    if name.startswith(GRADIENT):
        return "gradients"
    for known in ("relu_output", "relu_input", "tanh_input", "sigmoid_input"):
        if known in name:
            return known
    if "input" in name:
        return "inputs"
    return "biases" if name.endswith("bias") else "weights"


def _reductions(
    names: Sequence[str], tensors: Mapping[str, Any], at: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Rows of a step; what a test does not say is that of a healthy tensor."""
    healthy = {"std": 0.1, "min": -0.3, "max": 0.3, "l1": 1.3, "l2": 0.4, "quantile_5": -0.16,
               "quantile_95": 0.16, "update": 1e-3, "size": float(np.prod(shape))}  # fmt: skip
    rows = np.zeros((len(names), len(STORED)), np.float32)
    for row, name in enumerate(names):
        for column, reduction in enumerate(STORED):
            value = tensors.get(name, {}).get(reduction, healthy.get(reduction, 0.0))
            rows[row, column] = value if np.ndim(value) == 0 else value[at]
    return rows
