from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from vizsla.profiling.format import STEP_PHASES
from vizsla.profiling.recorded import Profile

# 2024-12-08T05:48:39.508406Z
START = 1_733_636_919.508406
SYSTEM = ["timestamp", "timestamp_us", "value", "system_metric", "dimension", "nodeID", "type"]
FULL = {
    "kind": "sample",
    "time": START,
    "cpu": [98.0, 89.5],
    "iowait": [14.0, 4.2],
    "memory": 6.2,
    "read_ops": 3.0,
    "write_ops": 4.0,
    "read_bytes": 100.0,
    "write_bytes": 200.0,
    "received_bytes": 300.0,
    "sent_bytes": 400.0,
    "gpus": [{"utilization": 55, "memory": 31.5, "watts": 70}],
    "tree_bytes": 5,
}


def profiled(run: Path, nodes: dict[str, list[dict[str, Any]]]) -> Profile:
    for node, lines in nodes.items():
        about = {"kind": "about", "interval_ms": 500}
        text = "".join(json.dumps(line) + "\n" for line in (about, *lines))
        (run / f"profile-{node}.jsonl").write_text(text)
    return Profile(run)


def test_a_sample_becomes_the_rows_that_sagemaker_had(tmp_path: Path) -> None:
    frame = profiled(tmp_path, {"algo-1": [FULL]}).system_frame()
    assert list(frame.columns) == SYSTEM
    rows = frame[["system_metric", "dimension", "type", "value"]].itertuples(index=False, name=None)
    assert list(rows) == [
        ("MemoryUsedPercent", "", "memory", 6.2),
        ("IOPS", "", "i/o", 7.0),
        ("ReadThroughputInBytesPerSecond", "", "i/o", 100.0),
        ("WriteThroughputInBytesPerSecond", "", "i/o", 200.0),
        ("cpu0", "CPUUtilization", "cpu", 98.0),
        ("cpu0", "I/OWaitPercentage", "cpu", 14.0),
        ("cpu1", "CPUUtilization", "cpu", 89.5),
        ("cpu1", "I/OWaitPercentage", "cpu", 4.2),
        ("gpu0", "GPUUtilization", "gpu", 55.0),
        ("gpu0", "GPUMemoryUtilization", "gpu", 31.5),
        ("ReceiveBytesPerSecond", "Algorithm", "network", 300.0),
        ("TransmitBytesPerSecond", "Algorithm", "network", 400.0),
    ]
    assert set(frame["nodeID"]) == {"algo-1"}


def test_times_are_iso_in_utc_and_count_from_the_minute_of_the_beginning(tmp_path: Path) -> None:
    later = FULL | {"time": START + 61}
    frame = profiled(tmp_path, {"algo-1": [FULL, later]}).system_frame()
    assert frame["timestamp"].iloc[0] == "2024-12-08T05:48:39.508406"
    assert frame["timestamp_us"].iloc[0] == 39_508_406  # as SageMaker's own table has it
    assert frame["timestamp_us"].iloc[-1] == 39_508_406 + 61_000_000
    assert pd.to_datetime(frame["timestamp"]).is_monotonic_increasing


def test_numbers_that_were_not_to_be_had_have_no_row(tmp_path: Path) -> None:
    bare = {"kind": "sample", "time": START + 1, "memory": 7.0, "gpus": [{"memory": 2}]}
    frame = profiled(tmp_path, {"algo-1": [FULL, bare]}).system_frame()
    assert frame["value"].notna().all()
    assert frame["system_metric"].tolist()[-2:] == ["MemoryUsedPercent", "gpu0"]


def test_machines_stand_in_one_table_in_order_of_time(tmp_path: Path) -> None:
    second = [{"kind": "sample", "time": START + 0.1, "memory": 1.0}]
    first = [
        {"kind": "sample", "time": START, "memory": 2.0},
        {"kind": "sample", "time": START + 0.5, "memory": 3.0},
    ]
    frame = profiled(tmp_path, {"algo-1": first, "algo-2": second, "algo-3": []}).system_frame()
    assert frame["nodeID"].tolist() == ["algo-1", "algo-2", "algo-1"]
    assert frame["value"].tolist() == [2, 1, 3]
    assert frame.index.tolist() == [0, 1, 2]


def test_the_usual_questions_of_notebooks_are_answered(tmp_path: Path) -> None:
    frame = profiled(tmp_path, {"algo-1": [FULL, FULL | {"time": START + 1}]}).system_frame()
    assert (
        frame[frame.dimension == "CPUUtilization"].groupby("system_metric").value.max()["cpu0"]
        == 98
    )
    frame.to_csv(tmp_path / "samples.csv", index=False)
    assert list(pd.read_csv(tmp_path / "samples.csv").columns) == SYSTEM


def test_steps_of_all_processes_stand_in_one_table(tmp_path: Path) -> None:
    for name, node, phases in (
        ("timeline", "algo-1", {"forward": [0.5, 0.25], "mine": [0.1, 0.2]}),
        ("timeline-rank1", "algo-2", {"backward": [0.75, 0.5]}),
    ):
        lines = [
            {"kind": "session", "time": START, "node": node},
            {
                "kind": "steps",
                "step": [1, 2],
                "time": [START, START + 1],
                "seconds": [1.0, 2.0],
                "phases": phases,
            },
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    frame = Profile(tmp_path).steps_frame()
    steps = ["step", "rank", "node", "timestamp", "seconds"]
    assert list(frame.columns) == [*steps, *STEP_PHASES, "mine"]
    assert frame["step"].tolist() == [1, 2, 1, 2]
    assert frame["rank"].tolist() == [0, 0, 1, 1]
    assert frame["node"].tolist() == ["algo-1", "algo-1", "algo-2", "algo-2"]
    assert frame["forward"].tolist() == [0.5, 0.25, 0, 0]
    assert frame["mine"].tolist() == [0.1, 0.2, 0, 0]
    assert frame["timestamp"].iloc[1] == "2024-12-08T05:48:40.508406"


def test_an_empty_profile_gives_empty_frames_with_their_columns(tmp_path: Path) -> None:
    for profile in (Profile(tmp_path), profiled(tmp_path, {"algo-1": []})):
        assert profile.system_frame().columns.tolist() == SYSTEM
        assert len(profile.system_frame()) == 0
        frame = profile.steps_frame()
        assert frame.columns.tolist()[:5] == ["step", "rank", "node", "timestamp", "seconds"]
        assert set(STEP_PHASES) <= set(frame.columns)
        assert len(frame) == 0
