"""Work is never lost: signals, kills and full disks, each against a real training process."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vizsla import Recipe, train
from vizsla.cli import run as cli
from vizsla.cli.progress import TrainingDisplay
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder, list_runs
from vizsla.training.checkpoint import CheckpointStore
from vizsla.training.events import StepFacts

# Every source of chance, and a checkpoint after every step.
RECIPE = Recipe(
    model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=3, batch_size=8,
    workers=1, drop_rate=0.2, train_crop="random", augment="randaugment", random_erasing=0.3,
    mixup=0.2, cutmix=1.0, label_smoothing=0.1, ema_decay=0.9, checkpoint_every=1, seed=7,
)  # fmt: skip
STEPS = 18
KILLS = np.random.default_rng(2026).uniform(0, STEPS, size=3)


def arguments_of(data: Path, runs: Path) -> list[str]:
    """The command that trains into `runs`, or resumes what is there."""
    if begun := list_runs(runs):
        return ["train", "--resume", str(begun[0].path)]
    (runs / "recipe.toml").write_text(RECIPE.to_toml())
    return ["train", str(data), "--recipe", str(runs / "recipe.toml"), "--runs", str(runs)]


def send_at(moment: float, number: int, process: int, runs: Path) -> None:
    """Send a signal to a training `moment` steps after its start."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        begun = list_runs(runs)
        if begun and len(begun[0].steps()) >= int(moment):
            break
        time.sleep(0.01)
    time.sleep(0.05 * (moment % 1))  # in the middle of a step, or of its checkpoint
    os.kill(process, number)


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process of its own, on one thread."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )


