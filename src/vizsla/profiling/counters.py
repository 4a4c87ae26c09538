"""What the machine counts: use of each core, memory, disks, network, and how hot it runs.

Each source reads one thing and puts its numbers into a sample. What the system counts since it was
started becomes a rate over the time that really went by; a counter that was set back, or a device
that came or went, gives no number rather than an absurd one. Graphics cards are in `gpus.py`,
processes in `tree.py`.
"""

from __future__ import annotations

import contextlib
import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import psutil

Sample = dict[str, Any]
_SECTOR_BYTES = 512  # of /proc/diskstats, whatever the disk's own are
_PATIENCE = 10  # readings that may fail in a row
_ON_LINUX = platform.system() == "Linux"
# Sensors of processors by psutil's names, on PCs, servers and small boards.
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")
_BELIEVABLE = (1, 150)  # degrees; sensors that are not connected tell 0 or 255


class Source(Protocol):
    """Reads some numbers of `format.SAMPLED`. Used by one thread.

    `missing` says in words which of them cannot be had here. `read` puts in what there is;
    `seconds` have gone by since it was last called, 0 at the first time, when rates are not to be
    had yet. It may raise anything: those numbers are then left out of this sample.
    """

    missing: list[str]

    def read(self, sample: Sample, seconds: float) -> None: ...


class Guarded:
    """A source whose failures do no harm: one reading that fails is left out, and a source that
    keeps failing, or cannot even be made, is given up and named in `missing`.

    Keeps the time between readings, and reads no more often than every `every_s` seconds.
    """

    def __init__(self, what: str, make: Callable[[], Source], every_s: float = 0.0) -> None:
        self.missing: list[str] = []
        self._what, self._every_s = what, every_s
        self._source: Source | None = None
        self._read_at, self._failures = float("-inf"), 0
        try:
            self._source = make()
            self.missing += self._source.missing
        except Exception as error:
            self._give_up(error)

    def read(self, sample: Sample) -> None:
        """Put the source's numbers into a sample, those that there are."""
        now = time.monotonic()
        since = now - self._read_at
        if self._source is None or since < self._every_s:
            return
        try:
            self._source.read(sample, since if math.isfinite(since) else 0.0)
        except Exception as error:
            self._failures += 1
            if self._failures >= _PATIENCE:
                self._give_up(error)
        else:
            self._read_at, self._failures = now, 0

    def _give_up(self, error: Exception) -> None:
        self._source = None
        why = str(error).strip().rstrip(".") or type(error).__name__
        self.missing.append(f"{self._what} ({why})")


class CoreTime(NamedTuple):
    """What a core has spent since the machine started, in whatever unit."""

    core: int
    whole: float
    idle: float
    waited: float


class Cores:
    """`cpu` and `iowait`: percent of each core."""

    def __init__(self, times: Callable[[], list[CoreTime]] | None = None) -> None:
        self.missing = [] if _ON_LINUX else ["I/O wait (Linux alone tells it)"]
        self._times = times or (_linux_core_times if _ON_LINUX else _other_core_times)
        self._last: list[CoreTime] = []

    def read(self, sample: Sample, seconds: float) -> None:
        last, self._last = self._last, self._times()
        if [one.core for one in last] != [one.core for one in self._last]:
            return  # at first, or when cores were switched on or off
        spent = [
            (now.whole - then.whole, now.idle - then.idle, now.waited - then.waited)
            for then, now in zip(last, self._last)
        ]
        sample["cpu"] = [_percent(whole - idle - waited, whole) for whole, idle, waited in spent]
        if not self.missing:
            sample["iowait"] = [_percent(waited, whole) for whole, _, waited in spent]


def _percent(part: float, whole: float) -> float:
    """Counters may go back a little, and may stand still for both."""
    return round(100 * min(1.0, max(0.0, part / whole)), 1) if whole > 0 else 0.0


