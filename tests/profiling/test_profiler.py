"""The profiler around anyone's own loop: a run folder, with the machine and the steps in it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import vizsla
from vizsla.debugging import watch
from vizsla.errors import RunError, SettingError
from vizsla.profiling import profile
from vizsla.profiling.profiler import RUN_VARIABLE

QUICK_MS = 100


def _loop(folder: Path | None, steps: int = 5, **settings: object) -> Path:
    with profile(folder, interval_ms=QUICK_MS, **settings) as profiler:  # type: ignore[arg-type]
        for number in profiler.loading(range(steps)):
            with profiler.phase("forward"):
                torch.ones(8, 8) @ torch.ones(8, 8)
                time.sleep(0.01 * (number >= 0))
            profiler.step()
    return profiler.run.path


def test_loop_of_ones_own_is_a_run_with_a_profile(tmp_path: Path) -> None:
    run = vizsla.open_run(_loop(tmp_path / "mine"))
    assert run.status() == "trained"
    assert run.profile.nodes == ["algo-1"]
    assert len(run.profile.samples()) >= 1
    assert run.profile.steps().step.tolist() == [1, 2, 3, 4, 5]
    assert {"data_wait", "forward", "other"} <= set(run.profile.steps().phases)
    assert run.profile.damaged == 0


def test_no_thread_and_no_lock_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    _loop(tmp_path / "mine")
    assert threading.active_count() == before
    _loop(tmp_path / "mine")
    assert len(vizsla.open_run(tmp_path / "mine").profile.sessions()) == 2


def test_another_loop_in_the_same_folder_is_numbered_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), profile(tmp_path / "mine") as profiler:
        profiler.step(3 // profiler.run.status().count("no"))
    for _ in range(2):
        with profiler:  # the same object once more
            profiler.step()
    _loop(tmp_path / "mine")
    assert vizsla.open_run(tmp_path / "mine").profile.steps().step.tolist() == list(range(1, 8))
    assert profiler.run.status() == "trained"


def test_fork_ends_nothing_of_its_parents(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from vizsla.profiling import profile\n"
        f"with profile({str(tmp_path / 'mine')!r}) as profiler:\n"
        "    profiler.step()\n"
        "    if (pid := os.fork()) == 0:\n"
        "        sys.exit(3)\n"
        "    os.waitpid(pid, 0)\n"
        "    assert profiler.run.outcome() is None\n"
        "    assert profiler.run.status() == 'running'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert vizsla.open_run(tmp_path / "mine").status() == "trained"
    text = (tmp_path / "mine" / "timeline.jsonl").read_text()
    assert text.count('"first_step"') == 1


def test_other_threads_do_not_disturb_the_times(tmp_path: Path) -> None:
    with profile(tmp_path / "mine", interval_ms=QUICK_MS) as profiler:

        def elsewhere() -> None:
            with profiler.phase("forward"):
                time.sleep(0.05)

        threads = [threading.Thread(target=elsewhere) for _ in range(3)]
        for thread in threads:
            thread.start()
        with profiler.phase("backward"):
            time.sleep(0.02)
        for thread in threads:
            thread.join()
        profiler.step()
    steps = vizsla.open_run(tmp_path / "mine").profile.steps()
    assert steps.phases["backward"][0] >= 0.02
    assert "forward" not in steps.phases


def test_processes_of_one_training_share_a_named_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="name a folder"):
        profile().__enter__()
    assert not (tmp_path / "runs").exists()
    with profile("mine") as profiler:  # before the first process has made it
        profiler.step()
    assert (tmp_path / "mine" / "timeline-rank1.jsonl").exists()


def test_run_is_running_while_it_is_profiled(tmp_path: Path) -> None:
    with profile(tmp_path / "mine", interval_ms=QUICK_MS) as profiler:
        assert profiler.run.status() == "running"
        with pytest.raises(RunError, match="profiled by another process"):
            profile(tmp_path / "mine").__enter__()
    assert profiler.run.status() == "trained"


def test_loop_that_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), profile(tmp_path / "mine") as profiler:
        1 / 0  # noqa: B018
    assert profiler.run.outcome() == {
        "status": "failed", "reason": "ZeroDivisionError: division by zero",
    }  # fmt: skip


def test_debugger_and_profiler_share_a_run(tmp_path: Path) -> None:
    model, data = torch.nn.Linear(4, 2), torch.randn(8, 4)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss()
    labels = torch.zeros(8, dtype=torch.long)
    folder = tmp_path / "both"
    with (
        watch(model, folder, loss_fn=criterion, optimizer=optimizer, every=1) as debugger,
        profile(folder, interval_ms=QUICK_MS) as profiler,
    ):
        for _ in range(4):
            with profiler.phase("forward"):
                loss = criterion(model(data), labels)
            loss.backward()
            optimizer.step()
            debugger.step()
            profiler.step()
    run = vizsla.open_run(folder)
    assert len(run.tensors.steps("train")) == 4
    assert run.profile.steps().phases["debugger"].all()


def test_training_of_vizslas_own_is_not_written_into(finished_run: vizsla.RunFolder) -> None:
    with pytest.raises(RunError, match="name another folder"):
        profile(finished_run.path).__enter__()


def test_settings_that_make_no_sense_are_refused_before_the_loop(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="50"):
        profile(tmp_path / "mine", interval_ms=50)
    with pytest.raises(SettingError, match="trace_steps"):
        profile(tmp_path / "mine", trace_steps="5:2")
    assert not (tmp_path / "mine").exists()


def test_loop_under_vizsla_profile_joins_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _loop(tmp_path / "command")
    (whole / "timeline.jsonl").unlink()
    samples = (whole / "profile-algo-1.jsonl").read_bytes()
    monkeypatch.setenv(RUN_VARIABLE, str(whole))
    assert _loop(None) == whole
    assert len(vizsla.open_run(whole).profile.steps()) == 5
    assert (whole / "profile-algo-1.jsonl").read_bytes() == samples  # sampled by the command


def test_two_loops_at_once_under_vizsla_profile_are_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _loop(tmp_path / "command")
    monkeypatch.setenv(RUN_VARIABLE, str(whole))
    with profile() as profiler:
        assert _loop(None, steps=100) == whole
        assert "not profiled" in capsys.readouterr().err
        profiler.step()
    with profiler:
        profiler.step()
    assert vizsla.open_run(whole).profile.steps().step.tolist() == list(range(1, 8))


def test_run_of_a_command_that_is_gone_is_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_VARIABLE, str(tmp_path / "gone"))
    assert _loop(None).parent == Path("runs")
    assert not (tmp_path / "gone").exists()


def test_steps_are_timed_though_their_trace_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "trace-2-4.json.gz").mkdir(parents=True)
    run = vizsla.open_run(_loop(tmp_path / "mine", trace_steps="2:4"))
    assert capsys.readouterr().err.count("no trace was written") == 1
    assert len(run.profile.steps()) == 5
    assert not list(run.path.glob(".*.part*"))
    assert "KINETO_LOG_LEVEL" not in os.environ


def test_trace_of_steps_that_are_long_over_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _loop(tmp_path / "mine")
    _loop(tmp_path / "mine", trace_steps="2:4")
    assert "steps 2 to 3 were over before, and the next is step 6" in capsys.readouterr().err


def test_trace_holds_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    run = vizsla.open_run(_loop(tmp_path / "traced", trace_steps="2:4"))
    (trace,) = run.profile.traces()
    assert trace.name == "trace-2-4.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "forward" for event in events) == 2
    fact = run.profile.fact("trace")
    assert fact is not None
    assert fact["steps"] == "2:4"
    assert "aten::mm" in {one["name"] for one in fact["operators"]}


def test_trace_of_steps_that_never_came_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "from vizsla.profiling import profile\n"
        f"with profile({str(tmp_path / 'mine')!r}, trace_steps='20:25') as profiler:\n"
        "    profiler.step()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "steps 20 to 24 were not reached" in done.stderr
    assert not vizsla.open_run(tmp_path / "mine").profile.traces()


def test_what_fails_in_the_profiler_does_not_reach_the_loop(tmp_path: Path) -> None:
    with profile(tmp_path / "mine", interval_ms=QUICK_MS) as profiler:
        (tmp_path / "mine" / "timeline.jsonl").unlink()
        os.mkdir(tmp_path / "mine" / "timeline.jsonl")  # which nobody can append to
        profiler.step()
        time.sleep(2.1)
        profiler.step()
        profiler.step()
    assert profiler.run.status() == "trained"
