"""Two processes train as one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vizsla.data.synthetic import DrawnDataset
from vizsla.profiling.recorded import Profile
from vizsla.runs.folder import list_runs

PROGRAM = "from vizsla.cli import main; main()\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_make_one_run_and_count_every_picture_once(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), str(script), "train", str(dogs.folder)]
    command += ["--runs", str(tmp_path / "runs"), "--model", "test_vit", "--weights", "none"]
    command += ["--unfreeze", "all", "--size-px", "64", "--workers", "0", "--batch-size", "5"]
    command += ["--profile", "--profile-interval-ms", "100"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    try:
        done = subprocess.run(
            [*command, "--epochs", "2"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("this machine is too slow for two processes at a time")
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = list_runs(tmp_path / "runs")
    assert run.status() == "finished"
    assert run.facts()["hardware"]["processes"] == 2
    records = run.epochs()
    assert [record.epoch for record in records] == [1, 2]
    assert [record.train.pictures for record in records] == [48, 48]
    assert [record.valid.pictures for record in records] == [12, 12]
    assert [step["step"] for step in run.steps()] == list(range(1, 11))
    evaluation = run.evaluation("valid")
    assert evaluation is not None
    assert evaluation["pictures"] == 12
    best = next(record for record in reversed(records) if record.best)
    assert evaluation["accuracy"] == best.valid.accuracy
    assert done.stdout.count("run       ") == 1
    assert done.stdout.count("train:loss=") == 2
    profile = Profile(run.path)
    assert profile.nodes == ["algo-1"]  # one machine, sampled by one process
    assert profile.ranks == [0, 1]
    assert [len(profile.steps(rank)) for rank in profile.ranks] == [10, 10]
