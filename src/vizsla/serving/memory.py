"""How much memory is left for this process: of the machine's and of its container's."""

from __future__ import annotations

from pathlib import Path

_MACHINE = Path("/proc/meminfo")
# Limit and use, of control groups of the second version and of the first.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
_UNLIMITED_BYTES = 1 << 60


def free_memory_bytes() -> int | None:
    """The smaller of what the machine and the container have left; None where neither tells."""
    told = [left for left in (_of_the_machine(), _of_the_container()) if left is not None]
    return min(told) if told else None


def _of_the_machine() -> int | None:
    try:
        lines = _MACHINE.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_the_container() -> int | None:
    for limit_path, use_path in _GROUPS:
        try:
            limit, use = (int(Path(path).read_text()) for path in (limit_path, use_path))
        except (OSError, ValueError):  # not there, or "max"
            continue
        if limit < _UNLIMITED_BYTES:
            return max(0, limit - use + _reclaimable())
    return None


def _reclaimable() -> int:
    """What the container's use counts and the system would give back: unused file cache."""
    for path in ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat"):
        try:
            lines = Path(path).read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    return 0
