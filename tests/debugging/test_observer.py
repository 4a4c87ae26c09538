"""The debugger beside vizsla's own trainings: nothing changes, much is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vizsla
from vizsla.data.synthetic import DrawnDataset
from vizsla.debugging.settings import DebugSettings
from vizsla.errors import RunError, SettingError
from vizsla.settings import Recipe
from vizsla.training.events import Observer

BASE = Recipe(
    model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=2, workers=0,
    batch_size=12, precision="fp32",
)  # fmt: skip
# A rule that always finds something once there are losses.
ALWAYS = "tensor_variance:max_threshold=0"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As child processes have, or sums differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def debugged(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training with everything captured. Do not change it."""
    settings = DebugSettings(
        capture="weights,biases,gradients,losses,relu_output,inputs,outputs,labels,predictions",
        capture_every="3",
    )
    recipe = BASE.replace(drop_rate=0.2, mixup=0.2, clip_norm=1.0)
    return vizsla.train(dogs.folder, recipe, runs=tmp_path_factory.mktemp("runs"), debug=settings)


def test_weights_are_the_very_same_with_and_without(
    debugged: Any, dogs: DrawnDataset, tmp_path: Path
) -> None:
    plain = vizsla.train(dogs.folder, Recipe(**debugged.facts()["recipe"]), runs=tmp_path)
    first, second = (
        torch.load(run.bundle / "model.pth", weights_only=True) for run in (plain, debugged)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tensors_of_a_run_are_there_under_its_networks_names(debugged: Any) -> None:
    tensors = debugged.tensors
    steps = debugged.steps()
    assert tensors.losses().steps.tolist() == [line["step"] for line in steps]
    assert tensors.losses().values.tolist() == pytest.approx([line["loss"] for line in steps])
    assert tensors.learning_rates().values.tolist() == pytest.approx(
        [line["learning_rate"] for line in steps]
    )
    assert tensors.tensor("gradient/layer1.0.conv1.weight").steps("train") == [1, 3, 6]
    assert tensors.tensor_names(collection="relu_output", mode="eval")
    evaluations = tensors.evaluations()
    assert [one.valid_loss for one in evaluations] == pytest.approx(
        [record.valid.loss for record in debugged.epochs()]
    )
    assert [one.step for one in evaluations] == [record.step for record in debugged.epochs()]


def test_answers_of_a_validation_are_those_of_its_pictures(debugged: Any) -> None:
    answers = debugged.tensors.answers("eval")
    last = answers.steps == answers.steps.max()
    right = (answers.labels == answers.predictions)[last].mean()
    assert right == pytest.approx(debugged.epochs()[-1].valid.accuracy)


def test_training_without_debugger_says_how_to_capture(finished_run: Any) -> None:
    with pytest.raises(RunError, match="--debug"):
        _ = vizsla.open_run(finished_run.path).tensors


def test_head_on_kept_outputs_is_captured(dogs: DrawnDataset, tmp_path: Path) -> None:
    run = vizsla.train(dogs.folder, BASE.replace(unfreeze="head"), runs=tmp_path, debug=True)
    names = run.tensors.tensor_names(collection="gradients")
    assert names == ["gradient/fc.weight", "gradient/fc.bias"]


def test_convex_head_is_recorded_try_by_try(dogs: DrawnDataset, tmp_path: Path) -> None:
    recipe = BASE.replace(unfreeze="head", solver="lbfgs")
    run = vizsla.train(dogs.folder, recipe, runs=tmp_path, debug=True)
    assert len(run.tensors.losses()) == len(run.epochs())
    assert len(run.tensors.evaluations()) == len(run.epochs())


def test_stopped_run_can_be_taken_up_and_is_not_stopped_for_the_same_again(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    settings = DebugSettings(rules=ALWAYS, on_finding=["stop"])
    run = vizsla.train(dogs.folder, BASE.replace(epochs=40), runs=tmp_path, debug=settings)
    assert run.status() == "stopped by rule"
    assert "tensor_variance" in run.outcome()["reason"]
    assert (run.checkpoints / "last.pt").exists()
    assert not run.bundle.exists()
    stopped_at = run.tensors.steps("train")[-1]
    assert stopped_at < 40 * 6
    resumed = vizsla.train(resume=run.path)
    assert resumed.status() == "finished"
    assert resumed.tensors.steps("train")[-1] > stopped_at
    assert len(resumed.tensors.sessions) == 2


def test_checkpoint_of_a_finding_is_kept_beside_the_last(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    settings = DebugSettings(rules=ALWAYS, on_finding=["checkpoint"])
    run = vizsla.train(dogs.folder, BASE.replace(epochs=12), runs=tmp_path, debug=settings)
    kept = torch.load(run.checkpoints / "finding-tensor_variance.pt", weights_only=False)
    assert kept is not None
    assert run.status() == "finished"


def test_findings_are_told_while_training_goes_on(dogs: DrawnDataset, tmp_path: Path) -> None:
    told: list[str] = []

    class Hearing(Observer):
        def on_finding(self, finding: Any, **more: Any) -> None:
            told.append(finding.rule)

    settings = DebugSettings(rules=ALWAYS)
    run = vizsla.train(dogs.folder, BASE, runs=tmp_path, debug=settings, observers=[Hearing()])
    assert told == ["tensor_variance"]
    assert [one["rule"] for one in run.findings()].count("tensor_variance") == 1


def test_rule_that_fails_is_told_of_and_training_goes_on(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text("def broken(record):\n    return 1 / 0\n")
    settings = DebugSettings(rules=f"{tmp_path / 'own.py'}:broken")
    run = vizsla.train(dogs.folder, BASE, runs=tmp_path / "runs", debug=settings)
    assert run.status() == "finished"
    (found,) = (one for one in run.findings() if one["rule"] == "broken")
    assert "ZeroDivisionError" in found["meaning"]


def test_recording_that_cannot_be_written_leaves_training_alone(
    dogs: DrawnDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vizsla.debugging.store.write_whole", full)
    notes: list[str] = []

    class Hearing(Observer):
        def on_note(self, note: str, **more: Any) -> None:
            notes.append(note)

    run = vizsla.train(dogs.folder, BASE, runs=tmp_path, debug=True, observers=[Hearing()])
    assert run.status() == "finished"
    assert sum("training goes on" in note for note in notes) == 1


def test_debugger_of_a_resumed_run_is_that_of_its_beginning(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    settings = DebugSettings(capture="losses,gradients", capture_every="2")
    run = vizsla.train(dogs.folder, BASE, runs=tmp_path, debug=settings)
    assert json.loads((run.path / "debug.json").read_text()) == {
        "capture": "losses,gradients",
        "capture_every": "2",
    }
    with pytest.raises(SettingError, match="debugger"):
        vizsla.train(resume=run.path, debug=True)


_TRAIN = """
import sys, vizsla
from vizsla.settings import Recipe
from vizsla.debugging.settings import DebugSettings
vizsla.train(sys.argv[1], Recipe(**eval(sys.argv[3])), runs=sys.argv[2],
             debug=DebugSettings(capture_every="2"))
"""


def test_kill_and_resume_leave_one_gapless_recording(dogs: DrawnDataset, tmp_path: Path) -> None:
    settings = {**BASE.model_dump(exclude_unset=True), "epochs": 60, "checkpoint_every": 5}
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, str(dogs.folder), str(tmp_path), repr(settings)]
    )
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 20_000 for path in tmp_path.glob("*/tensors.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    (path,) = tmp_path.iterdir()
    run = vizsla.train(resume=path)
    tensors = run.tensors
    steps = tensors.losses().steps.tolist()
    last = run.epochs()[-1].step
    assert steps == sorted(set(steps))
    assert steps[-1] == last
    # Up to a batch of steps that the killed process held back may be missing before its checkpoint.
    assert last - len(steps) <= 40
    assert all(before == pytest.approx(again) for _, before, again in tensors.repeated_losses())
    assert not [one for one in run.findings() if one["rule"] == "diverged_from_checkpoint"]


def test_failure_of_the_debugger_is_not_one_of_the_training(
    dogs: DrawnDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of order")

    notes: list[str] = []

    class Hearing(Observer):
        def on_note(self, note: str, **more: Any) -> None:
            notes.append(note)

    for name in ("attach", "take_evaluation"):
        with monkeypatch.context() as patch:
            patch.setattr(f"vizsla.debugging.capture.Capture.{name}", fail)
            run = vizsla.train(
                dogs.folder, BASE, runs=tmp_path / name, debug=True, observers=[Hearing()]
            )
        assert run.status() == "finished"
    assert sum("out of order" in note for note in notes) == 2
