"""A recording as files of TensorBoard, for those who watch all their trainings there.

Written beside the training or after it, from what was recorded: capture knows nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vizsla.debugging.recording import TensorUnavailable
from vizsla.debugging.tensor import Tensor
from vizsla.debugging.tensors import Series, Tensors
from vizsla.extras import require
from vizsla.runs.folder import RunFolder
from vizsla.thinning import evenly

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# TensorBoard keeps some hundreds of a tensor and shows fewer; each is read on its own.
_HISTOGRAMS_AT_ONCE = 100
_OF_A_HISTOGRAM = ("mean", "variance", "min", "max")
_NEVER = -1


class TensorBoardFiles:
    """Writes a recording into `folder`, which TensorBoard shows as one run, in place of what an
    earlier one wrote there.

    Scalars are `loss/train`, `learning_rate` and `loss/valid` (at the training step it came after),
    `accuracy/train` and `accuracy/valid` where the run has epochs, for each tensor `l2/NAME` and
    for each weight `update/NAME`; histograms are `COLLECTION/NAME`, of at most 100 steps an
    update. What was recorded outside training goes by `MODE/` in front and the steps of its mode.
    Not for several threads at a time. Raises `DependencyError` where TensorBoard is not installed.
    """

    def __init__(self, run_folder: Path, tensors: Tensors, folder: Path) -> None:
        require("tensorboard", "tensorboard", "Writing TensorBoard files")
        self._run, self._tensors, self._folder = RunFolder(run_folder), tensors, folder
        self._begin()

    def update(self) -> None:
        """Read on, and write what is new."""
        self._write(evaluations_over=False)

    def close(self) -> None:
        """Write the rest, with the last evaluation, of which nobody could tell whether it went
        on."""
        self._write(evaluations_over=True)
        self._writer.close()

    def _begin(self) -> None:
        """From the first step on."""
        self._sessions = len(self._tensors.sessions)
        self._written: dict[str, int] = {}  # mode to its last step that is written
        self._valid_written, self._epochs_written = _NEVER, 0
        _wait_for_a_later_name(self._folder)
        self._writer = _writer(self._folder)

    def _write(self, evaluations_over: bool) -> None:
        self._tensors.refresh()
        if len(self._tensors.sessions) > self._sessions:  # which may replace steps of earlier ones
            self._writer.close()
            self._begin()
        self._write_evaluations(evaluations_over)
        self._write_epochs()
        since = self._written.get("train", _NEVER)
        self._add_scalars("loss/train", self._tensors.losses("train"), since)
        self._add_scalars("learning_rate", self._tensors.learning_rates(), since)
        for mode in self._tensors.modes():
            since, steps = self._written.get(mode, _NEVER), self._tensors.steps(mode)
            new = sum(step > since for step in steps)
            if new:
                self._write_reductions(mode, since, new)
                self._write_histograms(mode, since, new)
                self._written[mode] = max(steps)
        self._writer.flush()

    def _write_evaluations(self, over: bool) -> None:
        last = max(self._tensors.steps("train"), default=_NEVER)
        for one in self._tensors.evaluations():
            if one.step > self._valid_written and (over or one.step < last):
                self._writer.add_scalar("loss/valid", one.valid_loss, one.step)
                self._valid_written = one.step

    def _write_epochs(self) -> None:
        for record in self._run.epochs()[self._epochs_written :]:
            for split, figures in (("train", record.train), ("valid", record.valid)):
                self._writer.add_scalar(f"accuracy/{split}", figures.accuracy, record.step)
            self._epochs_written += 1

    def _write_reductions(self, mode: str, since: int, last: int) -> None:
        weights = self._tensors.tensor_names(collection="weights", mode=mode)
        for kind, names in (("l2", None), ("update", weights)):
            matrix = self._tensors.matrix(kind, names=names, mode=mode, last=last)
            for name in matrix.names:
                self._add_scalars(f"{_about(mode)}{kind}/{name}", matrix.series(name), since)

    def _write_histograms(self, mode: str, since: int, last: int) -> None:
        parts = {one: self._tensors.matrix(one, mode=mode, last=last) for one in _OF_A_HISTOGRAM}
        matrix = parts["mean"]
        tensors = [self._tensors.tensor(name) for name in matrix.names]
        new = np.flatnonzero(matrix.steps > since)
        for row in new[evenly(new, _HISTOGRAMS_AT_ONCE)]:
            for column in np.flatnonzero(matrix.present[row]):
                facts = {one: float(part.values[row, column]) for one, part in parts.items()}
                self._add_histogram(tensors[column], int(matrix.steps[row]), mode, facts)

    def _add_histogram(
        self, tensor: Tensor, step: int, mode: str, facts: Mapping[str, float]
    ) -> None:
        try:
            counts, edges = tensor.histogram(step, mode)
        except TensorUnavailable:  # its file is gone
            return
        number = int(counts.sum())
        sums = number * facts["mean"], number * (facts["variance"] + facts["mean"] ** 2)
        if number and np.isfinite([*edges, *sums]).all():
            self._writer.add_histogram_raw(
                f"{_about(mode)}{tensor.collection}/{tensor.name}",
                min=facts["min"], max=facts["max"], num=number, sum=sums[0], sum_squares=sums[1],
                bucket_limits=edges[1:].tolist(), bucket_counts=counts.tolist(), global_step=step,
            )  # fmt: skip

    def _add_scalars(self, tag: str, series: Series, since: int) -> None:
        new = series.steps > since
        for step, value in zip(
            series.steps[new].tolist(), series.values[new].tolist(), strict=True
        ):
            self._writer.add_scalar(tag, value, step)


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second of their
    making and say nothing of the order within it."""
    while any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
        time.sleep(0.05)


def _writer(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard forgets what it read of this folder from step 0 on.
    return SummaryWriter(str(folder), purge_step=0)


def _about(mode: str) -> str:
    return "" if mode == "train" else f"{mode}/"
