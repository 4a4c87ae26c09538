from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vizsla.errors import RunError
from vizsla.profiling.frames import steps_frame, system_frame
from vizsla.profiling.recorded import NotProfiled, Profile, open_profile

START = 1_700_000_000.0
ABOUT = {"kind": "about", "node": "algo-1", "interval_ms": 500, "cores": 2, "missing": []}


def sample(at: float, **numbers: Any) -> dict[str, Any]:
    return {"kind": "sample", "time": START + at, "cpu": [50.0, 10.0], "memory": 20.0} | numbers


def steps(first: int, count: int, seconds: float = 1.0, **phases: float) -> dict[str, Any]:
    numbers = list(range(first, first + count))
    return {
        "kind": "steps",
        "step": numbers,
        "time": [START + number for number in numbers],
        "seconds": [seconds] * count,
        "phases": {name: [value] * count for name, value in phases.items()},
    }


def write(path: Path, *lines: Any) -> Path:
    path.write_text(
        "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines)
    )
    return path.parent


def test_samples_are_columns_with_gaps_where_a_number_was_not_to_be_had(tmp_path: Path) -> None:
    run = write(
        tmp_path / "profile-algo-1.jsonl",
        ABOUT,
        sample(0, celsius=50, iowait=[1.0, 2.0]),
        sample(1, memory=None, gpus=[{"utilization": 5}, {"watts": 70.5}]),
        sample(2, cpu=[1.0]),
    )
    samples = Profile(run).samples()
    np.testing.assert_array_equal(samples.columns["celsius"], [50, np.nan, np.nan])
    np.testing.assert_array_equal(samples.columns["memory"], [20, np.nan, 20])
    np.testing.assert_array_equal(samples.cpu[2], [1, np.nan])
    np.testing.assert_array_equal(samples.cpu_mean, [30, 30, 1])
    np.testing.assert_array_equal(samples.iowait_mean, [1.5, np.nan, np.nan])
    np.testing.assert_array_equal(samples.gpus[1]["watts"], [np.nan, 70.5, np.nan])
    assert samples.gpus[0].keys() == {"utilization"}
    assert samples.interval_s == 0.5


def test_two_sessions_of_one_file_are_in_order_and_the_pause_between_is_nobodys(
    tmp_path: Path,
) -> None:
    run = write(
        tmp_path / "profile-algo-1.jsonl",
        ABOUT,
        sample(100),
        sample(100.5),
        ABOUT | {"interval_ms": 60_000, "cores": 4},
        sample(3100),
        sample(3160),
        sample(99),  # the clock was set back
    )
    samples = Profile(run).samples()
    assert samples.about["cores"] == 4
    np.testing.assert_array_equal(samples.time - START, [99, 100, 100.5, 3100, 3160])
    np.testing.assert_array_equal(samples.seconds, [60, 1, 0.5, 60, 60])


def test_of_a_step_that_was_repeated_the_later_one_holds(tmp_path: Path) -> None:
    run = write(
        tmp_path / "timeline.jsonl",
        steps(1, 10, seconds=1.0, forward=0.7),
        steps(8, 5, seconds=2.0, backward=1.5),
    )
    found = Profile(run).steps()
    assert found.step.tolist() == list(range(1, 13))
    assert found.seconds.tolist() == [1.0] * 7 + [2.0] * 5
    assert found.phases["forward"].tolist() == [0.7] * 7 + [0.0] * 5
    assert found.share("backward") == pytest.approx(7.5 / 17)
    assert found.total("never") == 0


def test_nodes_and_ranks_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write(tmp_path / f"profile-algo-{number}.jsonl", ABOUT, sample(0, memory=number))
        write(tmp_path / f"timeline-rank{number}.jsonl", steps(1, number))
    write(tmp_path / "timeline.jsonl", steps(1, 1))
    profile = open_profile(tmp_path)
    assert profile.nodes == ["algo-1", "algo-2", "algo-10"]
    assert profile.ranks == [0, 1, 2, 10]
    assert profile.samples("algo-10").columns["memory"].tolist() == [10]
    assert len(profile.steps(2)) == 2
    with pytest.raises(KeyError):
        profile.samples("algo-7")


