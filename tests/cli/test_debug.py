"""vizsla debug, and what the debugger adds to other commands, as a person types them."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import vizsla
from vizsla.cli import debug_watch, run
from vizsla.data.synthetic import DrawnDataset
from vizsla.debugging import watch
from vizsla.debugging.rules.choosing import choose_rules
from vizsla.debugging.settings import DebugSettings
from vizsla.findings import Finding
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe

TRAIN = [
    "--model", "test_resnet", "--weights", "none", "--unfreeze", "all", "--size-px", "64",
    "--epochs", "2", "--workers", "0", "--precision", "fp32",
]  # fmt: skip
ALWAYS = "tensor_variance:max_threshold=0"


@pytest.fixture(scope="module")
def debugged(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe = Recipe(
        model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=2, workers=0,
        precision="fp32",
    )  # fmt: skip
    settings = DebugSettings(capture_every="2", rules=f"default,{ALWAYS}")
    return vizsla.train(dogs.folder, recipe, runs=tmp_path_factory.mktemp("runs"), debug=settings)


def test_training_tells_what_it_finds(
    dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(dogs.folder), *TRAIN, "--runs", str(tmp_path)]
    assert run([*command, "--debug", "--rules", ALWAYS, "--capture-every", "1"]) == 0
    assert "warning: tensor_variance" in capsys.readouterr().out


def test_stopped_training_is_marked_and_says_how_to_go_on(
    dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["60" if flag == "2" else flag for flag in TRAIN]
    command = ["train", str(dogs.folder), *flags, "--runs", str(tmp_path)]
    assert run([*command, "--rules", ALWAYS, "--on-finding", "stop"]) == 1
    said = capsys.readouterr().err
    assert "Stopped by rule tensor_variance" in said
    assert "vizsla train --resume" in said
    assert run(["runs", "list", "--runs", str(tmp_path)]) == 0
    assert "stopped by rule" in capsys.readouterr().out


def test_findings_are_printed_with_evidence_and_advice(
    debugged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["debug", str(debugged.path)]) == 0
    said = capsys.readouterr().out
    assert "recorded" in said
    assert "tensor_variance" in said
    assert "threshold 0" in said


def test_old_run_is_judged_again_by_other_settings(
    debugged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["debug", str(debugged.path), "--rule", "tensor_variance:max_threshold=9e9"]) == 0
    said = capsys.readouterr().out
    assert "findings  none" in said
    assert "earlier   tensor_variance" in said
    assert run(["debug", str(debugged.path), "--rule", ALWAYS]) == 0
    assert "tensor_variance" in capsys.readouterr().out


def test_what_rules_could_not_judge_is_said(
    debugged: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["debug", str(debugged.path), "--rule", "dead_relu"]) == 0
    assert "unjudged  dead_relu: needs relu_output" in capsys.readouterr().out


def test_tensors_are_listed_uncut_pictured_and_framed(
    debugged: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [str(debugged.path), "--tensor", "gradient/.*conv1.weight"]
    assert run(["debug", *chosen]) == 0
    assert "gradient/layer1.0.conv1.weight" in capsys.readouterr().out
    page, frame = tmp_path / "grads.html", tmp_path / "grads.csv"
    assert run(["debug", *chosen, "--plot", str(page), "--frame", str(frame)]) == 0
    assert "layer1.0.conv1.weight" in page.read_text()
    rows = list(csv.DictReader(frame.read_text().splitlines()))
    assert {row["collection"] for row in rows} == {"gradients"}
    assert float(rows[-1]["l2"]) > 0


@pytest.mark.parametrize("how", [[], ["--watch"]])
def test_rule_that_fails_is_a_finding(
    debugged: Any, tmp_path: Path, how: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("def bad(record):\n    return 1 / 0\n")
    rules = f"{tmp_path / 'own.py'}:bad,{ALWAYS}"
    assert run(["debug", str(debugged.path), "--rule", rules, *how]) == 0
    said = capsys.readouterr().out
    assert "The rule bad failed" in said
    assert "tensor_variance" in said


def test_report_of_a_run_shows_its_tensors(debugged: Any) -> None:
    assert run(["report", str(debugged.path)]) == 0
    page = debugged.report.read_text()
    assert "tensor_variance" in page
    assert "Gradient" in page or "gradient" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rule", "overfitt"], "Did you mean overfit"),
        (["--rule", "overfit:ratio=2"], "no setting 'ratio'"),
        (["--tensor", "nothing_like_it"], "such as"),
        (["--tensor", "("], "regular expression"),
        (["--rule", "overfit", "--plot", "page.html"], "leave out --plot"),
        (["--watch", "--tensor", "fc", "--frame", "a.csv"], "leave out --tensor, --frame"),
    ],
)
def test_mistakes_get_one_sentence(
    debugged: Any, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["debug", str(debugged.path), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_run_without_tensors_says_how_to_capture(
    finished_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["debug"], ["debug", "--watch"]):
        assert run([*command, str(finished_run.path)]) == 2
        assert "--debug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--capture", "gradient"], "Did you mean gradients"),
        (["--rules", "dead_relus"], "Did you mean dead_relu"),
        (["--on-finding", "explode"], "stop, checkpoint"),
        (["--capture-every", "0"], "from 1 on"),
    ],
)
def test_mistakes_in_training_are_said_before_anything_is_made(
    dogs: DrawnDataset, tmp_path: Path, flags: list[str], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(["train", str(dogs.folder), *TRAIN, "--runs", str(tmp_path / "r"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_watched_loop_is_a_run_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, loss_fn = nn.Linear(4, 2), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with watch(network, tmp_path / "mine", loss_fn=loss_fn, optimizer=optimizer) as debugger:
        for _ in range(3):
            loss_fn(network(torch.randn(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
            debugger.step()
    for command in (["debug", str(tmp_path / "mine")], ["runs", "list", "--runs", str(tmp_path)]):
        assert run(command) == 0
    assert "trained" in capsys.readouterr().out
    assert vizsla.open_run(tmp_path / "mine").tensors.steps("train") == [0, 1, 2]


_STALLING = """
import sys, time, torch
from torch import nn
from vizsla.debugging import watch
network, loss_fn = nn.Linear(4, 2), nn.CrossEntropyLoss()
with watch(network, sys.argv[1], loss_fn=loss_fn, rules="none", every=1) as debugger:
    for step in range(5):
        loss_fn(network(torch.randn(8, 4)), torch.zeros(8, dtype=torch.long)).backward()
        debugger.step()
    time.sleep(120)
