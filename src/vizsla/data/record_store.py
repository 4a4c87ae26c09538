"""Records on disk, each found by a key: the file format of the cache.

    store.json   what the records are, for people; its time is when the store was last used
    index        32 bytes a record: key, offset, length, CRC-32 of these and of the record
    records      the records, one after the other

Both files only grow. A record counts once its index entry is whole, and is read only if its
checksum agrees, so that neither a kill nor a damaged disk yields wrong numbers: what is missing
or wrong is made again. One process writes at a time; readers need no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from vizsla.data.cache import FACTS_FILE, in_words, store_lock
from vizsla.errors import StorageError

KEY_BYTES = 16
_ENTRY = np.dtype(
    [("key", f"V{KEY_BYTES}"), ("offset", "<u8"), ("length", "<u4"), ("checksum", "<u4")]
)
ENTRY_BYTES = _ENTRY.itemsize
_POLL_S = 0.2
_KEEP_FREE_BYTES = 256 << 20


class RecordStore:
    """The records in `folder`, which appears with the first writer.

    `about` tells people what they are. With `record_bytes` all are of that length, and begin at
    multiples of it. Objects of several processes may share a folder.
    """

    def __init__(self, folder: Path, about: str, record_bytes: int | None = None) -> None:
        self.folder = folder
        self.about = about
        self._record_bytes = record_bytes
        self._records: NDArray[np.uint8] = np.empty(0, np.uint8)
        self.damaged = 0  # records whose checksum was wrong when they were last looked for

    def __getstate__(self) -> dict[str, object]:
        """Without the map, which would travel as a copy."""
        return {**self.__dict__, "_records": np.empty(0, np.uint8)}

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Where in `mapped` each key's record begins; -1 where there is none that is sound, and
        for the empty key."""
        index = self._index()
        # What is verified is what will be read, whatever becomes of the file.
        self._records = self._map()
        index = index[index["offset"] <= len(self._records)]
        wanted = _newest(index, keys)
        used = np.unique(wanted[wanted >= 0])
        sound = self._sound(index[used])
        self.damaged = max(self.damaged, int((~sound).sum()))
        offsets = np.full(len(index) + 1, -1, np.int64)  # the last is for what was not found
        offsets[used[sound]] = index["offset"][used[sound]]
        with contextlib.suppress(OSError):
            os.utime(self.folder / FACTS_FILE)
        return offsets[wanted]

    def mapped(self) -> NDArray[np.uint8]:
        """The records as they were when `find` last looked, mapped into memory."""
        return self._records

    def keep_only(self, keys: Sequence[bytes]) -> None:
        """Drop all records but those of `keys`. For the writer alone; whoever has the old ones
        mapped keeps them. Raises `StorageError` where the folder cannot be written."""
        offsets = self.find(keys)
        index = self._index()
        if len(index) == 0:
            return
        kept = index[np.isin(index["offset"], offsets[offsets >= 0])]
        try:
            for name in ("records", "index"):
                (self.folder / name).rename(self.folder / f"{name}.old")
            for entry in kept:
                start, end = int(entry["offset"]), int(entry["offset"]) + int(entry["length"])
                self.append([entry["key"].tobytes()], self._records[start:end][None])
        except OSError as error:
            raise self._storage_error(error) from error
        self._remove_old()

    def _remove_old(self) -> None:
        for name in ("records", "index"):
            (self.folder / f"{name}.old").unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(
        self, stopped: Callable[[], bool], waiting: Callable[[], None] = lambda: None
    ) -> Iterator[bool]:
        """Be the one writer, waiting for another to end; False if `stopped` said so meanwhile.
        `waiting` is called once if there is another.

        Raises `StorageError` where the folder cannot be written.
        """
        lock, told = store_lock(self.folder), False
        while True:
            try:
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
                break
            except Timeout:
                if stopped():
                    yield False
                    return
                if not told:
                    waiting()
                told = True
                time.sleep(_POLL_S)
            except OSError as error:
                raise self._storage_error(error) from error
        try:
            self._prepare()
            yield True
        finally:
            lock.release()

    def append(self, keys: Sequence[bytes], records: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Add `records` (count, bytes each) under `keys`; where they begin. For the writer alone.

        Raises `StorageError` on a full disk; what was added before stays.
        """
        entries = np.zeros(len(keys), _ENTRY)
        entries["key"] = np.frombuffer(b"".join(keys), f"V{KEY_BYTES}")
        entries["length"] = records.shape[1]
        try:
            with (self.folder / "records").open("ab") as file:
                # A writer that was killed may have left a part of a record.
                file.write(bytes(-file.tell() % (self._record_bytes or 1)))
                start = file.tell()
                file.write(np.ascontiguousarray(records).data)
            entries["offset"] = start + np.arange(len(keys)) * records.shape[1]
            entries["checksum"] = [
                zlib.crc32(record, described)
                for record, described in zip(
                    np.ascontiguousarray(records), _described(entries), strict=True
                )
            ]
            with (self.folder / "index").open("ab") as file:
                file.write(entries.tobytes())
        except OSError as error:
            raise self._storage_error(error) from error
        offsets: NDArray[np.int64] = entries["offset"].astype(np.int64)
        return offsets

    def check_space(self, needed_bytes: int) -> None:
        """Raise `StorageError` if the disk has clearly less than `needed_bytes` free."""
        folder = next(path for path in self.folder.parents if path.exists())
        free = shutil.disk_usage(folder).free - _KEEP_FREE_BYTES
        if free < needed_bytes:
            raise StorageError(
                f"The cache {self.folder.parent} needs {in_words(needed_bytes)} and its disk has "
                f"{in_words(max(free, 0))} to spare. Free some space, or name another "
                "place with VIZSLA_CACHE."
            )

    def _index(self) -> NDArray[Any]:
        """The whole entries whose records are whole."""
        try:
            raw = (self.folder / "index").read_bytes()
            held = (self.folder / "records").stat().st_size
        except OSError:
            return np.empty(0, _ENTRY)
        index: NDArray[Any] = np.frombuffer(
            raw[: len(raw) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY
        )
        # Both, since a damaged offset may be so large that the sum begins again at zero.
        possible = (index["offset"] <= held) & (index["offset"] + index["length"] <= held)
        if self._record_bytes is not None:
            possible &= index["length"] == self._record_bytes
            possible &= index["offset"] % self._record_bytes == 0
        within: NDArray[Any] = index[possible]
        return within

    def _map(self) -> NDArray[np.uint8]:
        path = self.folder / "records"
        try:
            return np.memmap(path, np.uint8, mode="c")  # what is written to it stays private
        except (OSError, ValueError):  # there is none, or it is empty
            return np.empty(0, np.uint8)

    def _sound(self, entries: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each entry's record has the checksum that was written with it."""

        records = self._records.data

        def agrees(start: int, length: int, described: int, checksum: int) -> bool:
            return zlib.crc32(records[start : start + length], described) == checksum

        columns = [entries[name].tolist() for name in ("offset", "length", "checksum")]
        columns.insert(2, _described(entries))
        # Long records are worth threads: the checksum is computed without the interpreter's lock.
        threads = 4 if len(entries) and int(entries["length"].max()) > 1 << 16 else 1
        with ThreadPoolExecutor(threads) as pool:
            checked = map(agrees, *columns) if threads == 1 else pool.map(agrees, *columns)
            return np.fromiter(checked, bool, len(entries))

    def _prepare(self) -> None:
        """Make the folder, and cut off what a writer that was killed left half done."""
        try:
            self.folder.mkdir(exist_ok=True)
            facts = json.dumps({"about": self.about}, ensure_ascii=False)
            (self.folder / FACTS_FILE).write_text(facts + "\n", encoding="utf-8")
            self._remove_old()
            with (self.folder / "index").open("ab") as file:
                file.truncate(file.tell() // ENTRY_BYTES * ENTRY_BYTES)
        except OSError as error:
            raise self._storage_error(error) from error

    def _storage_error(self, error: OSError) -> StorageError:
        return StorageError(
            f"The cache {self.folder.parent} could not be written: {error.strerror or error}. Free "
            "some space, or name another place with VIZSLA_CACHE."
        )


def _newest(index: NDArray[Any], keys: Sequence[bytes]) -> NDArray[np.int64]:
    """The last entry of each key, -1 where there is none."""
    if len(index) == 0:
        return np.full(len(keys), -1, np.int64)
    held = np.ascontiguousarray(index["key"]).view(f"S{KEY_BYTES}")
    order = np.argsort(held, kind="stable")  # of equal keys the last written stays last
    wanted = np.array(keys, f"S{KEY_BYTES}")
    at = np.searchsorted(held[order], wanted, side="right") - 1
    found = order[np.maximum(at, 0)]
    return np.where((at >= 0) & (held[found] == wanted) & (wanted != b""), found, -1)


def _described(entries: NDArray[Any]) -> list[int]:
    """The checksum of each entry's other fields, with which that of its record begins."""
    raw, before = entries.tobytes(), ENTRY_BYTES - _ENTRY["checksum"].itemsize
    return [zlib.crc32(raw[at : at + before]) for at in range(0, len(raw), ENTRY_BYTES)]