def test_spans_sessions_and_facts_are_read(tmp_path: Path) -> None:
    run = write(
        tmp_path / "timeline.jsonl",
        {"kind": "session", "time": START, "node": "algo-1", "process_started": None},
        {"kind": "span", "name": "setup", "time": START + 2, "seconds": 3},
        {"kind": "span", "name": "import", "time": START, "seconds": 2},
        {"kind": "fact", "name": "bf16", "speedup": 1},
        {"kind": "fact", "name": "bf16", "speedup": 2},
        {"kind": "session", "time": START + 100},
        {"kind": "span", "name": "import", "time": START + 100, "seconds": 50},
    )
    profile = Profile(run)
    assert [span.name for span in profile.spans()] == ["import", "setup", "import"]
    assert profile.startup() == {"import": 2, "setup": 3}
    assert profile.fact("bf16") == {"kind": "fact", "name": "bf16", "speedup": 2}
    assert profile.fact("cache") is None
    assert len(profile.sessions()) == 2


def test_a_run_without_a_profile_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(NotProfiled, match="vizsla train --profile"):
        open_profile(tmp_path)


def test_a_profile_that_cannot_be_read_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "profile-algo-1.jsonl").mkdir()
    with pytest.raises(RunError, match=r"profile-algo-1.jsonl cannot be read"):
        Profile(tmp_path)


DAMAGED_SAMPLES = [
    "",
    "no JSON",
    '{"kind":"sample","time":17000',
    "[1, 2]",
    "7",
    "[" * 100_000,
    '{"time": 5}',
    '{"kind": 7, "time": 5}',
    '{"kind": ["sample"], "time": 5}',
    {"kind": "sample"},
    sample(0, time="now"),
    sample(0, time=float("nan")),
    sample(0, time=float("inf")),
    sample(0, time=-1),
    sample(0, time=10**400),
    sample(0, time=True),
    sample(0, memory="20"),
    sample(0, memory=[20]),
    sample(0, cpu=5),
    sample(0, cpu=["a"]),
    sample(0, cpu=[[1]]),
    sample(0, cpu=[0] * 5000),
    sample(0, iowait={"0": 1}),
    sample(0, gpus={"watts": 1}),
    sample(0, gpus=[1]),
    sample(0, gpus=[{"watts": "70"}]),
    {"kind": "about"},
    ABOUT | {"interval_ms": 0},
    ABOUT | {"interval_ms": "500"},
    ABOUT | {"missing": "all"},
    ABOUT | {"missing": [1]},
    ABOUT | {"gpus": ["a"]},
    ABOUT | {"cores": "two"},
    ABOUT | {"processor": 7},
]


@pytest.mark.parametrize("line", DAMAGED_SAMPLES, ids=lambda line: str(line)[:40])
def test_a_damaged_line_of_samples_is_skipped_and_counted(tmp_path: Path, line: Any) -> None:
    run = write(tmp_path / "profile-algo-1.jsonl", ABOUT, sample(1), line, sample(2))
    profile = Profile(run)
    assert profile.damaged == 1
    assert len(profile.samples()) == 2
    assert len(system_frame(profile)) == 6


