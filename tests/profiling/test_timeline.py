"""Where a step's time goes: phases within phases, spans between steps, lines that a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.phases import phase, timed_by
from vizsla.profiling.device_time import DeviceTime
from vizsla.profiling.recorded import Profile
from vizsla.profiling.timeline import Timeline

LONG, SHORT = 0.05, 0.01


def _opened(folder: Path) -> Timeline:
    timeline = Timeline()
    timeline.open(folder)
    return timeline


def test_parts_of_a_step_add_up_to_it(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    for _ in range(3):
        with timeline.phase("forward"):
            time.sleep(SHORT)
        time.sleep(SHORT)
        timeline.step()
    timeline.close()
    steps = Profile(tmp_path).steps()
    assert steps.step.tolist() == [1, 2, 3]
    assert sum(steps.phases.values()) == pytest.approx(steps.seconds, abs=1e-5)
    assert (steps.phases["forward"] >= SHORT).all()
    assert (steps.phases["other"] >= SHORT * 0.9).all()


def test_phase_within_another_is_counted_once(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    with timeline.phase("forward"):
        time.sleep(SHORT)
        with timeline.phase("debugger"):
            time.sleep(LONG)
    timeline.step()
    timeline.close()
    phases = Profile(tmp_path).steps().phases
    assert phases["debugger"][0] >= LONG
    assert SHORT <= phases["forward"][0] < LONG


def test_what_lies_between_steps_is_no_part_of_them(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    timeline.step()
    with timeline.phase("evaluation"), timeline.phase("debugger"):
        time.sleep(LONG)
    with timeline.phase("forward"):
        pass
    with timeline.phase("checkpoint"):  # amid a step
        time.sleep(LONG)
    timeline.step()
    timeline.close()
    profile = Profile(tmp_path)
    assert profile.steps().seconds[1] < LONG
    seconds = {span.name: span.seconds for span in profile.spans()}
    assert seconds["evaluation"] >= LONG
    assert seconds["checkpoint"] >= LONG
    assert "debugger" not in profile.steps().phases


def test_span_within_another_is_counted_once(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    with timeline.phase("model"):
        time.sleep(SHORT)
        with timeline.phase("weights"):
            time.sleep(LONG)
    timeline.step()
    timeline.close()
    startup = Profile(tmp_path).startup()
    assert startup["weights"] >= LONG
    assert SHORT <= startup["model"] < LONG


def test_startup_is_all_there_is_up_to_the_end_of_the_first_step(tmp_path: Path) -> None:
    timeline = Timeline()
    began = time.time()
    timeline.began_before("import", began - 2.0)
    with timeline.phase("data"):
        time.sleep(SHORT)
    timeline.open(tmp_path)
    time.sleep(LONG)
    timeline.step()
    timeline.step()
    timeline.close()
    startup = Profile(tmp_path).startup()
    assert startup["import"] == pytest.approx(2.0, abs=0.05)
    assert startup["data"] >= SHORT
    assert sum(startup.values()) == pytest.approx(time.time() - began + 2.0, abs=0.1)
    assert startup["first_step"] >= LONG


def test_phase_that_raises_is_left(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    with pytest.raises(ValueError, match="no batch"), timeline.phase("forward"):
        raise ValueError("no batch")
    with timeline.phase("backward"):
        time.sleep(SHORT)
    timeline.step()
    timeline.close()
    phases = Profile(tmp_path).steps().phases
    assert phases["backward"][0] >= SHORT
    assert phases["forward"][0] < SHORT


def test_loading_times_the_wait_for_each_batch(tmp_path: Path) -> None:
    def batches() -> Any:
        for number in range(3):
            time.sleep(SHORT)
            yield number

    timeline = _opened(tmp_path)
    seen = []
    for batch in timeline.loading(batches()):
        seen.append(batch)
        timeline.step()
    timeline.close()
    assert seen == [0, 1, 2]
    assert (Profile(tmp_path).steps().phases["data_wait"] >= SHORT * 0.9).all()


def test_code_says_its_phases_to_whoever_listens(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    with phase("forward"):  # nobody listens yet
        time.sleep(LONG)
    with timed_by(timeline), phase("forward"):
        time.sleep(SHORT)
    with phase("forward"):
        time.sleep(LONG)
    timeline.step()
    timeline.close()
    assert SHORT <= Profile(tmp_path).steps().phases["forward"][0] < LONG


def test_steps_so_far_outlive_a_kill(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from vizsla.profiling.timeline import Timeline
timeline = Timeline()
timeline.open(Path({str(tmp_path)!r}))
while True:
    with timeline.phase("forward"):
        time.sleep(0.01)
    timeline.step()
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while not len(Profile(tmp_path).steps()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    profile = Profile(tmp_path)
    assert profile.steps().step[0] == 1
    assert profile.damaged == 0


def test_repeated_steps_of_a_resumed_training_count_once(tmp_path: Path) -> None:
    for first in (1, 3):
        timeline = _opened(tmp_path)
        for number in range(first, first + 4):
            if first == 3:
                time.sleep(SHORT)
            timeline.step(number)
        timeline.close()
    steps = Profile(tmp_path).steps()
    assert steps.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert (steps.seconds[2:] >= SHORT * 0.9).all()
    assert len(Profile(tmp_path).sessions()) == 2


def test_start_of_a_later_session_is_none_of_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        timeline = Timeline()
        timeline.began_before("import", time.time() - 2.0)
        with timeline.phase("data"):
            time.sleep(SHORT)
        timeline.open(tmp_path)
        timeline.begin_steps()
        timeline.step()
        timeline.close()
    assert Profile(tmp_path).startup()["import"] == pytest.approx(2.0, abs=0.5)


def test_setting_up_is_no_part_of_the_first_step(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    time.sleep(LONG)
    timeline.begin_steps()
    timeline.step()
    timeline.close()
    startup = Profile(tmp_path).startup()
    assert startup["setup"] >= LONG
    assert startup["first_step"] < LONG


def test_step_that_was_begun_before_an_evaluation_lies_behind_it(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    timeline.step()
    with timeline.phase("data_wait"):  # for a batch that does not come: the epoch is over
        time.sleep(SHORT)
    with timeline.phase("evaluation"):
        time.sleep(LONG)
    with timeline.phase("forward"):
        time.sleep(SHORT)
    timeline.step()
    timeline.close()
    profile = Profile(tmp_path)
    (evaluation,) = (span for span in profile.spans() if span.name == "evaluation")
    steps = profile.steps()
    assert steps.time[1] > evaluation.time + LONG / 2
    assert 2 * SHORT <= steps.seconds[1] < LONG
    assert steps.phases["data_wait"][1] >= SHORT


def test_start_of_a_loader_is_waited_for_too(tmp_path: Path) -> None:
    class Slow:
        def __iter__(self) -> Any:
            time.sleep(SHORT)
            return iter(range(1))

    timeline = _opened(tmp_path)
    for _ in timeline.loading(Slow()):
        timeline.step()
    timeline.close()
    assert Profile(tmp_path).steps().phases["data_wait"][0] >= SHORT


def test_phase_that_comes_later_and_one_called_other(tmp_path: Path) -> None:
    timeline = _opened(tmp_path)
    timeline.step()
    for name in ('mine "own"', "other"):
        with timeline.phase(name):
            time.sleep(SHORT)
    timeline.step()
    timeline.close()
    steps = Profile(tmp_path).steps()
    assert steps.phases['mine "own"'][0] == 0.0
    assert (steps.phases['mine "own"'][1], steps.phases["other"][1]) >= (SHORT, SHORT)
    assert sum(steps.phases.values()) == pytest.approx(steps.seconds, abs=1e-5)


class _Event:
    """An event of a device whose clock the test moves; there is no GPU to try a real one on."""

    now = 0.0
    reached = 0.0

    def record(self) -> None:
        self.at = _Event.now

    def query(self) -> bool:
        return self.at <= _Event.reached

    def synchronize(self) -> None:
        _Event.reached = max(_Event.reached, self.at)

    def elapsed_time(self, end: _Event) -> float:
        return (end.at - self.at) * 1000


@pytest.fixture
def on_device(tmp_path: Path) -> Timeline:
    _Event.now = _Event.reached = 0.0
    timeline = _opened(tmp_path)
    timeline._device = DeviceTime(_Event)
    return timeline


def _work(timeline: Timeline, name: str, seconds: float) -> None:
    with timeline.phase(name):
        _Event.now += seconds


def test_device_tells_its_own_times_without_being_waited_for(
    on_device: Timeline, tmp_path: Path
) -> None:
    on_device.step(1)
    _work(on_device, "forward", 2.0)
    _Event.now += 0.5
    _work(on_device, "evaluation", 7.0)
    _work(on_device, "backward", 3.0)
    on_device.step(2)
    on_device.flush()
    assert 2 not in Profile(tmp_path).steps().step  # the device is not there yet
    on_device.close()
    steps = Profile(tmp_path).steps()
    assert steps.seconds[1] == pytest.approx(5.5)
    of_it = {name: column[1] for name, column in steps.phases.items()}
    assert of_it == pytest.approx({"forward": 2.0, "backward": 3.0, "other": 0.5})


def test_device_that_fails_ends_no_phase(on_device: Timeline, tmp_path: Path) -> None:
    def fail() -> Any:
        raise RuntimeError("CUDA error")

    _work(on_device, "forward", 1.0)
    on_device.step(1)
    assert on_device._device is not None
    on_device._device._make = fail
    with on_device.phase("forward"):
        time.sleep(SHORT)
    on_device.step(2)
    on_device.close()
    assert Profile(tmp_path).steps().step.tolist() == [2]  # nobody knows the first one's times


NAMES = st.sampled_from(["forward", "backward", "evaluation", "checkpoint", "mine", "data_wait"])
ACTS = st.lists(st.one_of(NAMES, st.sampled_from(["leave", "step"])), max_size=60)


@given(ACTS)
@settings(max_examples=60, deadline=None)
def test_any_order_of_phases_adds_up(tmp_path_factory: pytest.TempPathFactory, acts: Any) -> None:
    folder = tmp_path_factory.mktemp("acts")
    timeline, open_phases = _opened(folder), []
    for act in acts:
        if act == "leave":
            if open_phases:
                open_phases.pop().__exit__(None, None, None)
        elif act == "step":
            timeline.step()
        else:
            phase_ = timeline.phase(act)
            phase_.__enter__()
            open_phases.append(phase_)
    for phase_ in reversed(open_phases):
        phase_.__exit__(None, None, None)
    timeline.close()
    profile = Profile(folder)
    steps = profile.steps()
    assert profile.damaged == 0
    assert len(steps) == acts.count("step")
    if len(steps):
        assert sum(steps.phases.values()) == pytest.approx(steps.seconds, abs=1e-3)
        assert all((column >= 0).all() for column in steps.phases.values())
