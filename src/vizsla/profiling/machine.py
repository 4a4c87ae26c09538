"""Which machine this is: its name among the nodes of a run, and what it has."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from vizsla.data.cores import available_cores
from vizsla.version import __version__


def node_here(environment: Mapping[str, str] | None = None) -> str:
    """What this machine is called: algo-1, algo-2 and so on, as SageMaker and torchrun count.

    >>> node_here({"GROUP_RANK": "1"})
    'algo-2'
    """
    environment = os.environ if environment is None else environment
    if host := environment.get("SM_CURRENT_HOST", ""):
        return "".join(one if one.isalnum() or one in "-_." else "-" for one in host)
    for name in ("GROUP_RANK", "NODE_RANK"):
        if (rank := environment.get(name, "")).isdecimal():
            return f"algo-{int(rank) + 1}"
    return "algo-1"


def samples_here(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process is the one of its machine that samples: the first of those there."""
    environment = os.environ if environment is None else environment
    return environment.get("LOCAL_RANK", "") in ("", "0")


def describe_machine() -> dict[str, Any]:
    """What the machine is and has, as in `format.py`; graphics cards aside."""
    memory_bytes = psutil.virtual_memory().total
    about = {
        "host": socket.gethostname(),
        "cores": available_cores(),
        "machine_cores": os.cpu_count() or 1,
        "processor": _processor(),
        "memory_bytes": memory_bytes,
        "vizsla": __version__,
    }
    limit = min(_memory_limits(), default=memory_bytes)
    return about | ({"memory_limit_bytes": limit} if limit < memory_bytes else {})


def process_started() -> float:
    """When this process was started, in seconds since 1970."""
    try:
        # psutil counts from when the machine was, which Linux rounds to a whole second.
        started = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
        return time.time() - age
    except (OSError, AttributeError, ValueError):  # no Linux
        return float(psutil.Process().create_time())


def torch_threads() -> int | None:
    """How many threads torch computes with here; None where it is not loaded. Ask in the thread
    that trains: another may have an older number."""
    torch = sys.modules.get("torch")
    count = getattr(torch, "get_num_threads", None)  # it may be in the midst of being imported
    return int(count()) if count is not None else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_limits(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Limits of memory that the process's control groups set, of either version."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            home, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            home, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):  # any group above may set a tighter one
            try:
                yield int((home / folder / name).read_text())
            except (OSError, ValueError):  # not shown in this container, or "max"
                continue
