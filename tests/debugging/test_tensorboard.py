"""Files that TensorBoard reads as what the reader says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.debugging.format import STORED
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensorboard import TensorBoardFiles
from vizsla.debugging.tensors import Tensors
from vizsla.errors import DependencyError
from vizsla.records import EpochRecord, SplitMetrics
from vizsla.runs.folder import RunFolder

Maker = Callable[..., TrainingRecord]
LOSS = "CrossEntropyLoss_output_0"
WEIGHT, GRADIENT = "conv1.weight", "gradient/conv1.weight"


def read(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0}
    )
    return events.Reload()


def scalars(events: Any, tag: str) -> dict[int, float]:
    found = events.Scalars(tag)
    assert len({one.step for one in found}) == len(found), "a step was written twice"
    return {one.step: one.value for one in found}


def full_record(make_record: Maker) -> TrainingRecord:
    return make_record(
        losses=[2.0, 1.5, 1.0, 0.5], rates=[0.1, 0.1, 0.05, 0.05], eval_losses={1: 1.7, 3: 1.2},
        tensors={
            WEIGHT: {"update": [1e-3, 2e-3, 3e-3, 4e-3], "mean": 0.01},
            GRADIENT: {"l2": [1.0, 2.0, np.nan, 3.0], "max": [0.3, 0.3, np.nan, 0.5]},
        },
    )  # fmt: skip


def test_scalars_are_what_the_reader_says(make_record: Maker, tmp_path: Path) -> None:
    tensors = full_record(make_record).tensors
    TensorBoardFiles(tensors.path, tensors, tmp_path / "board").close()
    events = read(tmp_path / "board")
    assert scalars(events, "loss/train") == {0: 2.0, 1: 1.5, 2: 1.0, 3: 0.5}
    assert scalars(events, "loss/valid") == pytest.approx({1: 1.7, 3: 1.2})
    assert scalars(events, "learning_rate") == pytest.approx({0: 0.1, 1: 0.1, 2: 0.05, 3: 0.05})
    for kind, names in (("l2", [WEIGHT, GRADIENT]), ("update", [WEIGHT])):
        for name in names:
            wanted = tensors.matrix(kind).series(name)
            got = scalars(events, f"{kind}/{name}")
            assert list(got) == wanted.steps.tolist()
            assert np.array_equal(list(got.values()), wanted.values, equal_nan=True)
    assert f"update/{GRADIENT}" not in events.Tags()["scalars"]


def test_histograms_are_what_the_reader_says(make_record: Maker, tmp_path: Path) -> None:
    tensors = full_record(make_record).tensors
    TensorBoardFiles(tensors.path, tensors, tmp_path / "board").close()
    events = read(tmp_path / "board")
    assert set(events.Tags()["histograms"]) == {f"weights/{WEIGHT}", f"gradients/{GRADIENT}"}
    for event in events.Histograms(f"weights/{WEIGHT}"):
        counts, edges = tensors.tensor(WEIGHT).histogram(event.step)
        value = event.histogram_value
        assert list(value.bucket) == counts.tolist()
        assert list(value.bucket_limit) == pytest.approx(edges[1:].tolist())
        assert (value.min, value.max) == pytest.approx((edges[0], edges[-1]))
        assert value.num == counts.sum()
        assert value.sum / value.num == pytest.approx(0.01)
    # The step whose largest value is no number has no histogram.
    assert [one.step for one in events.Histograms(f"gradients/{GRADIENT}")] == [0, 1, 3]


def test_update_writes_what_is_new_alone(make_record: Maker, tmp_path: Path) -> None:
    tensors = make_record(losses=[2.0, 1.5], tensors={WEIGHT: {"l2": [1.0, 2.0]}}).tensors
    files = TensorBoardFiles(tensors.path, tensors, tmp_path / "board")
    files.update()
    files.update()
    assert scalars(read(tmp_path / "board"), "loss/train") == {0: 2.0, 1: 1.5}
    writer = TensorWriter(tensors.path, 2, {})
    writer.add(StepRecord("train", 2, losses={LOSS: 1.0}))
    writer.add(StepRecord("eval", 0, losses={LOSS: 3.0}))
    writer.flush()
    files.update()
    assert "loss/valid" not in read(tmp_path / "board").Tags()["scalars"]  # it may go on
    files.close()
    events = read(tmp_path / "board")
    assert scalars(events, "loss/train") == {0: 2.0, 1: 1.5, 2: 1.0}
    assert scalars(events, "loss/valid") == {2: 3.0}
    assert scalars(events, f"l2/{WEIGHT}") == {0: 1.0, 1: 2.0}


def test_update_of_a_long_recording_reads_the_new_steps_alone(
    make_record: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make_record(tensors={WEIGHT: {"l2": np.arange(200.0)}}).tensors
    writer = TensorWriter(tensors.path, 200, {})
    files = TensorBoardFiles(tensors.path, tensors, tmp_path / "board")
    files.update()
    looked_at: list[int] = []
    whole = Tensors.matrix

    def matrix(self: Tensors, *arguments: Any, **options: Any) -> Any:
        found = whole(self, *arguments, **options)
        looked_at.extend(found.steps.tolist())
        return found

    monkeypatch.setattr(Tensors, "matrix", matrix)
    arrays = {"reductions": np.full((1, len(STORED)), 3.0, np.float32)}
    table = ((WEIGHT, "weights", (4, 4), "float32"),)
    writer.add(StepRecord("train", 200, table=table, arrays=arrays))
    writer.flush()
    files.update()
    assert set(looked_at) == {200}
    looked_at.clear()
    files.close()
    assert looked_at == []
    values = scalars(read(tmp_path / "board"), f"l2/{WEIGHT}")
    assert values == {**{step: float(step) for step in range(200)}, 200: 3.0}


def test_resumed_session_replaces_the_steps_that_it_repeats(
    make_record: Maker, tmp_path: Path
) -> None:
    tensors = make_record(losses=[4.0, 3.0, 2.0], eval_losses={1: 9.0}).tensors
    files = TensorBoardFiles(tensors.path, tensors, tmp_path / "board")
    files.update()
    writer = TensorWriter(tensors.path, 1, {})
    writer.add(StepRecord("train", 1, losses={LOSS: 3.5}))
    writer.flush()
    files.close()
    events = read(tmp_path / "board")
    assert scalars(events, "loss/train") == {0: 4.0, 1: 3.5}
    assert scalars(events, "loss/valid") == {}


def test_writing_again_replaces_what_was_written(make_record: Maker, tmp_path: Path) -> None:
    tensors = full_record(make_record).tensors
    for _ in range(2):
        TensorBoardFiles(tensors.path, tensors, tmp_path / "board").close()
    assert len(scalars(read(tmp_path / "board"), "loss/train")) == 4


def test_tensors_of_evaluations_go_by_their_mode(make_record: Maker, tmp_path: Path) -> None:
    given = {"net_output_0": {"l2": [5.0, 6.0]}}
    tensors = make_record(tensors=given, collection="outputs", mode="eval").tensors
    TensorBoardFiles(tensors.path, tensors, tmp_path / "board").close()
    events = read(tmp_path / "board")
    assert scalars(events, "eval/l2/net_output_0") == {0: 5.0, 1: 6.0}
    assert events.Tags()["histograms"] == ["eval/outputs/net_output_0"]


def test_epochs_of_a_run_bring_accuracies(make_record: Maker, tmp_path: Path) -> None:
    tensors = make_record(losses=[1.0]).tensors
    figures = SplitMetrics(1.0, 0.25, 0.5, 0.2, 8)
    RunFolder(tensors.path).append_epoch(
        EpochRecord(1, 7, 0.1, figures, figures, 1.0, 1.0, 0.0, 8.0)
    )
    files = TensorBoardFiles(tensors.path, tensors, tmp_path / "board")
    files.update()
    files.close()
    assert scalars(read(tmp_path / "board"), "accuracy/valid") == {7: 0.25}


def test_missing_tensorboard_says_how_to_install_it(
    make_record: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    tensors = make_record(losses=[1.0]).tensors
    with pytest.raises(DependencyError, match=r"pip install 'vizsla\[tensorboard\]'"):
        TensorBoardFiles(tensors.path, tensors, tmp_path / "board")


def test_tensorboard_is_imported_only_when_asked() -> None:
    code = (
        "import sys, vizsla.debugging.tensorboard\n"
        "assert not any(name.split('.')[0] == 'tensorboard' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