def _linux_core_times(table: Path = Path("/proc/stat")) -> list[CoreTime]:
    """psutil reads the same for twice the time, which on a machine of many cores is most of a
    sample's."""
    with open(table, "rb") as file:
        lines = file.read().partition(b"\nintr")[0].splitlines()[1:]
    found = []
    for line in lines:
        # Behind the eight that add up stands guests' time, which is within user's and nice's.
        name, *numbers = line.split(None, 9)[:9]
        times = list(map(int, numbers))
        found.append(CoreTime(int(name[3:]), sum(times), times[3], times[4]))
    return found


def _other_core_times() -> list[CoreTime]:
    times = psutil.cpu_times(percpu=True)
    return [CoreTime(at, sum(one), one.idle, 0.0) for at, one in enumerate(times)]


class Memory:
    """`memory` and `memory_bytes` of the machine; what caches hold counts as free."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def read(self, sample: Sample, seconds: float) -> None:
        memory = psutil.virtual_memory()
        sample["memory_bytes"] = memory.total - memory.available
        sample["memory"] = _percent(memory.total - memory.available, memory.total)


class Rates:
    """Sums of counters over devices, as rates."""

    def __init__(self) -> None:
        self._last: Mapping[str, tuple[int, ...]] = {}

    def of(self, now: Mapping[str, tuple[int, ...]], seconds: float) -> list[float] | None:
        """What was counted a second, for each place of the tuples; None if no device was there
        before too. One that started anew at zero is left out."""
        last, self._last = self._last, now
        grown = [
            [after - before for after, before in zip(counts, last[name])]
            for name, counts in now.items()
            if name in last
        ]
        grown = [one for one in grown if min(one) >= 0]
        if not grown or seconds <= 0:
            return None
        return [round(sum(column) / seconds, 1) for column in zip(*grown)]


class Disks:
    """`read_ops`, `write_ops`, `read_bytes`, `write_bytes` of all disks."""

    _NAMES = ("read_ops", "write_ops", "read_bytes", "write_bytes")

    def __init__(self) -> None:
        self._rates, self._counts = Rates(), _linux_disks() if _ON_LINUX else _other_disks
        self.missing: list[str] = []
        try:
            there = bool(self._counts())
        except (OSError, RuntimeError, AttributeError):
            there = False
        if not there:
            self.missing.append("disk operations and bytes (the system shows no disk)")

    def read(self, sample: Sample, seconds: float) -> None:
        if self.missing:
            return
        if (rates := self._rates.of(self._counts(), seconds)) is not None:
            sample.update(zip(self._NAMES, rates))


Counts = Callable[[], dict[str, tuple[int, ...]]]


def _linux_disks(
    table: Path = Path("/proc/diskstats"), devices: Path = Path("/sys/block")
) -> Counts:
    """Reads the whole disks that have no other beneath them: a file system on an encrypted or
    striped volume would else be counted with each of its layers."""
    whole: dict[str, bool] = {}

    def is_disk(name: str) -> bool:
        if name.startswith(("loop", "ram", "zram", "sr", "fd")):
            return False
        slaves = devices / name / "slaves"
        return (devices / name).is_dir() and not (slaves.is_dir() and any(slaves.iterdir()))

    def counts() -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        with open(table, encoding="utf-8") as file:
            lines = file.readlines()
        for line in lines:
            _, _, name, numbers = line.split(None, 3)
            if name not in whole:
                whole[name] = is_disk(name)
            if whole[name]:
                reads, _, read, _, writes, _, written = map(int, numbers.split(None, 7)[:7])
                found[name] = (reads, writes, read * _SECTOR_BYTES, written * _SECTOR_BYTES)
        return found

    return counts


def _other_disks() -> dict[str, tuple[int, ...]]:
    counted = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
    return {
        name: (one.read_count, one.write_count, one.read_bytes, one.write_bytes)
        for name, one in counted.items()
    }


class Network:
    """`received_bytes` and `sent_bytes` of the interfaces that lead out of this machine."""

    def __init__(self, interfaces: Path = Path("/sys/class/net")) -> None:
        self._rates, self._interfaces = Rates(), interfaces
        self._known: frozenset[str] = frozenset()
        self._chosen: frozenset[str] = frozenset()
        self.missing: list[str] = []
        if not self._choose(psutil.net_io_counters(pernic=True, nowrap=False)):
            self.missing.append("network bytes (there is no interface but the loopback)")

    def read(self, sample: Sample, seconds: float) -> None:
        counted = psutil.net_io_counters(pernic=True, nowrap=False)
        chosen = self._choose(counted)
        counts = {name: (counted[name].bytes_recv, counted[name].bytes_sent) for name in chosen}
        if (rates := self._rates.of(counts, seconds)) is not None:
            sample["received_bytes"], sample["sent_bytes"] = rates

    def _choose(self, there: Mapping[str, Any]) -> frozenset[str]:
        """Interfaces with hardware behind them, where there are any: bridges, tunnels and
        shapers repeat what those carry. In a container there are none, and all but the loopback
        count."""
        if self._known != there.keys():
            self._known = frozenset(there)
            hard = {name for name in there if (self._interfaces / name / "device").exists()}
            outside = {name for name in there if not name.startswith("lo")}
            self._chosen = frozenset(hard or outside)
        return self._chosen


class Runnable:
    """`runnable`: threads of the whole machine that run or wait for a core, but for this one."""

    def __init__(self) -> None:
        self.missing = [] if _ON_LINUX else ["runnable threads (Linux alone tells them)"]

    def read(self, sample: Sample, seconds: float) -> None:
        if not self.missing:
            with open("/proc/loadavg", encoding="ascii") as file:
                running = int(file.read().split()[3].split("/")[0])
            sample["runnable"] = max(0, running - 1)


class Heat:
    """`mhz`, `celsius` and `throttled` of the processor. Slow to read: asked now and then."""

    def __init__(self, processors: Path = Path("/sys/devices/system/cpu")) -> None:
        self._counters = sorted(processors.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        self._zero = self._throttled()
        self.missing: list[str] = []
        tried: Sample = {}
        for read in (self._clock, self._temperature):
            with contextlib.suppress(Exception):
                read(tried)
        if "mhz" not in tried:
            self.missing.append("clock of the processor")
        if "celsius" not in tried:
            self.missing.append("temperature of the processor (no sensor can be read)")
        if not self._counters:
            self.missing.append("slowing of the processor for its heat (it is not counted here)")

    def read(self, sample: Sample, seconds: float) -> None:
        self._clock(sample)
        self._temperature(sample)
        if self._counters:
            sample["throttled"] = max(0, self._throttled() - self._zero)

    def _clock(self, sample: Sample) -> None:
        clock = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
        if clock is not None and clock.current > 0:
            sample["mhz"] = round(clock.current)

    def _temperature(self, sample: Sample) -> None:
        if not hasattr(psutil, "sensors_temperatures"):
            return
        sensors = psutil.sensors_temperatures()
        felt = [one.current for name in _SENSORS for one in sensors.get(name, ())]
        low, high = _BELIEVABLE
        if felt := [degrees for degrees in felt if low <= degrees <= high]:
            sample["celsius"] = round(max(felt), 1)

    def _throttled(self) -> int:
        return sum(int(path.read_text()) for path in self._counters)


class Power:
    """`watts` of the processors and their memory, where the kernel lets RAPL be read: on most
    machines since 2020 by root alone, in virtual machines not at all."""

    def __init__(self, zones: Path = Path("/sys/class/powercap")) -> None:
        # AMD's zones are called so as well. Others repeat what these count: core, uncore, psys.
        self._zones = [
            zone
            for zone in sorted(zones.glob("intel-rapl:*"))
            if _name_of(zone).startswith(("package", "dram")) and _energy(zone)
        ]
        self._rates = Rates()
        self.missing = [] if self._zones else ["power of the processor (RAPL cannot be read)"]

    def read(self, sample: Sample, seconds: float) -> None:
        if self._zones:
            counts = {str(zone): (_energy(zone),) for zone in self._zones}
            if (rates := self._rates.of(counts, seconds)) is not None:
                sample["watts"] = round(rates[0] / 1e6, 2)


def _name_of(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _energy(zone: Path) -> int:
    """Microjoules counted so far; 0 where they cannot be read."""
    try:
        return int((zone / "energy_uj").read_text())
    except (OSError, ValueError):
        return 0
