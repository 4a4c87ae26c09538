"""The cache folder: everything in it can be made again, and it stays within a budget.

    features/      outputs of frozen layers
    images/        decoded, resized pictures
    archives/      unpacked archives
    engines.json   which engine was fastest for which network in training
    serving/       the same for each network that was served

Features and images are what grows. They lie in stores (a folder each), and when a new store
needs room, those that were not used for the longest time go first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from vizsla.places import cache_folder

GROWING = ("features", "images")
KINDS = (*GROWING, "archives")
FACTS_FILE = "store.json"


@dataclass(frozen=True)
class CacheEntry:
    """A store or unpacked archive. `used` is when it was last read, in seconds since the
    epoch; `about` says in words what it holds."""

    kind: str
    path: Path
    bytes: int
    used: float
    about: str


def entries(kinds: tuple[str, ...] = KINDS) -> list[CacheEntry]:
    """What the cache holds, most recently used first."""
    found = []
    for kind in kinds:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in (cache_folder() / kind).iterdir():
                if not path.name.startswith(".") and path.suffix not in (".lock", ".users"):
                    with contextlib.suppress(FileNotFoundError):  # another process clears it
                        found.append(_entry(kind, path))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def _entry(kind: str, path: Path) -> CacheEntry:
    used, about = path.stat().st_mtime, path.name
    if kind in GROWING:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            used = (path / FACTS_FILE).stat().st_mtime
            about = str(json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))["about"])
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return CacheEntry(kind, path, size, used, about)


def clear(older_than_s: float = 0.0) -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Remove what was not used for `older_than_s` seconds; what went, and what is in use."""
    gone: list[CacheEntry] = []
    busy: list[CacheEntry] = []
    before = time.time() - older_than_s
    for entry in entries():
        if entry.used <= before or not older_than_s:
            (gone if remove(entry) else busy).append(entry)
    if not older_than_s:
        with contextlib.suppress(OSError):
            (cache_folder() / "engines.json").unlink()
        shutil.rmtree(cache_folder() / "serving", ignore_errors=True)
    return gone, busy


def remove(entry: CacheEntry) -> bool:
    """Remove an entry; False where a process is writing it or reading its pictures."""
    if entry.kind == "archives":
        if _has_users(entry.path):
            return False
        shutil.rmtree(entry.path, ignore_errors=True)
        shutil.rmtree(_users(entry.path), ignore_errors=True)
        return not entry.path.exists()
    try:
        with store_lock(entry.path).acquire(timeout=0):
            shutil.rmtree(entry.path, ignore_errors=True)
    except (Timeout, OSError):
        return False
    return not entry.path.exists()


def in_words(count: float) -> str:
    """Bytes in the unit that suits, of 1000 each."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def store_lock(store: Path) -> FileLock:
    """The lock of a store's one writer. It lies beside the store, so that it outlives it."""
    return FileLock(store.with_name(store.name + ".lock"))


def make_room(store: Path, needed_bytes: int, budget_bytes: float) -> bool:
    """Whether the stores, with `needed_bytes` more in `store`, keep to the budget; those that
    were used longest ago are removed for it, but never `store` itself."""
    held = entries(GROWING)
    own = sum(entry.bytes for entry in held if entry.path == store)
    if own + needed_bytes > budget_bytes:
        return False
    surplus = sum(entry.bytes for entry in held) + needed_bytes - budget_bytes
    if surplus > sum(entry.bytes for entry in held if entry.path != store):
        return False
    for entry in reversed(held):
        if surplus <= 0:
            break
        if entry.path != store and remove(entry):
            surplus -= entry.bytes
    return surplus <= 0


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """While inside, `clear` leaves the unpacked archive alone that `folder` lies in, if any."""
    archives = cache_folder().resolve() / "archives"
    if not folder.resolve().is_relative_to(archives) or folder.resolve() == archives:
        yield
        return
    mark = _users(archives / folder.resolve().relative_to(archives).parts[0]) / str(os.getpid())
    with contextlib.suppress(OSError):  # a cache that cannot be written cannot be cleared either
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
            mark.parent.rmdir()


def _users(archive_folder: Path) -> Path:
    return archive_folder.with_name(archive_folder.name + ".users")


def _has_users(archive_folder: Path) -> bool:
    marks = _users(archive_folder)
    return marks.is_dir() and any(
        mark.name.isdecimal() and psutil.pid_exists(int(mark.name)) for mark in marks.iterdir()
    )