"""


def test_stalled_run_is_noticed_and_stopped_from_outside(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    training = subprocess.Popen([sys.executable, "-c", _STALLING, str(folder)])
    try:
        deadline = time.monotonic() + 60
        while not (
            (folder / "tensors.jsonl").exists() and vizsla.open_run(folder).status() == "running"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while not Path(folder / "tensors").glob("*") or not _has_steps(folder):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        followed = subprocess.run(
            [
                sys.executable, "-m", "vizsla.cli", "debug", str(folder), "--watch",
                "--rule", "stalled_training:threshold=1:stop=true",
            ],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert training.wait(timeout=30) == -signal.SIGTERM
    finally:
        if training.poll() is None:
            os.kill(training.pid, signal.SIGKILL)
            training.wait()
    assert followed.returncode == 0, followed.stderr
    assert "stalled_training" in followed.stdout
    assert f"stopped   process {training.pid} has left" in followed.stdout


class Session:
    """Stands for the tensors of a run whose last session is told."""

    def __init__(self, **session: Any) -> None:
        self.sessions = [{"host": socket.gethostname(), "time": time.time(), **session}]


def test_process_that_does_not_hear_or_is_anothers_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(debug_watch, "_LEAVING_S", 0.5)
    held = RunFolder.at(tmp_path / "mine")
    deaf = subprocess.Popen(
        [sys.executable, "-c", _DEAF], stdout=subprocess.PIPE, cwd=tmp_path, text=True
    )
    try:
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == "deaf\n"
        with held.locked():
            debug_watch._stop(held, Session(pid=deaf.pid), Console())  # type: ignore[arg-type]
        said = " ".join(capsys.readouterr().out.split())
        assert "has not left" in said
        assert f"kill -9 {deaf.pid}" in said
        assert deaf.poll() is None

        def refuse(*_: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", refuse)
            debug_watch._stop(held, Session(pid=deaf.pid), Console())  # type: ignore[arg-type]
        assert "could not be stopped: Operation not" in capsys.readouterr().out
    finally:
        deaf.kill()
        deaf.wait()
        assert deaf.stdout is not None
        deaf.stdout.close()


_DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(60)
"""


def test_only_the_rule_of_stalled_trainings_stops_one() -> None:
    class Mine:
        name, stop = "mine", True

        def judge(self, record: Any) -> list[Finding]:
            return []

    stalled = Finding("stalled_training", "error", "step 1", "So.", "Do.")
    rules = choose_rules([Mine(), "stalled_training"])
    assert not debug_watch._says_stop(rules, stalled)
    rules = choose_rules([Mine(), "stalled_training:stop=true"])
    assert debug_watch._says_stop(rules, stalled)
    assert not debug_watch._says_stop(rules, Finding("mine", "error", "step 1", "So.", "Do."))


def _has_steps(folder: Path) -> bool:
    return "CrossEntropyLoss" in (folder / "tensors.jsonl").read_text()
