"""vizsla profile, of runs and of commands, as a person types it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vizsla.cli import run
from vizsla.errors import StorageError
from vizsla.runs.folder import RunFolder

BEGAN = 1_700_000_000.0
PROFILE = [sys.executable, "-m", "vizsla.cli", "profile"]


def make_run(path: Path) -> Path:
    """A run of 30 steps of 0.1 s, one of them far slower, with samples of a machine."""
    RunFolder.at(path).write_facts({"kind": "watched", "recipe": {}})
    seconds = [0.5, *[0.1] * 28, 2.0]
    begun = [BEGAN + sum(seconds[:at]) for at in range(30)]
    phases = {"data_wait": [one / 2 for one in seconds], "other": [one / 2 for one in seconds]}
    steps = {"kind": "steps", "step": list(range(1, 31)), "time": begun, "seconds": seconds}
    write(
        path / "timeline.jsonl",
        [
            {"kind": "session", "time": BEGAN - 1, "rank": 0, "node": "algo-1"},
            {"kind": "span", "name": "import", "time": BEGAN - 1, "seconds": 1.0},
            {**steps, "phases": phases},
        ],
    )
    about = {"kind": "about", "node": "algo-1", "host": "here", "cores": 2, "interval_ms": 500,
             "processor": "Abacus 7", "missing": ["temperature of the processor"]}  # fmt: skip
    samples = [
        {"kind": "sample", "time": BEGAN + at / 2, "cpu": [50.0, 70.0], "tree_cpu": 110.0,
         "memory": 40.0, "memory_bytes": 4e9, "read_bytes": 1e6, "write_bytes": 0.0}
        for at in range(11)
    ]  # fmt: skip
    write(path / "profile-algo-1.jsonl", [about, *samples])
    return path


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def profiled(tmp_path: Path) -> Path:
    return make_run(tmp_path / "mine")


def only_run(runs: Path) -> RunFolder:
    (path,) = runs.iterdir()
    return RunFolder.open(path)


def test_run_is_told_as_a_newcomer_understands(
    profiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(profiled)]) == 0
    said = capsys.readouterr().out
    for words in (
        "30 steps", "11 samples of 1 machine", "where the time went", "imports", "waiting for data",
        "100 ms in the middle", "(step 30)", "Abacus 7", "1.1 of 2 cores", "temperature of the",
        "energy", "vizsla report",
    ):  # fmt: skip
        assert words in said
    assert "damaged" not in said


def test_rules_can_be_named_several_times(
    profiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--rule", "step_outlier:stddev=3", "--rule", "gpu_memory_increase"]
    assert run(["profile", str(profiled), *named]) == 0
    said = capsys.readouterr().out
    assert "step_outlier" in said
    assert "gpu_memory_increase: there is no GPU" in said
    assert "dataloader" not in said


def test_frames_are_written_alone(
    profiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, steps = tmp_path / "samples.csv", tmp_path / "steps.csv"
    written = ["--frame", str(frame), "--steps", str(steps)]
    assert run(["profile", str(profiled), *written]) == 0
    assert "where the time went" not in capsys.readouterr().out
    rows = list(csv.DictReader(frame.read_text().splitlines()))
    assert len(rows) > 11
    assert {"timestamp", "value"} <= set(rows[0])
    slow = list(csv.DictReader(steps.read_text().splitlines()))[-1]
    assert float(slow["seconds"]) == 2.0


def test_damaged_lines_are_skipped_and_counted(
    profiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (profiled / "profile-algo-1.jsonl").open("ab") as file:
        file.write(b'{"kind":"sample","time":17000000\n\xff\xfe garbage\n')
    assert run(["profile", str(profiled)]) == 0
    assert "2 lines were damaged" in capsys.readouterr().out


def test_run_that_still_goes_on_is_marked(
    profiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(profiled).profiled():
        assert run(["profile", str(profiled)]) == 0
    assert "still going: so far" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["timeline.jsonl", "profile-algo-1.jsonl"])
def test_half_a_profile_is_told_too(
    profiled: Path, missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (profiled / missing).unlink()
    assert run(["profile", str(profiled)]) == 0
    flag = "--steps" if missing.startswith("timeline") else "--frame"
    assert run(["profile", str(profiled), flag, str(tmp_path / "a.csv")]) == 2
    assert "to write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name a run's folder"),
        (["nowhere"], "is not a run"),
        (["a", "b"], "vizsla profile -- a b"),
        (["a", "--", "b"], "Either a run or a command"),
        (["--"], "No command follows --"),
        (["a", "--interval-ms", "500"], "is for a command"),
        (["a", "--runs", "r"], "is for a command"),
        (["--runs", "r", "--", "pyhton-3"], "There is no command 'pyhton-3'"),
        (["--runs", "r", "--", "."], "is a folder"),
        (["--runs", "r", "--", "notes.txt"], "vizsla profile -- python notes.txt"),
        (["--runs", "r", "--", "./odd"], "cannot be run"),
        (["--runs", "r", "--interval-ms", "50", "--", "true"], "100 to 60,000"),
        (["--runs", "r", "--rule", "step_outlierr", "--", "true"], "Did you mean step_outlier"),
        (["--runs", "r", "--rule", "step_outlier:stddev=x", "--", "true"], "stddev"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing_behind(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("no program")
    Path("odd").write_bytes(b"\x7fno program")
    Path("odd").chmod(0o755)
    assert run(["profile", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not Path("r").exists()


def test_run_without_profile_says_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.at(tmp_path / "plain").write_facts({"recipe": {}})
    for more in ([], ["--frame", str(tmp_path / "a.csv")]):
        assert run(["profile", str(tmp_path / "plain"), *more]) == 2
        assert "vizsla train --profile" in capsys.readouterr().err


def test_command_keeps_its_words_its_output_and_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = "import sys, time; time.sleep(0.3); print(sys.argv[1:]); sys.exit(3)"
    theirs = ["-x", "--help", "--rule", "a", "--", "--runs=b"]
    command = ["profile", "--runs", str(tmp_path), "--interval-ms", "100", "--"]
    assert run([*command, sys.executable, "-c", program, *theirs]) == 3
    said = capfd.readouterr()
    assert said.out == f"{theirs}\n"
    assert "exit code 3" in said.err
    assert "1 machine" in said.err
    made = only_run(tmp_path)
    assert made.facts()["command"] == [sys.executable, "-c", program, *theirs]
    assert made.outcome() == {"status": "failed", "reason": "exit code 3"}
    assert run(["runs", "list", "--runs", str(tmp_path)]) == 0
    assert "failed" in capfd.readouterr().out


# Two busy children, until a sample has counted them.
_WITH_CHILDREN = """
import os, pathlib, subprocess, sys, time
children = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
samples = pathlib.Path(os.environ["VIZSLA_PROFILE_RUN"], "profile-algo-1.jsonl")
end = time.monotonic() + 60
while samples.read_text().count('"processes":3') < 3 and time.monotonic() < end:
    time.sleep(0.2)
