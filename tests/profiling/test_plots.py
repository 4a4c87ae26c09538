"""Figures of profiles: what they show, and how little of it they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vizsla.findings import Finding
from vizsla.profiling import plots
from vizsla.profiling.clock import RunClock
from vizsla.profiling.recorded import Profile
from vizsla.profiling.summary import Part, later_steps, parts_of, slow_steps, step_figures
from vizsla.profiling.time_plot import machine_over_time

BEGAN = 1_700_000_000.0


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def step_lines(seconds: list[float], began: float) -> dict[str, Any]:
    """Steps one after the other, a quarter of each waiting for data."""
    times = (began + np.cumsum([0.0, *seconds[:-1]])).tolist()
    wait, forward = ([share * one for one in seconds] for share in (0.25, 0.75))
    return {
        "kind": "steps", "step": list(range(1, len(seconds) + 1)), "time": times,
        "seconds": seconds, "phases": {"data_wait": wait, "forward": forward},
    }  # fmt: skip


def span(name: str, time: float, seconds: float) -> dict[str, Any]:
    return {"kind": "span", "name": name, "time": time, "seconds": seconds}


def sample(time: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "sample", "time": time, "cpu": [10.0, 90.0, 20.0, 40.0], "memory_bytes": 8e9,
        "read_bytes": 1e6, "write_bytes": 0, **more,
    }  # fmt: skip


def write_samples(run: Path, times: list[float], node: str = "algo-1", **more: Any) -> None:
    about = {"kind": "about", "node": node, "cores": 4, "interval_ms": 500}
    write(run / f"profile-{node}.jsonl", [about, *(sample(one, **more) for one in times)])


def profile_of(run: Path) -> tuple[Profile, RunClock]:
    profile = Profile(run)
    return profile, RunClock.of(profile)


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Profile, RunClock]:
    """A start of 4 s and a first step of 1 s, 40 steps of 0.1 s, one of 3 s, then an evaluation."""
    steps = [1.0, *[0.1] * 39, 3.0, 0.1]
    end = BEGAN + 4 + sum(steps)
    write(
        tmp_path / "timeline.jsonl",
        [
            {"kind": "session", "time": BEGAN + 1, "rank": 0},
            span("import", BEGAN, 3.0), span("weights", BEGAN + 3, 1.0),
            span("first_step", BEGAN + 4, 1.0), step_lines(steps, BEGAN + 4),
            span("evaluation", end, 2.0),
        ],
    )  # fmt: skip
    write_samples(tmp_path, np.arange(BEGAN + 1, end + 2, 0.5).tolist())
    return profile_of(tmp_path)


def test_parts_add_up_to_the_run_and_count_the_first_step_once(
    recorded: tuple[Profile, RunClock],
) -> None:
    parts = {part.name: part for part in parts_of(*recorded)}
    assert list(parts) == ["start-up", "steps", "evaluation"]
    assert parts["start-up"].seconds == pytest.approx(5.0)
    assert parts["steps"].seconds == pytest.approx(39 * 0.1 + 3.0 + 0.1)
    assert sum(part.seconds for part in parts.values()) == pytest.approx(recorded[1].total, abs=0.5)
    assert [one.name for one in parts["steps"].parts] == ["data_wait", "forward"]


def test_slow_step_is_found_and_the_first_one_is_not_of_the_others(
    recorded: tuple[Profile, RunClock],
) -> None:
    steps = later_steps(recorded[0])
    assert steps.step[slow_steps(steps)].tolist() == [41]
    figures = step_figures(recorded[0])
    assert figures is not None
    assert (figures.count, figures.slowest_step) == (42, 41)
    assert figures.median == pytest.approx(0.1)


def test_night_between_two_sessions_is_left_out(tmp_path: Path) -> None:
    morning = BEGAN + 12 * 3600
    write_samples(tmp_path, [BEGAN, BEGAN + 0.5, morning, morning + 0.5])
    _, clock = profile_of(tmp_path)
    assert clock.total == pytest.approx(2.0)
    assert clock.pauses == pytest.approx((12 * 3600 - 1.0,))
    shown = clock.seconds(np.array([BEGAN, BEGAN + 0.5, morning, morning + 0.5]))
    assert shown == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_bar_of_the_run_has_each_part_twice(recorded: tuple[Profile, RunClock]) -> None:
    profile, clock = recorded
    figure = plots.where_time_went(parts_of(profile, clock), clock.total)
    assert [bar.name for bar in figure.data] == [
        "start-up", "waiting for data", "forward", "evaluation",
    ]  # fmt: skip
    assert sum(bar.x[0] for bar in figure.data) == pytest.approx(100, abs=4)
    assert all(bar.y[0] == "<b>whole run</b>" for bar in figure.data)


def test_names_of_a_users_own_are_text_and_no_markup() -> None:
    figure = plots.where_time_went([Part("<b>mine</b>", 2.0)], 2.0)
    assert figure.data[0].name == "&lt;b&gt;mine&lt;/b&gt;"
    assert "<b>mine" not in figure.data[0].y[1]


def test_rows_share_one_axis_of_time(recorded: tuple[Profile, RunClock]) -> None:
    figure = machine_over_time(*recorded)
    assert {curve.xaxis for curve in figure.data} <= {None, "x"}
    assert [one for one in figure.layout if one.startswith("xaxis")] == ["xaxis"]
    assert len({curve.yaxis for curve in figure.data}) == 4  # steps, cores, memory, disk
    assert (figure.layout.hovermode, figure.layout.hoversubplots) == ("x unified", "axis")
    (evaluation,) = figure.layout.shapes
    assert evaluation.x1 - evaluation.x0 == pytest.approx(2.0, abs=0.01)


def test_moments_that_findings_name_are_drawn(recorded: tuple[Profile, RunClock]) -> None:
    def finding(rule: str, told: Any) -> Finding:
        return Finding(
            rule, "warning", "steps", "Slow.", "Hurry.", evidence={"seconds_from_start": told}
        )

    found = [
        finding("step_outlier", [5.0, 6.5]), finding("<b>mine</b>", [[1.0, 3.0]]),
        finding("step_outlier", [7]), finding("odd", [["a"], [1, 2, 3], None]), finding("none", 3),
    ]  # fmt: skip
    figure = machine_over_time(*recorded, found)
    outliers, mine = (one for one in figure.data if one.name in ("step_outlier", "<b>mine</b>"))
    assert list(outliers.x[::3]) == [5.0, 6.5, 7.0]
    assert (mine.x[0], mine.x[1]) == (1.0, 3.0)
    assert len(figure.data) == len(machine_over_time(*recorded).data) + 2
    assert "&lt;b&gt;mine&lt;/b&gt;" in [one.text for one in figure.layout.annotations]


@pytest.mark.parametrize(("most", "unit"), [(4e3, "kB/s"), (4e6, "MB/s")])
def test_traffic_is_told_in_a_unit_that_suits_it(tmp_path: Path, most: float, unit: str) -> None:
    write_samples(tmp_path, [BEGAN, BEGAN + 1], received_bytes=most, sent_bytes=0)
    figure = machine_over_time(*profile_of(tmp_path))
    (received,) = (one for one in figure.data if one.name == "received")
    assert received.y[0] == 4
    assert f"Network, {unit}: received; dotted: sent" in [
        one.text for one in figure.layout.annotations
    ]


def test_step_beyond_the_axis_stands_at_its_end_with_its_number(
    recorded: tuple[Profile, RunClock],
) -> None:
    steps = machine_over_time(*recorded).data[0]
    at = [one[0] for one in steps.customdata].index(41)
    assert steps.customdata[at][1] == 3
    assert steps.y[at] < 3


def test_long_profile_is_thinned_and_keeps_its_peaks(tmp_path: Path) -> None:
    count = 40_000
    seconds = np.full(count, 0.1)
    seconds[12_345] = 0.35
    write(tmp_path / "timeline.jsonl", [step_lines(seconds.tolist(), BEGAN)])
    times = np.arange(36_000) * 0.5 + BEGAN
    about = {"kind": "about", "node": "algo-1", "interval_ms": 500}
    lines = [
        sample(time, read_bytes=1e9 if number == 777 else number % 7)
        for number, time in enumerate(times.tolist())
    ]
    write(tmp_path / "profile-algo-1.jsonl", [about, *lines])
    profile, clock = profile_of(tmp_path)
    figures = [
        machine_over_time(profile, clock),
        plots.phases_of_steps(profile.steps()),
        plots.cores_over_time(profile, clock, "algo-1"),
    ]
    for curve in [*figures[0].data, *figures[1].data]:
        assert len(curve.x) <= 1500
    read = next(curve for curve in figures[0].data if curve.name == "disk read")
    assert max(read.y) == 1000
    assert 12_346 in [one[0] for one in figures[0].data[0].customdata]
    assert sum(len(figure.to_json()) for figure in figures) < 400_000


def test_gaps_and_missing_counters_leave_no_row(tmp_path: Path) -> None:
    write(
        tmp_path / "profile-algo-1.jsonl",
        [{"kind": "sample", "time": BEGAN + at, "memory_bytes": 1e9} for at in (0, 1, 2)],
    )
    profile, clock = profile_of(tmp_path)
    figure = machine_over_time(profile, clock)
    assert [curve.name for curve in figure.data] == ["memory"]
    assert not plots.cores_over_time(profile, clock, "algo-1").data


def test_several_machines_and_cards_get_a_line_each(tmp_path: Path) -> None:
    gpus = [{"utilization": 50, "memory_bytes": 1e9}, {"utilization": 80, "memory_bytes": 2e9}]
    for node in ("algo-1", "algo-2"):
        write_samples(tmp_path, [BEGAN, BEGAN + 1], node, gpus=gpus)
    names = [curve.name for curve in machine_over_time(*profile_of(tmp_path)).data]
    assert "cores of algo-2" in names
    assert "GPU 1 of algo-2" in names
    assert len(names) == len(set(names))


def test_nothing_recorded_draws_nothing(tmp_path: Path) -> None:
    profile, clock = profile_of(tmp_path)
    assert clock.total == 0
    assert not machine_over_time(profile, clock).data
    assert not plots.phases_of_steps(profile.steps()).data
    assert not plots.where_time_went(parts_of(profile, clock), clock.total).data
