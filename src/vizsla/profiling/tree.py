"""A process and its descendants: their memory, processor use and threads.

To find descendants, the processes that are new since the last look are asked for their parent,
which takes a fraction of a millisecond unless the machine has thousands; then it is done less
often. The processor time of a child that came and went between two looks is known from the parent
that waited for it, where the system tells that, as Linux does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from vizsla.profiling.counters import Sample

_LOOK_SHARE = 1000  # looking takes no more than one part in so many of the time


class Seen(NamedTuple):
    """One process at one moment. A number is given to another process in time: `started` tells
    them apart, in whatever unit the system has."""

    started: float
    cpu_s: float
    threads: int
    memory_bytes: int
    waited_s: float = 0.0  # processor time of children that have ended, and of theirs


class Tree:
    """`own_bytes`, `tree_bytes`, `tree_cpu`, `processes`, `threads` of a process and those that
    come of it. A source as in `counters.py`; silent once none of them is left."""

    def __init__(self, pid: int, look: Callable[[int], Seen | None] | None = None) -> None:
        self.missing: list[str] = []
        self._pid = pid
        by_proc = Path("/proc/self/stat").exists()  # else as psutil can, more slowly
        self._look = look or (_by_proc if by_proc else _by_psutil)
        self._list = _list_by_proc if by_proc else _list_by_psutil
        self._parent_of = _parent_by_proc if by_proc else _parent_by_psutil
        self._parents: dict[int, int] = {}
        self._seen: dict[int, Seen] = {}
        self._pids = self._found = {pid}
        self._looked, self._looking_s = float("-inf"), 0.0

    def read(self, sample: Sample, seconds: float) -> None:
        self._find_descendants()
        last, self._seen = self._seen, self._see()
        if not self._seen:
            return
        if self._pid in self._seen:
            sample["own_bytes"] = self._seen[self._pid].memory_bytes
        sample["tree_bytes"] = sum(one.memory_bytes for one in self._seen.values())
        sample["threads"] = sum(one.threads for one in self._seen.values())
        sample["processes"] = len(self._seen)
        if seconds > 0:
            sample["tree_cpu"] = round(100 * _used(last, self._seen) / seconds, 1)

    def _see(self) -> dict[int, Seen]:
        found = {pid: self._look(pid) for pid in self._pids}
        return {
            pid: one
            for pid, one in found.items()
            if one is not None and (pid in self._found or self._is_still(pid, one))
        }

    def _is_still(self, pid: int, now: Seen) -> bool:
        """Whether it is the process that went by this number at the last look, and no later one."""
        return pid in self._seen and self._seen[pid].started == now.started

    def _find_descendants(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SHARE * self._looking_s:
            return
        is_first = not self._parents  # when every process is new, which says nothing of later
        self._looked, begun = now, time.thread_time()
        self._found = self._descendants()
        # Who has lost its parent on the way has a new one, and is still of this tree.
        self._pids = self._found | self._seen.keys()
        self._looking_s = 0.0 if is_first else time.thread_time() - begun

    def _descendants(self) -> set[int]:
        """The process and all that come of it. Only processes that are new are read."""
        there = self._list()
        self._parents = {pid: parent for pid, parent in self._parents.items() if pid in there}
        for pid in there - self._parents.keys():
            self._parents[pid] = self._parent_of(pid)
        children: dict[int, list[int]] = {}
        for pid, parent in self._parents.items():
            children.setdefault(parent, []).append(pid)
        # Those that have lost their parents may have children too.
        left = [self._pid, *self._seen]
        found = {self._pid}
        while left:
            new = [pid for pid in children.get(left.pop(), ()) if pid not in found]
            found.update(new)
            left += new
        return found


def _used(last: Mapping[int, Seen], now: Mapping[int, Seen]) -> float:
    """Processor time that was used between two looks; at the first nothing is known."""
    used = waited = 0.0
    for pid, one in now.items():
        before = last.get(pid)
        if before is None:  # it is new, and all that it did was since
            used += one.cpu_s + one.waited_s if last else 0.0
        elif before.started == one.started:
            used += max(0.0, one.cpu_s - before.cpu_s)
            waited += max(0.0, one.waited_s - before.waited_s)
    if waited:  # of which what was seen before its end is told already
        waited -= sum(
            one.cpu_s + one.waited_s
            for pid, one in last.items()
            if pid not in now or now[pid].started != one.started
        )
    return used + max(0.0, waited)


def _list_by_proc() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def _list_by_psutil() -> set[int]:
    return set(psutil.pids())


def _parent_by_proc(pid: int) -> int:
    """0 of a process that has ended meanwhile."""
    fields = _stat_of(pid)
    return int(fields[1]) if fields is not None else 0


def _parent_by_psutil(pid: int) -> int:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return 0


def _stat_of(pid: int) -> list[bytes] | None:
    """What Linux tells of a process, from its state on; None where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold anything; the state comes after it.
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def _by_proc(pid: int) -> Seen | None:
    """One read of /proc, a quarter of what psutil needs for the same numbers."""
    fields = _stat_of(pid)
    if fields is None or fields[0] in (b"Z", b"X"):  # it has ended, and nobody has taken note
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return Seen(
        started=float(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / ticks,
        threads=int(fields[17]),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        waited_s=(int(fields[13]) + int(fields[14])) / ticks,
    )


def _by_psutil(pid: int) -> Seen | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Seen(
                process.create_time(),
                times.user + times.system,
                process.num_threads(),
                process.memory_info().rss,
                times.children_user + times.children_system,
            )
    except psutil.Error:
        return None