DAMAGED_STEPS = [
    {"kind": "steps"},
    steps(1, 2) | {"step": [1]},
    steps(1, 2) | {"step": [1.0, 2.0]},
    steps(1, 2) | {"step": [-1, 2]},
    steps(1, 2) | {"step": [10**30, 2]},
    steps(1, 2) | {"step": "12"},
    steps(1, 2) | {"seconds": [1.0]},
    steps(1, 2) | {"seconds": [1.0, None]},
    steps(1, 2) | {"seconds": [1.0, float("nan")]},
    steps(1, 2) | {"seconds": [1.0, 10**400]},
    steps(1, 2) | {"time": [START, 1e300]},
    steps(1, 2) | {"phases": None},
    steps(1, 2) | {"phases": {"forward": [1.0]}},
    steps(1, 2) | {"phases": {"forward": [1.0, "2"]}},
    steps(1, 2) | {"phases": {"forward": 1.0}},
    {"kind": "span", "time": START, "seconds": 1},
    {"kind": "span", "name": "setup", "time": START, "seconds": "1"},
    {"kind": "span", "name": "setup", "time": None, "seconds": 1},
    {"kind": "session"},
    {"kind": "session", "time": START, "node": 1},
    {"kind": "fact"},
]


@pytest.mark.parametrize("line", DAMAGED_STEPS, ids=lambda line: str(line)[:60])
def test_a_damaged_line_of_a_timeline_is_skipped_and_counted(tmp_path: Path, line: Any) -> None:
    run = write(tmp_path / "timeline.jsonl", steps(1, 2), line, steps(3, 2))
    profile = Profile(run)
    assert profile.damaged == 1
    assert profile.steps().step.tolist() == [1, 2, 3, 4]
    assert len(steps_frame(profile)) == 4
    assert profile.spans() == profile.sessions() == []


def test_a_number_beyond_all_bounds_counts_as_not_to_be_had(tmp_path: Path) -> None:
    run = write(
        tmp_path / "profile-algo-1.jsonl",
        sample(0, memory=10**400, cpu=[10**400, 5]),
        sample(1, memory=float("inf"), cpu=[float("nan"), 5]),
        sample(2),
    )
    samples = Profile(run).samples()
    assert np.isnan(samples.columns["memory"]).tolist() == [True, True, False]
    assert np.isnan(samples.cpu[:, 0]).tolist() == [True, True, False]


def test_lines_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    run = write(tmp_path / "profile-algo-1.jsonl", ABOUT, {"kind": "weather"}, sample(1, mood="ok"))
    profile = Profile(run)
    assert profile.damaged == 0
    assert len(profile.samples()) == 1


@pytest.mark.parametrize("end", ['{"kind":"sample","time":17', '{"kind":"sample"}', ""])
def test_a_last_line_that_is_still_being_written_is_no_damage(tmp_path: Path, end: str) -> None:
    run = write(tmp_path / "profile-algo-1.jsonl", ABOUT, sample(1))
    with (run / "profile-algo-1.jsonl").open("a") as file:
        file.write(end)
    profile = Profile(run)
    assert profile.damaged == 0
    assert len(profile.samples()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    "time cpu iowait gpus memory tree_bytes interval_ms missing cores node step seconds phases "
    "name process_started".split()
)
KINDS = st.sampled_from(["about", "sample", "steps", "span", "session", "fact", "other"])
OBJECTS = st.builds(
    lambda kind, rest: rest | {"kind": kind}, KINDS, st.dictionaries(NAMES, VALUES, max_size=6)
).map(lambda line: json.dumps(line).encode())
HOSTILE = st.lists(OBJECTS | st.binary(max_size=30), max_size=8)


@given(HOSTILE, HOSTILE)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_however_hostile_ends_reading(
    tmp_path: Path, machine: list[bytes], timeline: list[bytes]
) -> None:
    good = json.dumps(sample(1)).encode()
    (tmp_path / "profile-algo-1.jsonl").write_bytes(b"\n".join([*machine, good, b""]))
    good = json.dumps(steps(1, 3)).encode()
    (tmp_path / "timeline.jsonl").write_bytes(b"\n".join([*timeline, good, b""]))
    profile = Profile(tmp_path)
    assert len(profile.samples()) >= 1
    assert len(profile.steps()) >= 3
    assert np.isfinite(profile.samples().seconds).all()
    system_frame(profile)
    steps_frame(profile)
    profile.startup()
    profile.fact("any")