# Imports once, then runs each command in a process of its own, and tells its number and its end.
FORKING = """
import json, os, sys
import vizsla.cli, vizsla.pipeline
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        vizsla.cli.main(json.loads(line))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


def kill_in_turn(data: Path, plans: list[tuple[Path, float]]) -> list[int]:
    """Start a training by each plan and kill it at its moment; the exit codes."""
    codes = []
    with start(FORKING) as forking:
        assert forking.stdin is not None
        assert forking.stdout is not None
        for runs, moment in plans:
            print(json.dumps(arguments_of(data, runs)), file=forking.stdin, flush=True)
            send_at(moment, signal.SIGKILL, int(forking.stdout.readline()), runs)
            codes.append(int(forking.stdout.readline()))
        forking.stdin.close()
    return codes


def interrupt(data: Path, runs: Path, name: str, moment: float) -> tuple[int, str]:
    """Train up to `moment`, send the signal of that name; the exit code and what was printed."""
    with start("from vizsla.cli import main; main()", *arguments_of(data, runs)) as child:
        send_at(moment, signal.Signals[name], child.pid, runs)
        printed = "".join(child.communicate(timeout=60))
    return child.returncode, printed


@pytest.fixture(scope="module")
def uninterrupted(
    dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunFolder]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield train(dogs.folder, RECIPE, runs=tmp_path_factory.mktemp("uninterrupted"))
    torch.set_num_threads(before)


@dataclass
class Stopped:
    """Trainings that were stopped: the folder of runs, the exit code, of those that could still
    speak what was printed."""

    by_signal: dict[str, tuple[Path, int, str]]
    by_kill: list[tuple[Path, int]]


@pytest.fixture(scope="module")
def stopped(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """One stopped by SIGTERM, one by SIGINT, and one killed at each of three moments, the first
    of which is killed once more while it is resumed."""
    names = {"SIGTERM": 5.5, "SIGINT": 9.5}
    folders = [tmp_path_factory.mktemp("stopped") for _ in KILLS]
    plans = list(zip(folders, KILLS))
    plans.append((folders[0], min(KILLS[0] + 5.3, STEPS - 1)))
    by_signal = {}
    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill_in_turn, dogs.folder, plans)
        for name, moment in names.items():
            runs = tmp_path_factory.mktemp("stopped")
            by_signal[name] = (runs, *interrupt(dogs.folder, runs, name, moment))
        left = [(folder, code) for (folder, _), code in zip(plans, killed.result())]
    return Stopped(by_signal, left)


def resume_and_compare(runs: Path, uninterrupted: RunFolder) -> RunFolder:
    (run,) = list_runs(runs)
    assert cli(["train", "--resume", str(run.path)]) == 0
    assert_same_end(run, uninterrupted)
    return run


def assert_same_end(run: RunFolder, uninterrupted: RunFolder) -> None:
    """The same weights to the bit, and each step and epoch once with the same figures."""
    ours, theirs = (load_file(one.bundle / "model.safetensors") for one in (run, uninterrupted))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    last, expected = (
        torch.load(one.checkpoints / "last.pt", weights_only=True) for one in (run, uninterrupted)
    )
    for part in ("network", "averaged"):
        for name, value in expected[part].items():
            assert torch.equal(last[part][name], value), name
    lines, wanted = ([(s["step"], s["loss"]) for s in one.steps()] for one in (run, uninterrupted))
    assert lines == wanted
    assert [step for step, _ in lines] == list(range(1, STEPS + 1))
    figures, wanted_figures = (
        [(r.epoch, r.train, r.valid, r.best) for r in one.epochs()] for one in (run, uninterrupted)
    )
    assert figures == wanted_figures
    assert run.evaluation("test") == uninterrupted.evaluation("test")
    assert run.status() == "finished"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_says_so_and_leaves_its_exit_code(
    stopped: Stopped, uninterrupted: RunFolder, name: str, code: int
) -> None:
    runs, left, printed = stopped.by_signal[name]
    assert left == code
    assert "Traceback" not in printed
    (message,) = (line for line in printed.splitlines() if line.startswith("vizsla: "))
    assert "saved" in message
    (run,) = list_runs(runs)
    assert run.status() == "interrupted"
    assert f"vizsla train --resume {run.path}" in message
    checkpoint = CheckpointStore(run.checkpoints).load_last()
    assert checkpoint is not None
    assert f"step {checkpoint.progress.step};" in message
    resume_and_compare(runs, uninterrupted)


@pytest.mark.parametrize("number", range(3))
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    stopped: Stopped, uninterrupted: RunFolder, number: int
) -> None:
    runs, _ = stopped.by_kill[number]
    assert {left for path, left in stopped.by_kill if path == runs} == {-signal.SIGKILL}
    resume_and_compare(runs, uninterrupted)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*")}
    assert cli(["train", "--resume", str(uninterrupted.path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.path.rglob("*")} == before


def test_a_resumed_run_refuses_other_settings(
    uninterrupted: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["train", "--resume", str(uninterrupted.path), "--lr", "0.1"]) == 2
    assert "its own settings; leave out lr" in capsys.readouterr().err


def test_a_resumed_run_refuses_other_pictures(
    uninterrupted: RunFolder, dogs: DrawnDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(["train", str(dogs.folder), "--resume", str(uninterrupted.path)]) == 2
    assert "its own data" in capsys.readouterr().err


def unfinished(run: RunFolder, place: Path) -> RunFolder:
    """A copy of a run, without the bundle that its end makes."""
    copy = RunFolder(Path(shutil.copytree(run.path, place / run.name)))
    shutil.rmtree(copy.bundle)
    return copy


def test_a_run_that_another_process_holds_is_refused(
    uninterrupted: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = unfinished(uninterrupted, tmp_path)
    holder = (
        "import sys, pathlib; from vizsla.runs.folder import RunFolder\n"
        "with RunFolder(pathlib.Path(sys.argv[1])).locked(): print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(copy.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert copy.status() == "running"
        assert cli(["train", "--resume", str(copy.path)]) == 2
        assert "being trained by another process" in capsys.readouterr().err
        child.communicate("\n")
    assert copy.status() == "interrupted"


def test_a_run_killed_while_its_bundle_was_written_is_finished(
    uninterrupted: RunFolder, tmp_path: Path
) -> None:
    copy = unfinished(uninterrupted, tmp_path)
    (copy.path / ".bundle.part").mkdir()
    (copy.path / ".bundle.part" / "model.pth").write_bytes(b"half")
    assert cli(["train", "--resume", str(copy.path)]) == 0
    assert_same_end(copy, uninterrupted)
    assert not (copy.path / ".bundle.part").exists()


def test_a_damaged_checkpoint_is_told_of(
    uninterrupted: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = unfinished(uninterrupted, tmp_path)
    whole = (copy.checkpoints / "last.pt").read_bytes()
    (copy.checkpoints / "last.pt").write_bytes(whole[: len(whole) // 2])
    assert cli(["train", "--resume", str(copy.path)]) == 2
    message = capsys.readouterr().err
    assert "last.pt is damaged" in message
    assert "Traceback" not in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small file system to fill")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("this machine does not let a test mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class DiskFills(TrainingDisplay):
    """The usual display, during which something else fills the disk."""

    fill: Callable[[], None]

    def on_step(self, facts: StepFacts, **more: Any) -> None:
        super().on_step(facts, **more)
        if facts.step == 9:
            type(self).fill()


def fails_then_goes_on(
    dogs: DrawnDataset,
    runs: Path,
    uninterrupted: RunFolder,
    make_room: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = runs / "recipe.toml"
    recipe.write_text(RECIPE.to_toml())
    assert cli(["train", str(dogs.folder), "--recipe", str(recipe), "--runs", str(runs)]) == 2
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "free some space" in message
    assert len(message.strip().splitlines()) == 1
    (run,) = list_runs(runs)
    checkpoint = CheckpointStore(run.checkpoints).load_last()
    assert checkpoint is not None
    assert checkpoint.progress.step == 8
    assert not list(run.path.rglob("*.part"))
    make_room()
    DiskFills.fill = staticmethod(lambda: None)
    resume_and_compare(runs, uninterrupted)


def test_a_full_disk_costs_no_checkpoint(
    dogs: DrawnDataset,
    small_disk: Path,
    uninterrupted: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ballast = small_disk / "ballast"

    def fill() -> None:
        free = os.statvfs(small_disk)
        ballast.write_bytes(b"\0" * (free.f_bavail * free.f_frsize - 100_000))

    monkeypatch.setattr(DiskFills, "fill", staticmethod(fill), raising=False)
    monkeypatch.setattr("vizsla.cli.progress.TrainingDisplay", DiskFills)
    fails_then_goes_on(dogs, small_disk, uninterrupted, ballast.unlink, capsys)


def test_a_write_that_fails_at_its_very_end_costs_no_checkpoint(
    dogs: DrawnDataset,
    tmp_path: Path,
    uninterrupted: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sync, full = os.fsync, threading.Event()

    def fsync(number: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(DiskFills, "fill", staticmethod(full.set), raising=False)
    monkeypatch.setattr("vizsla.cli.progress.TrainingDisplay", DiskFills)
    fails_then_goes_on(dogs, tmp_path, uninterrupted, full.clear, capsys)
