"""Real processes are sampled here. The graphics card is a stand-in shaped like NVML's module: on a
real device this has not been tried."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vizsla.errors import SettingError, StorageError
from vizsla.profiling.counters import (
    Cores,
    CoreTime,
    Guarded,
    Heat,
    Network,
    Power,
    Rates,
    _linux_core_times,
    _linux_disks,
)
from vizsla.profiling.format import SAMPLED
from vizsla.profiling.gpus import Gpus
from vizsla.profiling.lines import Lines
from vizsla.profiling.machine import _memory_limits, node_here, samples_here
from vizsla.profiling.recorded import Profile
from vizsla.profiling.sampler import Sampler, _next_after
from vizsla.profiling.tree import Seen, Tree, _by_proc, _by_psutil

ON_LINUX = sys.platform == "linux"
BUSY = "import time\nend = time.time() + 30\nwhile time.time() < end: pass"
LARGE = "import time\nheld = bytearray(120_000_000)\ntime.sleep(60)"


@contextlib.contextmanager
def running(code: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def wait_until(is_so: Callable[[], bool], patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def sampler_threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "vizsla-sampler"]


def test_a_sampled_program_leaves_a_profile_and_no_thread(tmp_path: Path) -> None:
    with Sampler(tmp_path, interval_ms=100) as sampler:
        wait_until(lambda: sampler.samples >= 3)
        sampler.start()  # again changes nothing
        assert len(sampler_threads()) == 1
    sampler.stop()
    assert not sampler_threads()
    samples = Profile(tmp_path).samples()
    assert len(samples) == sampler.samples >= 3
    assert samples.about["interval_ms"] == 100
    assert samples.about["processor"]
    assert samples.cpu.shape == (len(samples), samples.about["machine_cores"])
    assert {"memory", "tree_bytes", "own_bytes", "threads"} <= samples.columns.keys()
    assert samples.columns.keys() <= SAMPLED.keys()
    assert sampler.cpu_seconds > 0


def test_a_program_shorter_than_the_interval_has_one_sample(tmp_path: Path) -> None:
    with Sampler(tmp_path, interval_ms=60_000):
        pass
    samples = Profile(tmp_path).samples()
    assert len(samples) == 1
    assert samples.cpu.shape[1] == samples.about["machine_cores"]


def test_samples_come_at_the_interval(tmp_path: Path) -> None:
    with Sampler(tmp_path, interval_ms=200):
        time.sleep(2.5)
    assert 4 <= len(Profile(tmp_path).samples()) <= 14


@pytest.mark.parametrize("interval_ms", [0, 99, 60_001, -500])
def test_an_interval_out_of_range_is_refused(tmp_path: Path, interval_ms: int) -> None:
    with pytest.raises(SettingError, match=rf"{interval_ms} ms; it can be 100 to 60,000 ms"):
        Sampler(tmp_path, interval_ms=interval_ms)


def test_a_busy_loop_shows_in_the_use_of_the_tree(tmp_path: Path) -> None:
    with Sampler(tmp_path, interval_ms=250):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            pass
    assert Profile(tmp_path).samples().columns["tree_cpu"].max() > 30


def test_a_child_counts_with_its_memory_and_its_use(tmp_path: Path) -> None:
    with running(LARGE) as child, running(BUSY), Sampler(tmp_path, interval_ms=200) as sampler:
        wait_until(lambda: (_by_psutil(child.pid) or Seen(0, 0, 0, 0)).memory_bytes > 110_000_000)
        had = sampler.samples
        wait_until(lambda: sampler.samples > had + 40 or _sees(tmp_path, "tree_bytes", 110_000_000))
    columns = Profile(tmp_path).samples().columns
    assert (columns["tree_bytes"] - columns["own_bytes"]).max() > 110_000_000
    assert columns["processes"].max() >= 3
    assert columns["tree_cpu"].max() > 20


def _sees(run: Path, column: str, least: float) -> bool:
    columns = Profile(run).samples().columns
    return column in columns and (columns[column] - columns["own_bytes"]).max() > least


@pytest.mark.skipif(not Path("/proc/diskstats").exists(), reason="no /proc/diskstats here")
def test_what_is_written_to_disk_is_counted(tmp_path: Path) -> None:
    with Sampler(tmp_path, interval_ms=100) as sampler:
        wait_until(lambda: sampler.samples >= 1)
        with (tmp_path / "large").open("wb") as file:
            file.write(os.urandom(8_000_000))
            file.flush()
            os.fsync(file.fileno())
        had = sampler.samples
        wait_until(lambda: sampler.samples >= had + 2)
    columns = Profile(tmp_path).samples().columns
    if "write_bytes" not in columns or not columns["write_bytes"].any():
        pytest.skip("the files of this machine lie on no disk that it counts")
    assert columns["write_bytes"].max() > 1_000_000
    assert columns["write_ops"].max() > 0


def test_counters_that_are_not_to_be_had_are_named_once(tmp_path: Path) -> None:
    told: list[str] = []
    for _ in range(2):
        with Sampler(tmp_path, interval_ms=100, tell=told.append) as sampler:
            wait_until(lambda sampler=sampler: sampler.samples >= 2)  # type: ignore[misc]
    samples = Profile(tmp_path).samples()
    missing = samples.about["missing"]
    assert len(missing) == len(set(missing))
    assert bool(samples.gpus) != any(words.startswith("GPUs (") for words in missing)
    assert not told


def test_a_killed_child_does_not_end_sampling(tmp_path: Path) -> None:
    with running(LARGE) as child, Sampler(tmp_path, interval_ms=100, pid=child.pid) as sampler:
        wait_until(lambda: sampler.samples >= 3)
        child.send_signal(signal.SIGKILL)
        child.wait()
        had = sampler.samples
        wait_until(lambda: sampler.samples >= had + 3)
    samples = Profile(tmp_path).samples()
    assert samples.about["pid"] == child.pid
    of_child = samples.columns["own_bytes"]
    assert of_child[1] > 0
    assert of_child[-1] != of_child[-1]  # NaN: nobody is there any more
    assert samples.columns["memory"][-1] > 0


def test_a_sample_that_comes_late_does_not_end_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(tmp_path, interval_ms=100)
    wait = sampler._stop.wait

    def late(seconds: float) -> bool:  # so that the next one is due at once
        return wait(seconds + 0.09 * (sampler.samples in (2, 3, 4)))

    monkeypatch.setattr(sampler._stop, "wait", late)
    with sampler:
        wait_until(lambda: sampler.samples >= 8, patience_s=10)
    assert len(Profile(tmp_path).samples()) >= 8


def test_a_child_is_seen_as_soon_as_it_is_there_and_after_its_parent_has_gone() -> None:
    tree, sample = Tree(os.getpid()), {}
    tree.read(sample, 0.0)
    alone = sample["processes"]
    pause = f"{sys.executable} -c 'import time; time.sleep(60)'"
    with subprocess.Popen(["sh", "-c", f"{pause} & echo $!; sleep 60"], stdout=-1) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        time.sleep(0.3)  # longer than looking may have made the next look wait
        tree.read(sample, 0.1)
        assert sample["processes"] == alone + 3
        parent.kill()
        parent.wait()
        time.sleep(0.3)
        tree.read(sample, 0.1)
        assert orphan in tree._seen
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_work_of_children_that_came_and_went_is_counted() -> None:
    tree, sample = Tree(os.getpid()), {}
    tree.read({}, 0.0)
    before = os.times()
    subprocess.run([sys.executable, "-S", "-c", "sum(range(20_000_000))"], check=True)
    after = os.times()
    tree.read(sample, 1.0)
    assert after.children_user - before.children_user > 0.1
    assert sample["tree_cpu"] / 100 == pytest.approx(sum(after[:4]) - sum(before[:4]), abs=0.05)


def test_work_of_a_child_that_was_seen_is_counted_once() -> None:
    tree, samples = Tree(os.getpid()), [{}, {}]
    tree.read({}, 0.0)
    before = os.times()
    work = "sum(range(20_000_000)); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-S", "-c", work], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.3)  # longer than looking may have made the next look wait
        tree.read(samples[0], 1.0)
        child.communicate(b"\n")
    tree.read(samples[1], 1.0)
    real = sum(os.times()[:4]) - sum(before[:4])
    assert sum(one["tree_cpu"] for one in samples) / 100 == pytest.approx(real, abs=0.06)


def test_a_killed_program_leaves_a_readable_profile(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vizsla.profiling.sampler import Sampler\n"
        "Sampler(Path(sys.argv[1]), interval_ms=100).start(); time.sleep(60)"
    )
    program = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        wait_until(lambda: len(Profile(tmp_path).samples()) >= 5)
    finally:
        program.kill()
        program.wait()
    profile = Profile(tmp_path)
    before = len(profile.samples())
    assert profile.damaged == 0
    with Sampler(tmp_path, interval_ms=100):
        pass
    assert len(Profile(tmp_path).samples()) == before + 1


def test_a_line_that_a_kill_cut_off_is_not_glued_to_the_next(tmp_path: Path) -> None:
    file = tmp_path / "profile-algo-1.jsonl"
    file.write_text('{"kind":"about","interval_ms":100}\n{"kind":"sample","ti')
    with Sampler(tmp_path, interval_ms=100):
        pass
    profile = Profile(tmp_path)
    assert len(profile.samples()) == 1
    assert profile.damaged == 1


def test_where_nothing_can_be_written_it_is_told_once_and_the_program_goes_on(
    tmp_path: Path,
) -> None:
    told: list[str] = []
    with Sampler(tmp_path / "not there", interval_ms=100, tell=told.append):
        wait_until(lambda: not sampler_threads())
    assert len(told) == 1
    assert "sampling ended" in told[0]


def test_threads_of_torch_are_told_as_they_were_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 3))
    with Sampler(tmp_path, interval_ms=100):
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 2))
    assert Profile(tmp_path).samples().about["torch_threads"] == 2
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())  # in the midst of being imported
    with Sampler(tmp_path, interval_ms=100):
        pass
    assert "torch_threads" not in Profile(tmp_path).samples().about


def test_intervals_that_the_machine_slept_through_are_not_made_up_for() -> None:
    now = time.monotonic()
    assert _next_after(now + 0.1, 10.0) == now + 10.1
    assert _next_after(now - 1000, 10.0) >= now + 10


def test_a_fork_neither_waits_for_the_sampler_nor_writes_its_lines(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path, interval_ms=100)
    sampler._owner += 1  # as it looks from another process
    sampler.start().stop()
    assert sampler_threads()
    sampler._owner -= 1
    sampler.stop()
    assert not sampler_threads()


def test_lines_are_held_for_a_while_and_then_written_at_once(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines.jsonl")
    lines.append({"kind": "fact", "name": "one"})
    assert not (tmp_path / "lines.jsonl").exists()
    lines.close()
    lines.close()
    assert (tmp_path / "lines.jsonl").read_text() == '{"kind":"fact","name":"one"}\n'
    for number in range(1000):
        lines.append({"number": number})
    written = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert 500 < len(written) < 1001


def test_lines_that_cannot_be_written_are_given_up(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "gone" / "lines.jsonl")
    lines.append({"number": 1})
    with pytest.raises(StorageError):
        lines.flush()
    (tmp_path / "gone").mkdir()
    lines.append({"number": 2})
    lines.close()
    assert (tmp_path / "gone" / "lines.jsonl").read_text() == '{"number":2}\n'


def test_threads_may_write_to_one_file(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines.jsonl")
    writers = [
        threading.Thread(target=lambda: [lines.append({"number": at}) for at in range(500)])
        for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines.close()
    written = (tmp_path / "lines.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in written)
    assert len(written) == 2000


@pytest.mark.parametrize(
    ("environment", "node"),
    [
        ({}, "algo-1"),
        ({"SM_CURRENT_HOST": "algo-3", "GROUP_RANK": "0"}, "algo-3"),
        ({"GROUP_RANK": "1"}, "algo-2"),
        ({"NODE_RANK": "4"}, "algo-5"),
        ({"NODE_RANK": "none"}, "algo-1"),
        ({"SM_CURRENT_HOST": "../a b"}, "..-a-b"),
    ],
)
def test_nodes_are_called_as_sagemaker_and_torchrun_count(
    environment: dict[str, str], node: str
) -> None:
    assert node_here(environment) == node


def test_one_process_of_a_machine_samples() -> None:
    assert samples_here({})
    assert samples_here({"LOCAL_RANK": "0"})
    assert not samples_here({"LOCAL_RANK": "1"})


@pytest.mark.skipif(not ON_LINUX, reason="/proc is Linux's")
def test_proc_and_psutil_see_the_same_process() -> None:
    here, there = _by_proc(os.getpid()), _by_psutil(os.getpid())
    assert here is not None
    assert there is not None
    assert here.threads == there.threads
    assert here.memory_bytes == pytest.approx(there.memory_bytes, rel=0.2)
    assert here.cpu_s == pytest.approx(there.cpu_s, abs=1)


def test_a_process_that_got_the_number_of_another_is_not_taken_for_it() -> None:
    seen = [Seen(1.0, 50.0, 2, 1000), Seen(9.0, 51.0, 1, 500), Seen(9.0, 51.5, 1, 500)]
    tree = Tree(os.getpid(), lambda pid: seen.pop(0) if pid == os.getpid() else None)
    samples: list[dict[str, Any]] = [{}, {}, {}]
    for sample in samples:
        tree.read(sample, 1.0)
    assert [sample["tree_cpu"] for sample in samples] == [0, 0, 50]
    assert samples[1]["tree_bytes"] == 500


def core(whole: float, idle: float, waited: float, number: int = 0) -> CoreTime:
    return CoreTime(number, whole, idle, waited)


def test_use_of_cores_is_neither_negative_nor_absurd() -> None:
    readings = [
        [core(0, 0, 0)],
        [core(100, 20, 10)],
        [core(100, 20, 10)],  # nothing was counted
        [core(200, 15, 5)],  # counters went back a little
        [core(300, 15, 5), core(50, 0, 0, number=1)],  # a core was switched on
        [core(400, 115, 5), core(150, 0, 100, number=1)],
    ]
    cores = Cores(lambda: readings.pop(0))
    cores.missing = []
    samples: list[dict[str, Any]] = [{} for _ in readings]
    for sample in samples:
        cores.read(sample, 1.0)
    assert [sample.get("cpu") for sample in samples] == [None, [70], [0], [100], None, [0, 0]]
    assert [sample.get("iowait") for sample in samples] == [None, [10], [0], [0], None, [0, 100]]


def test_the_kernels_table_of_cores_is_understood(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 100 100\ncpu12 1 1 1 10 2\nintr 5 5 5\n"
    )
    assert _linux_core_times(tmp_path / "stat") == [(0, 72, 40, 5), (12, 15, 10, 2)]


def test_rates_leave_out_what_started_anew_or_came_or_went() -> None:
    rates = Rates()
    assert rates.of({"a": (10, 10)}, 0.0) is None
    assert rates.of({"a": (20, 14), "b": (1000, 1000)}, 2.0) == [5, 2]
    assert rates.of({"a": (0, 0), "b": (1001, 1002)}, 1.0) == [1, 2]
    assert rates.of({"c": (5, 5)}, 1.0) is None
    assert rates.of({}, 1.0) is None


def test_disks_beneath_others_are_counted_once(tmp_path: Path) -> None:
    for name, slaves in {"sda": (), "dm-0": ("sda2",), "loop0": (), "zram0": ()}.items():
        (tmp_path / name / "slaves").mkdir(parents=True)
        for slave in slaves:
            (tmp_path / name / "slaves" / slave).mkdir()
    line = " 8 0 {} 10 0 100 0 20 0 200 0 0 0 0 0 0 0\n"
    names = ("sda", "sda2", "dm-0", "loop0", "zram0")
    (tmp_path / "diskstats").write_text("".join(line.format(name) for name in names))
    counts = _linux_disks(tmp_path / "diskstats", tmp_path)
    assert counts() == {"sda": (10, 20, 51_200, 102_400)}


def test_interfaces_that_repeat_others_are_left_out(tmp_path: Path) -> None:
    network = Network(tmp_path)
    names = ("lo", "eth0", "docker0", "ifb0")
    assert network._choose(dict.fromkeys(names)) == {"eth0", "docker0", "ifb0"}
    (tmp_path / "eth0" / "device").mkdir(parents=True)
    assert network._choose(dict.fromkeys((*names, "veth1"))) == {"eth0"}


def test_heat_is_counted_from_the_first_sample(tmp_path: Path) -> None:
    counter = tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count"
    counter.parent.mkdir(parents=True)
    counter.write_text("7\n")
    heat = Heat(tmp_path)
    counter.write_text("9\n")
    sample: dict[str, Any] = {}
    heat.read(sample, 1.0)
    assert sample["throttled"] == 2


def test_power_of_packages_and_memory_is_added_up(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram"}

    def counted(microjoules: int) -> None:
        for zone, name in zones.items():
            (tmp_path / zone).mkdir(exist_ok=True)
            (tmp_path / zone / "name").write_text(name)
            (tmp_path / zone / "energy_uj").write_text(str(microjoules))

    assert Power(tmp_path).missing == ["power of the processor (RAPL cannot be read)"]
    counted(1_000_000)
    power = Power(tmp_path)
    power.read({}, 0.0)
    counted(11_000_000)
    sample: dict[str, Any] = {}
    power.read(sample, 2.0)
    assert sample == {"watts": 10}


def test_limits_of_control_groups_are_found(tmp_path: Path) -> None:
    (tmp_path / "groups").write_text("4:memory:/docker/abc\n3:cpu:/\n0::/user/slice\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("2000\n")
    (tmp_path / "user" / "slice").mkdir(parents=True)
    (tmp_path / "user" / "slice" / "memory.max").write_text("max\n")
    (tmp_path / "user" / "memory.max").write_text("1000\n")
    assert sorted(_memory_limits(tmp_path / "groups", tmp_path)) == [1000, 2000]
    assert list(_memory_limits(tmp_path / "none", tmp_path)) == []


class Flaky:
    """A source that fails where it is told to."""

    def __init__(self) -> None:
        self.missing: list[str] = []
        self.elapsed: list[float] = []
        self.fails = False

    def read(self, sample: dict[str, Any], seconds: float) -> None:
        if self.fails:
            raise RuntimeError("the counter is gone.")
        self.elapsed.append(seconds)


def test_a_reading_that_fails_is_left_out_and_the_next_knows_the_time() -> None:
    flaky = Flaky()
    guarded = Guarded("things", lambda: flaky)
    guarded.read({})
    flaky.fails = True
    time.sleep(0.05)
    guarded.read({})
    flaky.fails = False
    time.sleep(0.05)
    guarded.read({})
    assert flaky.elapsed[0] == 0
    assert flaky.elapsed[1] >= 0.1
    assert not guarded.missing


def test_a_source_that_keeps_failing_is_given_up_and_named() -> None:
    flaky = Flaky()
    flaky.fails = True
    guarded = Guarded("things", lambda: flaky)
    for _ in range(50):
        guarded.read({})
    assert guarded.missing == ["things (the counter is gone)"]


class StandInNvml:
    """As much of pynvml as is used, for cards that know less and less."""

    def __init__(self, cards: int = 3) -> None:
        self.cards, self.is_open = cards, False

    def nvmlInit(self) -> None:  # noqa: N802
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, at: int) -> int:  # noqa: N802
        return at

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetUUID(self, card: int) -> bytes:  # noqa: N802
        return f"GPU-{card}{card}{card}-x".encode()

    def nvmlDeviceGetName(self, card: int) -> bytes:  # noqa: N802
        return b"Stand-in 1000"

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=1000, used=250)

    def nvmlDeviceGetUtilizationRates(self, card: int) -> Any:  # noqa: N802
        if card == 2:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=10 * card)

    def nvmlDeviceGetPowerUsage(self, card: int) -> int:  # noqa: N802
        if card > 0:
            raise RuntimeError("Not Supported")
        return 70_500

    def nvmlDeviceGetTemperature(self, card: int, sensor: int) -> int:  # noqa: N802
        return 60 + card

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: int) -> int:  # noqa: N802
        return (0x1 | 0x4, 0x20, 0x40)[card]


def test_cards_tell_what_they_know() -> None:
    nvml = StandInNvml()
    gpus = Gpus(nvml, visible="0,1,2")
    sample: dict[str, Any] = {}
    gpus.read(sample, 1.0)
    memory = {"memory": 25, "memory_bytes": 250}
    assert sample["gpus"] == [
        {"utilization": 0, **memory, "watts": 70.5, "celsius": 60, "throttled": 0},
        {"utilization": 10, **memory, "celsius": 61, "throttled": 1},
        {**memory, "celsius": 62, "throttled": 1},
    ]
    assert gpus.describe()[0] == {"name": "Stand-in 1000", "memory_bytes": 1000}
    gpus.close()
    gpus.close()
    assert not nvml.is_open


@pytest.mark.parametrize(
    ("visible", "degrees"),
    [
        ("1", [61]),
        ("2,0", [62, 60]),
        (" 1 , 7,0", [61]),
        ("GPU-222,GPU-0", [62, 60]),
        ("MIG-abc", [62]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_cards_that_cuda_does_not_show_are_not_sampled(visible: str, degrees: list[int]) -> None:
    gpus = Gpus(StandInNvml(), visible=visible)
    sample: dict[str, Any] = {}
    gpus.read(sample, 1.0)
    assert [card["celsius"] for card in sample.get("gpus", [])] == degrees
    assert gpus.missing == ([] if degrees else ["GPUs (CUDA_VISIBLE_DEVICES hides them)"])


def test_without_nvml_the_reason_is_told() -> None:
    class Broken:
        def nvmlInit(self) -> None:  # noqa: N802
            raise OSError("Driver/library version mismatch")

    gpus = Gpus(Broken(), visible="0")
    assert gpus.missing == ["GPUs (NVML: Driver/library version mismatch)"]
    assert gpus.describe() == []
    gpus.close()
