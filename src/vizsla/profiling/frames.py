"""A profile as pandas frames: the machine's samples as SageMaker's users know them, and the steps.

The system frame has the columns and names of smdebug's `PandasFrame.get_all_system_metrics`, so
that notebooks written for it go on working. One thing differs: smdebug wrote a colon before the
microseconds of `timestamp`, which is no ISO 8601 and which no parser reads unaided; here it is a
full stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from vizsla.profiling.format import STEP_PHASES
from vizsla.profiling.samples import Floats, Samples

if TYPE_CHECKING:
    from vizsla.profiling.recorded import Profile

_SYSTEM = ["timestamp", "timestamp_us", "value", "system_metric", "dimension", "nodeID", "type"]
_STEPS = ["step", "rank", "node", "timestamp", "seconds"]
# Numbers of a sample that SageMaker has too, and its names: system_metric, dimension, type. What
# a process sees of the network it calls the algorithm's; the platform's own is not ours to see.
_NAMES = {
    "memory": ("MemoryUsedPercent", "", "memory"),
    "read_bytes": ("ReadThroughputInBytesPerSecond", "", "i/o"),
    "write_bytes": ("WriteThroughputInBytesPerSecond", "", "i/o"),
    "received_bytes": ("ReceiveBytesPerSecond", "Algorithm", "network"),
    "sent_bytes": ("TransmitBytesPerSecond", "Algorithm", "network"),
}
_NAMES_OF_GPU = {"utilization": "GPUUtilization", "memory": "GPUMemoryUtilization"}


class _Metric(NamedTuple):
    values: Floats
    name: str
    dimension: str
    kind: str


def system_frame(profile: Profile) -> pd.DataFrame:
    """A row for each metric of each sample, in order of time: `timestamp` (ISO 8601, UTC),
    `timestamp_us` (since the minute in which the profile begins, as SageMaker counts), `value`,
    `system_metric`, `dimension`, `nodeID` and `type`."""
    nodes = [profile.samples(node) for node in profile.nodes]
    nodes = [samples for samples in nodes if len(samples)]
    if not nodes:
        return pd.DataFrame(columns=_SYSTEM)
    start_us = min(_microseconds(samples.time)[0] for samples in nodes) // 60_000_000 * 60_000_000
    frames = [_of_node(samples, start_us) for samples in nodes]
    whole = pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0]
    return whole.sort_values("timestamp_us", kind="stable", ignore_index=True)


def steps_frame(profile: Profile) -> pd.DataFrame:
    """A row for each step of each process: `step`, `rank`, `node`, `timestamp` (when it began),
    `seconds`, and a column of seconds for each phase, 0 where it did not occur."""
    found = {rank: profile.steps(rank) for rank in profile.ranks}
    names = dict.fromkeys([*STEP_PHASES, *(name for one in found.values() for name in one.phases)])
    frames = []
    for rank, steps in found.items():
        sessions = profile.sessions(rank)
        columns: dict[str, Any] = {
            "step": steps.step,
            "rank": rank,
            "node": sessions[-1].get("node", "") if sessions else "",
            "timestamp": _iso(_microseconds(steps.time)),
            "seconds": steps.seconds,
        }
        columns |= {name: steps.phases.get(name, np.zeros(len(steps))) for name in names}
        frames.append(pd.DataFrame(columns))
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return pd.DataFrame(columns=[*_STEPS, *names])
    return pd.concat(frames, ignore_index=True)


def _of_node(samples: Samples, start_us: int) -> pd.DataFrame:
    """The rows of one machine, those of a sample together."""
    metrics = list(_metrics(samples))
    values = np.column_stack([metric.values for metric in metrics])
    at, which = np.nonzero(~np.isnan(values))  # sample by sample
    microseconds = _microseconds(samples.time)

    return pd.DataFrame(
        {
            "timestamp": _iso(microseconds)[at],
            "timestamp_us": microseconds[at] - start_us,
            "value": values[at, which],
            "system_metric": np.array([one.name for one in metrics], object)[which],
            "dimension": np.array([one.dimension for one in metrics], object)[which],
            "nodeID": samples.node,
            "type": np.array([one.kind for one in metrics], object)[which],
        }
    )


def _metrics(samples: Samples) -> Iterator[_Metric]:
    columns = samples.columns
    nothing = np.full(len(samples), np.nan)
    yield _Metric(columns.get("memory", nothing), *_NAMES["memory"])
    if "read_ops" in columns and "write_ops" in columns:
        yield _Metric(columns["read_ops"] + columns["write_ops"], "IOPS", "", "i/o")
    for name in ("read_bytes", "write_bytes"):
        yield _Metric(columns.get(name, nothing), *_NAMES[name])
    for core in range(samples.cpu.shape[1]):
        yield _Metric(samples.cpu[:, core], f"cpu{core}", "CPUUtilization", "cpu")
        if core < samples.iowait.shape[1]:
            yield _Metric(samples.iowait[:, core], f"cpu{core}", "I/OWaitPercentage", "cpu")
    for at, device in enumerate(samples.gpus):
        for name, dimension in _NAMES_OF_GPU.items():
            yield _Metric(device.get(name, nothing), f"gpu{at}", dimension, "gpu")
    for name in ("received_bytes", "sent_bytes"):
        yield _Metric(columns.get(name, nothing), *_NAMES[name])


def _microseconds(time: Floats) -> Any:
    return np.round(time * 1e6).astype(np.int64)


def _iso(microseconds: Any) -> Any:
    """Texts such as 2026-11-21T19:10:05.500000."""
    return np.datetime_as_string(microseconds.astype("datetime64[us]"), unit="us").astype(object)
