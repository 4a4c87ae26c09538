"""Anyone's own loop, watched: it ends when a finding says so, and is a run afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vizsla
from vizsla.debugging import open_tensors, watch
from vizsla.errors import RunError, SettingError, WorkError
from vizsla.findings import Finding
from vizsla.runs.folder import RunFolder


def always(record: Any) -> list[Finding]:
    """Finds something in every training."""
    return [Finding("always", "warning", "step 0", "It is so.", "Do this.", 1.0, 0.0)]


def train(debugger: Any, model: nn.Module, criterion: nn.Module, optimizer: Any, steps: int) -> int:
    done = 0
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(torch.randn(8, 4)), torch.randint(0, 2, (8,))).backward()
        optimizer.step()
        done += 1
        debugger.step()
    return done


@pytest.fixture
def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return {
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
    }


def watching(parts: dict[str, Any], folder: Path, **settings: Any) -> Any:
    return watch(
        parts["model"], folder, loss_fn=parts["criterion"], optimizer=parts["optimizer"], **settings
    )


def test_finding_that_stops_leaves_the_loop_cleanly(parts: dict[str, Any], tmp_path: Path) -> None:
    folder, reached_the_end = tmp_path / "mine", False
    with watching(parts, folder, rules=[always], on_finding="stop") as debugger:
        train(debugger, **parts, steps=200_000)
        reached_the_end = True
    assert not reached_the_end
    run = RunFolder.open(folder)
    assert run.status() == "stopped by rule"
    assert "always" in run.outcome()["reason"]
    assert debugger.findings[0]["rule"] == "always"
    assert len(open_tensors(folder).losses()) < 200_000


def test_functions_hear_of_findings_in_the_loops_own_thread(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    import threading

    heard: list[tuple[str, bool]] = []

    def hear(finding: Finding) -> None:
        heard.append((finding.rule, threading.current_thread() is threading.main_thread()))
        raise ValueError("of no consequence")

    with watching(parts, tmp_path / "mine", rules=[always], on_finding=hear) as debugger:
        train(debugger, **parts, steps=5)
    assert heard == [("always", True)]


def test_error_in_the_loop_comes_through_and_marks_the_run(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    def fail() -> None:
        with watching(parts, tmp_path / "mine") as debugger:
            train(debugger, **parts, steps=3)
            raise KeyError("mine")

    pytest.raises(KeyError, fail)
    assert RunFolder(tmp_path / "mine").outcome() == {
        "status": "failed",
        "reason": "KeyError: 'mine'",
    }
    assert len(open_tensors(tmp_path / "mine").losses()) == 3


def test_second_recording_does_not_overwrite_the_first(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    with watching(parts, tmp_path / "mine", rules="none") as debugger:
        train(debugger, **parts, steps=4)
    with pytest.raises(RunError, match="first_step"):
        watching(parts, tmp_path / "mine").__enter__()
    with watching(parts, tmp_path / "mine", first_step=4, rules="none") as debugger:
        train(debugger, **parts, steps=3)
    tensors = vizsla.open_run(tmp_path / "mine").tensors
    assert tensors.losses().steps.tolist() == list(range(7))


def test_classes_of_a_loop_are_named_in_findings(parts: dict[str, Any], tmp_path: Path) -> None:
    facts = {"data": {"classes": ["akita", "boxer"]}}
    with watching(parts, tmp_path / "mine", facts=facts, rules="none") as debugger:
        train(debugger, **parts, steps=1)
    assert vizsla.open_run(tmp_path / "mine").facts()["data"]["classes"] == ["akita", "boxer"]


def test_one_step_by_hand_with_tensorboard(parts: dict[str, Any], tmp_path: Path) -> None:
    with watching(parts, tmp_path / "mine", tensorboard=True, every=1) as debugger:
        train(debugger, **parts, steps=2)
    assert list((tmp_path / "mine" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss_fn": torch.nn.functional.cross_entropy}, "record_loss"),
        ({"rules": "overfitt"}, "Did you mean overfit"),
        ({"capture": "gradient"}, "Did you mean gradients"),
        ({"every": 0}, "from 1 on"),
        ({"on_finding": "checkpoint"}, "function of the finding"),
        ({"on_finding": ["halt"]}, "must be stop"),
        ({"optimizer": torch.nn.ReLU()}, "optimizer is a ReLU"),
        ({"optimizer": ["sgd"]}, "optimizer is a str"),
        ({"budget_mb": 0}, "above 0"),
        ({"budget_mb": float("nan")}, "above 0"),
        ({"facts": {"data": None}}, "NoneType"),
        ({"facts": {1: "one"}}, "mapping of names"),
        ({"facts": ["classes"]}, "mapping of names"),
    ],
)
def test_settings_that_make_no_sense_are_said_at_once(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=words):
        watch(nn.Linear(2, 2), tmp_path / "mine", **settings)
    assert not (tmp_path / "mine").exists()


def test_stop_is_refused_where_other_processes_would_wait(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="one of 2 processes.*function"):
        watching(parts, tmp_path / "mine", on_finding=["stop"])
    watching(parts, tmp_path / "mine", on_finding=[print])
    monkeypatch.setenv("WORLD_SIZE", "1")
    watching(parts, tmp_path / "mine", on_finding=["stop"])


def test_optimizer_of_accelerate_is_one(parts: dict[str, Any], tmp_path: Path) -> None:
    from accelerate import Accelerator

    parts["optimizer"] = Accelerator(cpu=True).prepare(parts["optimizer"])
    with watching(parts, tmp_path / "mine", every=1, rules="none") as debugger:
        train(debugger, **parts, steps=2)
    assert open_tensors(tmp_path / "mine").tensor_names(collection="gradients")


@pytest.mark.parametrize(
    "use",
    [
        lambda debugger: debugger.step(),
        lambda debugger: debugger.record_loss(1.0),
        lambda debugger: debugger.set_mode("eval"),
    ],
)
def test_debugger_that_nobody_entered_says_so(
    use: Any, parts: dict[str, Any], tmp_path: Path
) -> None:
    debugger = watching(parts, tmp_path / "mine")
    with pytest.raises(WorkError, match="with watch"):
        use(debugger)
    with debugger:
        train(debugger, **parts, steps=2)
    use(debugger)  # a training that is done is not to fail for what comes after it
    assert open_tensors(tmp_path / "mine").steps("train") == [0, 1]


def test_debugger_records_once(parts: dict[str, Any], tmp_path: Path) -> None:
    with watching(parts, tmp_path / "mine") as debugger:
        train(debugger, **parts, steps=2)
    with pytest.raises(WorkError, match="call watch again"):
        debugger.__enter__()


@pytest.mark.parametrize("first_step", [0, 5])
def test_folder_of_vizslas_own_training_is_refused_untouched(
    parts: dict[str, Any], tmp_path: Path, first_step: int
) -> None:
    run = RunFolder.at(tmp_path / "theirs")
    run.write_facts({"recipe": {}})
    before = sorted(run.path.rglob("*"))
    with pytest.raises(RunError, match="training of vizsla's"):
        watching(parts, run.path, first_step=first_step).__enter__()
    assert sorted(run.path.rglob("*")) == before


def test_watched_run_is_not_vizslas_to_resume(parts: dict[str, Any], tmp_path: Path) -> None:
    with watching(parts, tmp_path / "mine", facts={"kind": "other"}) as debugger:
        train(debugger, **parts, steps=2)
    with pytest.raises(RunError, match="loop of your own"):
        vizsla.train(resume=tmp_path / "mine")


_DISTRIBUTED = """
import os, sys, torch
from torch import nn
from vizsla.debugging import watch
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1)
with watch(model, sys.argv[1], loss_fn=criterion, optimizer=optimizer, every=1, rules="none",
           all_ranks=sys.argv[2] == "all") as debugger:
    for step in range(4):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        criterion(model(torch.randn(8, 4)), torch.randint(0, 2, (8,))).backward()
        optimizer.step()
        debugger.step()
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("who", ["first", "all"])
def test_of_several_processes_the_first_records_or_each_for_itself(
    who: str, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DISTRIBUTED, str(folder), who],
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first = open_tensors(folder)
    assert first.tensor_names(collection="weights") == ["weight"]
    assert first.losses().steps.tolist() == [0, 1, 2, 3]
    assert (folder / "tensors-rank1.jsonl").exists() == (who == "all")
    if who == "all":
        second = open_tensors(folder, rank=1)
        assert second.losses().values[0] != first.losses().values[0]
        norms = [one.matrix("l2", collection="gradients").values for one in (first, second)]
        assert norms[0] == pytest.approx(norms[1])  # of gradients that were put together


def test_disk_that_is_full_in_the_end_holds_nobody_up(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "vizsla.debugging.recorder.Recorder._flush_and_judge", lambda *_, **__: None
    )
    monkeypatch.setattr("vizsla.debugging.store.TensorWriter.flush", full)
    debugger = watching(parts, tmp_path / "mine")
    with debugger:
        train(debugger, **parts, steps=3)
        started = time.monotonic()
    assert time.monotonic() - started < 20
    assert RunFolder(tmp_path / "mine").status() == "trained"
