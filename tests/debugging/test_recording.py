"""Recordings on disk: whole or cut off, damaged, taken up again, growing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.debugging import open_tensors
from vizsla.debugging.format import STORED
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors, TensorUnavailable
from vizsla.errors import RunError, SettingError

LOSS = "CrossEntropyLoss_output_0"
TABLE = (
    ("fc.weight", "weights", (2, 3), "float32"),
    ("gradient/fc.weight", "gradients", (2, 3), "float32"),
)


def step_record(
    step: int, loss: float = 1.0, mode: str = "train", tensors: bool = True
) -> StepRecord:
    record = StepRecord(mode, step, losses={LOSS: loss})
    if tensors:
        record.table = TABLE
        record.arrays = {
            "reductions": np.full((2, len(STORED)), step, np.float32),
            "histograms": np.ones((2, 32), np.uint16),
            "whole/fc.weight": np.full((2, 3), step, np.float32),
        }
    return record


def written(path: Path, steps: range, first: int | None = None, **facts: Any) -> TensorWriter:
    path.mkdir(exist_ok=True)
    writer = TensorWriter(path, steps.start if first is None else first, {})
    for step in steps:
        writer.add(step_record(step, **facts))
    writer.flush()
    return writer


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written(tmp_path, range(5))
    tensors = open_tensors(tmp_path)
    assert tensors.tensor_names("grad", "gradients", "train") == ["gradient/fc.weight"]
    assert tensors.tensor("fc.weight").value(3).tolist() == np.full((2, 3), 3.0).tolist()
    assert tensors.tensor(LOSS).value(3, mode="train") == 1.0
    assert tensors.matrix("l2", collection="weights").values[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert tensors.tensor("fc.weight").reduction_value(4, "mean", abs=True) == 1.0


def test_cut_off_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    path = tmp_path / "tensors.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    tensors = Tensors(tmp_path)
    assert tensors.steps("train") == [0, 1]
    assert tensors.damaged == 0
    path.write_bytes(b"".join(lines))
    assert tensors.refresh()
    assert tensors.steps("train") == [0, 1, 2]
    assert not tensors.refresh()


def test_line_after_a_kill_is_not_glued_to_the_cut_off_one(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    with (tmp_path / "tensors.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "mode": "tra')
    written(tmp_path, range(3, 5))
    tensors = Tensors(tmp_path)
    assert tensors.steps("train") == [0, 1, 2, 3, 4]
    assert tensors.damaged == 1


def test_damaged_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    written(tmp_path, range(4))
    path = tmp_path / "tensors.jsonl"
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace('"step"', '"stop"')
    path.write_text(
        "\n".join([*lines[:2], "garbage", *lines[2:], '{"step": null, "mode": "train"}', "[]", ""])
    )
    tensors = Tensors(tmp_path)
    assert tensors.steps("train") == [0, 2, 3]
    assert tensors.damaged == 4


def test_missing_file_leaves_its_tensors_out(tmp_path: Path) -> None:
    written(tmp_path, range(2))
    written(tmp_path, range(2, 4))
    next((tmp_path / "tensors").glob("01-*")).write_bytes(b"no tensors")
    tensors = Tensors(tmp_path)
    matrix = tensors.matrix("l2", collection="weights")
    assert matrix.steps.tolist() == [2, 3]
    assert tensors.losses().steps.tolist() == [0, 1, 2, 3]
    assert tensors.damaged > 0


def test_steps_that_are_computed_again_count_once(tmp_path: Path) -> None:
    written(tmp_path, range(10), loss=1.0)
    written(tmp_path, range(6, 9), loss=2.0)
    tensors = Tensors(tmp_path)
    assert tensors.losses().steps.tolist() == list(range(9))
    assert tensors.losses().values.tolist() == [1.0] * 6 + [2.0] * 3
    assert tensors.repeated_losses() == [(6, 1.0, 2.0), (7, 1.0, 2.0), (8, 1.0, 2.0)]
    assert len(tensors.sessions) == 2


def test_evaluations_are_joined_with_the_training_before_them(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path, 0, {})
    for record in (
        step_record(0, 4.0), step_record(1, 2.0),
        step_record(0, 1.0, "eval", False), step_record(1, 2.0, "eval", False),
        step_record(2, 1.0), step_record(2, 9.0, "eval", False),
    ):  # fmt: skip
        writer.add(record)
    writer.flush()
    first, second = Tensors(tmp_path).evaluations()
    assert (first.step, first.train_loss, first.valid_loss) == (1, 3.0, 1.5)
    assert (second.step, second.train_loss, second.valid_loss) == (2, 1.0, 9.0)


def test_losses_that_are_no_number_come_back_so(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path, 0, {})
    for step, loss in enumerate([float("nan"), float("inf"), 1.0]):
        writer.add(step_record(step, loss))
    writer.flush()
    for line in (tmp_path / "tensors.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    values = Tensors(tmp_path).losses().values
    assert np.isnan(values[0])
    assert np.isinf(values[1])


def test_frame_has_a_row_for_each_tensor_and_step(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    frame = Tensors(tmp_path).to_pandas()
    assert len(frame) == 9
    weights = frame[frame.tensor == "fc.weight"]
    assert weights.step.tolist() == [0, 1, 2]
    assert weights["l2"].tolist() == [0, 1, 2]
    assert frame[frame.tensor == LOSS].value.tolist() == [1.0] * 3
    assert len(Tensors(tmp_path).to_pandas(collection="gradients")) == 3
    assert len(Tensors(tmp_path).to_pandas(mode="eval")) == 0


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    written(tmp_path, range(0, 9, 2))
    tensors = Tensors(tmp_path)
    with pytest.raises(SettingError, match="Did you mean gradients"):
        tensors.tensor_names(collection="gradient")
    with pytest.raises(TensorUnavailable, match="Did you mean fc.weight"):
        tensors.tensor("fc.wieght")
    with pytest.raises(TensorUnavailable, match="0, 2, 4 near"):
        tensors.tensor("fc.weight").value(3)
    with pytest.raises(TensorUnavailable, match="only reductions"):
        tensors.tensor("gradient/fc.weight").value(2)
    with pytest.raises(SettingError, match="no reduction 'norm'"):
        tensors.tensor("fc.weight").reduction_value(2, "norm")
    with pytest.raises(SettingError, match="regular expression"):
        tensors.tensor_names("(")
    with pytest.raises(SettingError, match="no mode 'test'"):
        tensors.steps("test")


def test_folder_without_tensors_says_how_to_capture(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--debug"):
        open_tensors(tmp_path)


def test_reader_forgets_what_it_is_not_to_keep(tmp_path: Path) -> None:
    written(tmp_path, range(80))
    kept = [*range(50), *range(70, 80)]
    assert Tensors(tmp_path, keep_steps=10).steps("train") == kept


_KILLED = """
import sys, time
from pathlib import Path
from vizsla.debugging.store import TensorWriter, StepRecord
writer = TensorWriter(Path(sys.argv[1]), 0, {})
for step in range(10**9):
    writer.add(StepRecord("train", step, losses={"loss": 1.0 / (step + 1)}))
    writer.flush()
"""


def test_kill_leaves_a_recording_that_reads_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "tensors.jsonl"
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 20_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    steps = Tensors(tmp_path).steps("train")
    assert steps == list(range(len(steps)))
    assert len(steps) > 10
    written(tmp_path, range(len(steps), len(steps) + 3))
    assert Tensors(tmp_path).steps("train") == list(range(len(steps) + 3))