for child in children:
    child.kill()
    child.wait()
"""


def test_children_of_a_command_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    frame = tmp_path / "samples.csv"
    command = ["profile", "--runs", str(tmp_path / "runs"), "--interval-ms", "100"]
    command += ["--frame", str(frame), "--", sys.executable, "-c", _WITH_CHILDREN]
    assert run(command) == 0
    made = only_run(tmp_path / "runs")
    assert made.status() == "done"
    lines = (made.path / "profile-algo-1.jsonl").read_text().splitlines()
    samples = [line for line in map(json.loads, lines) if line["kind"] == "sample"]
    assert max(line.get("processes", 0) for line in samples) == 3
    assert max(line.get("tree_cpu", 0) for line in samples) > 5
    assert frame.exists()
    assert capfd.readouterr().out == f"frame     {frame}\n"  # all else is beside the output


_JOINING = """
from vizsla.profiling import profile
with profile() as profiler:
    for _ in range(5):
        with profiler.phase("forward"):
            pass
        profiler.step()
"""


def test_loop_inside_of_a_command_adds_its_steps(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["profile", "--runs", str(tmp_path), "--", sys.executable, "-c", _JOINING]
    assert run(command) == 0
    assert "5 steps" in capfd.readouterr().err
    assert only_run(tmp_path).status() == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_reaches_the_command_and_what_was_sampled_is_told(
    tmp_path: Path, number: signal.Signals
) -> None:
    # In a session of its own there is no terminal that would send the keys' signals to both.
    program = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    started = subprocess.Popen(
        [*PROFILE, "--runs", str(tmp_path), "--", *program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Who runs tests in the background of a shell has them ignore Ctrl-C, and so their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stdout.readline() == "up\n"
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode in (128 + number, 1)  # Python answers SIGINT by a traceback first
    assert "next      vizsla report" in said
    assert only_run(tmp_path).status() == "failed"


def test_command_that_is_killed_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    command = ["profile", "--runs", str(tmp_path), "--", sys.executable, "-c", program]
    assert run(command) == 137
    assert "SIGKILL" in capfd.readouterr().err
    assert "SIGKILL" in str(only_run(tmp_path).outcome())


def test_exit_code_is_the_commands_though_nothing_more_can_be_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(RunFolder, "write_outcome", full)
    command = ["profile", "--runs", str(tmp_path), "--", sys.executable, "-c", "exit(7)"]
    assert run(command) == 7


def test_exit_code_is_the_commands_though_nobody_reads_what_is_told(tmp_path: Path) -> None:
    command = [*PROFILE, "--runs", str(tmp_path), "--", sys.executable, "-c", "exit(7)"]
    reader, writer = os.pipe()
    os.close(reader)
    assert subprocess.run(command, stderr=writer, check=False).returncode == 7
    os.close(writer)


def test_table_that_cannot_be_written_is_a_sentence(
    profiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["profile", str(profiled), "--frame", str(tmp_path / "no" / "x.csv")]) == 2
    assert "x.csv cannot be written" in capsys.readouterr().err


def test_killed_profiler_leaves_a_run_that_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(30)"
    started = subprocess.Popen(
        [*PROFILE, "--runs", str(tmp_path), "--interval-ms", "100", "--", sys.executable, "-c",
         program],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert started.stdout is not None
        child = int(started.stdout.readline())
        made, deadline = only_run(tmp_path), time.monotonic() + 60
        while "sample" not in _samples(made):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert made.status() == "running"
    finally:
        started.kill()
        started.wait()
        assert started.stdout is not None
        started.stdout.close()
        os.kill(child, signal.SIGKILL)
    assert made.status() == "interrupted"
    assert run(["profile", str(made.path)]) == 0
    assert "1 machine" in capsys.readouterr().out


def _samples(made: RunFolder) -> str:
    path = made.path / "profile-algo-1.jsonl"
    return path.read_text() if path.exists() else ""
