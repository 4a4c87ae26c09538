"""Records are found by their key, or made again: never wrong, whatever happened to the files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data.record_store import RecordStore
from vizsla.errors import StorageError


def never() -> bool:
    return False


def key(number: int) -> bytes:
    return (number + 1).to_bytes(16, "big")


def record(number: int, length: int = 40) -> np.ndarray:
    """Bytes that tell their number in every place."""
    return np.full(length, number % 251, np.uint8)


def filled(folder: Path, count: int) -> RecordStore:
    store = RecordStore(folder, "test")
    with store.writing(never) as mine:
        assert mine
        for number in range(count):
            store.append([key(number)], record(number)[None])
    return store


def read(store: RecordStore, number: int) -> np.ndarray | None:
    offset = int(store.find([key(number)])[0])
    return None if offset < 0 else store.mapped()[offset : offset + 40]


def test_what_was_added_is_found_by_every_process(tmp_path: Path) -> None:
    filled(tmp_path / "store", 5)
    store = RecordStore(tmp_path / "store", "test")
    for number in range(5):
        assert np.array_equal(read(store, number), record(number))
    assert store.find([key(5), b""]).tolist() == [-1, -1]


def test_there_is_nothing_before_the_first_writer(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "store", "test")
    assert store.find([key(0)]).tolist() == [-1]
    assert len(store.mapped()) == 0
    assert not (tmp_path / "store").exists()


def test_records_may_differ_in_length(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "store", "test")
    with store.writing(never):
        store.append([key(1)], record(1, 7)[None])
        store.append([key(2)], record(2, 90)[None])
    offsets = store.find([key(1), key(2)])
    assert offsets.tolist() == [0, 7]


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(["index", "records"]),
    keep=st.floats(0, 1),
    junk=st.binary(max_size=70),
)
def test_files_cut_off_anywhere_give_right_records_or_none(
    tmp_path_factory: pytest.TempPathFactory, name: str, keep: float, junk: bytes
) -> None:
    folder = tmp_path_factory.mktemp("cut") / "store"
    filled(folder, 6)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)] + junk)
    store = RecordStore(folder, "test")
    for number in range(6):
        found = read(store, number)
        assert found is None or np.array_equal(found, record(number))
    again = filled(folder, 6)
    for number in range(6):
        assert np.array_equal(read(again, number), record(number))


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(["index", "records"]), at=st.integers(0, 6 * 32 - 1), bit=st.integers(0, 7)
)
def test_a_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flipped") / "store"
    filled(folder, 6)
    content = bytearray((folder / name).read_bytes())
    content[at] ^= 1 << bit
    (folder / name).write_bytes(content)
    store = RecordStore(folder, "test")
    found = [read(store, number) for number in range(6)]
    # A flipped bit of a key may make it that of a neighbour, and hide that one too.
    assert sum(one is None for one in found) in (1, 2)
    for number, one in enumerate(found):
        assert one is None or np.array_equal(one, record(number))


@pytest.mark.parametrize("field", [16, 24])  # the offset and the length of the last entry
def test_a_wrong_place_or_length_spoils_no_later_record(tmp_path: Path, field: int) -> None:
    store = RecordStore(tmp_path / "store", "test", record_bytes=40)
    with store.writing(never):
        for number in range(3):
            store.append([key(number)], record(number)[None])
    content = bytearray((tmp_path / "store" / "index").read_bytes())
    content[2 * 32 + field] -= 4
    (tmp_path / "store" / "index").write_bytes(content)
    with store.writing(never):
        store.append([key(3)], record(3)[None])
    offsets = store.find([key(number) for number in range(4)])
    assert (offsets >= 0).tolist() == [True, True, False, True]
    assert (offsets[[0, 1, 3]] % 40 == 0).all()
    assert np.array_equal(read(store, 3), record(3))


def test_what_is_mapped_stays_when_the_store_is_cleared(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 3)
    offsets = store.find([key(number) for number in range(3)])
    shutil.rmtree(tmp_path / "store")
    filled(tmp_path / "store", 1)
    assert [int(store.mapped()[offset]) for offset in offsets] == [0, 1, 2]


def test_damage_is_counted_and_cured_by_writing_again(tmp_path: Path) -> None:
    filled(tmp_path / "store", 4)
    with (tmp_path / "store" / "records").open("r+b") as file:
        file.seek(45)
        file.write(b"\xff")
    store = RecordStore(tmp_path / "store", "test")
    assert (store.find([key(number) for number in range(4)]) < 0).tolist() == [
        False, True, False, False,
    ]  # fmt: skip
    assert store.damaged == 1
    with store.writing(never):
        store.append([key(1)], record(1)[None])
    assert np.array_equal(read(store, 1), record(1))


FILLING = """
import sys
import numpy as np
from pathlib import Path
from vizsla.data.record_store import RecordStore
store = RecordStore(Path(sys.argv[1]), "test")
with store.writing(lambda: False):
    for number in range(int(sys.argv[2])):
        key = (number + 1).to_bytes(16, "big")
        if store.find([key])[0] < 0:
            store.append([key], np.full((1, 40), number % 251, np.uint8))
            print(number, flush=True)
"""


def filling(folder: Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILLING, str(folder), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_do_the_work_once(tmp_path: Path) -> None:
    with filling(tmp_path / "store", 60) as one, filling(tmp_path / "store", 60) as two:
        done = [*one.communicate()[0].split(), *two.communicate()[0].split()]
    assert sorted(map(int, done)) == list(range(60))
    store = RecordStore(tmp_path / "store", "test")
    assert all(np.array_equal(read(store, number), record(number)) for number in range(60))


def test_a_killed_writer_leaves_what_it_had_finished(tmp_path: Path) -> None:
    with filling(tmp_path / "store", 100_000) as child:
        assert child.stdout is not None
        for _ in range(20):
            child.stdout.readline()
        os.kill(child.pid, signal.SIGKILL)
    store = RecordStore(tmp_path / "store", "test")
    assert all(np.array_equal(read(store, number), record(number)) for number in range(20))
    with store.writing(never) as mine:  # the lock went with the process
        assert mine


def test_who_waits_for_another_writer_can_be_stopped(tmp_path: Path) -> None:
    store, other = (RecordStore(tmp_path / "store", "test") for _ in range(2))
    stop = threading.Event()
    with store.writing(never):
        threading.Timer(0.1, stop.set).start()
        started = time.monotonic()
        with other.writing(stop.is_set) as mine:
            assert not mine
    assert 0.1 <= time.monotonic() - started < 10


def test_a_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = RecordStore(tmp_path / "file" / "store", "test")
    with (
        pytest.raises(StorageError, match="could not be written.*VIZSLA_CACHE"),
        store.writing(never),
    ):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 3)
    with store.writing(never):
        (tmp_path / "store" / "index").rename(tmp_path / "index")
        (tmp_path / "store" / "index").symlink_to("/dev/full")
        with pytest.raises(StorageError, match="No space left on device"):
            store.append([key(3)], record(3)[None])
        (tmp_path / "store" / "index").unlink()
        (tmp_path / "index").rename(tmp_path / "store" / "index")
    with store.writing(never):
        store.append([key(4)], record(4)[None])
    assert read(store, 3) is None
    for number in (0, 1, 2, 4):
        assert np.array_equal(read(store, number), record(number))
