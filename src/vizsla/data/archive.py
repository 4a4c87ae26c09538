"""Unpacking archives of pictures, once, and safely.

An archive is somebody else's bytes: a member that would land outside the folder, a link, a
device, or more data than the archive can plausibly hold is refused before or while it is
written. What is unpacked lies in the user's cache, keyed by the archive's place, size and time,
and appears there by rename, so that a second training starts at once and a kill leaves no half.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from vizsla.errors import DataError, StorageError
from vizsla.places import cache_folder

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

# Photographs hardly compress; synthetic ones do. Far beyond both is an attack or an accident.
_LARGEST_RATIO = 200
_ALWAYS_ALLOWED_BYTES = 1 << 30
_KEEP_FREE_BYTES = 256 << 20


_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError,
    UnicodeDecodeError, NotImplementedError,
)  # fmt: skip


class Member(NamedTuple):
    """One regular file of an archive and how to open it."""

    name: str
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, keep: frozenset[str], into: Path | None = None) -> Path:
    """The folder with the files of `archive` whose suffix is in `keep`, unpacking if needed.

    `into` replaces the cache folder. Raises `DataError` for an archive that is damaged or
    unsafe, `StorageError` where the disk is full.
    """
    facts = archive.stat()
    key = hashlib.sha256(
        f"{archive.resolve()}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()
    ).hexdigest()[:20]
    target = (into or cache_folder() / "archives") / f"{key}-{archive.name.split('.')[0][:40]}"
    if target.exists():
        with contextlib.suppress(OSError):
            os.utime(target)  # when it was last used
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target.parent) as scratch:
            folder = Path(scratch) / "files"
            folder.mkdir()
            _unpack_into(archive, folder, keep, _byte_budget(facts.st_size, target.parent))
            try:
                folder.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster: its copy will do
                    raise
    except DataError:
        raise
    except _DAMAGE as error:
        raise _damaged(archive, error) from None
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own complaints, not the system's
            raise _damaged(archive, error) from None
        raise StorageError(
            f"Unpacking {archive} into {target.parent} failed: {error.strerror or error}. Free "
            "some space, or name another place with VIZSLA_CACHE."
        ) from None
    return target


def _byte_budget(archive_bytes: int, folder: Path) -> int:
    plausible = max(_ALWAYS_ALLOWED_BYTES, archive_bytes * _LARGEST_RATIO)
    return min(plausible, shutil.disk_usage(folder).free - _KEEP_FREE_BYTES)


def _unpack_into(archive: Path, folder: Path, keep: frozenset[str], budget: int) -> None:
    with _members(archive) as members:
        for member in members:
            target = folder / _safe_name(member.name, archive)
            if target.suffix.lower() not in keep:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("wb") as sink:
                while chunk := source.read(1 << 20):
                    budget -= len(chunk)
                    if budget < 0:
                        raise DataError(
                            f"The archive {archive} unpacks to more than its "
                            f"{archive.stat().st_size:,} bytes can plausibly hold or the disk has "
                            "free; unpack it yourself and give the folder."
                        )
                    sink.write(chunk)


def _safe_name(name: str, archive: Path) -> PurePosixPath:
    """The member's path below the target folder; anything that could leave it is refused."""
    path = PurePosixPath(name.replace("\\", "/"))
    outside = path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]
    if outside or "\0" in name or not path.parts:
        raise DataError(
            f"The archive {archive} holds {name!r}, which would be written outside its folder; "
            "refused. Make the archive anew with relative paths."
        )
    return path


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(file, archive)
    else:
        with tarfile.open(archive, tarinfo=_CheckedTarInfo) as file:
            yield _tar_members(file, archive)


def _zip_members(file: zipfile.ZipFile, archive: Path) -> Iterator[Member]:
    for info in file.infolist():
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise _link_refused(archive, info.filename)
        if info.flag_bits & 1:
            raise DataError(f"The archive {archive} is encrypted; unpack it yourself first.")
        yield Member(info.filename, lambda info=info: file.open(info))  # type: ignore[misc]


def _tar_members(file: tarfile.TarFile, archive: Path) -> Iterator[Member]:
    for info in file:
        if info.isdir():
            continue
        if not info.isreg():
            raise _link_refused(archive, info.name)
        yield Member(info.name, lambda info=info: _extracted(file, info))  # type: ignore[misc]


class _CheckedTarInfo(tarfile.TarInfo):
    """A broken header in the middle is an error; tarfile itself takes it for the end, and the
    pictures behind it would be missing without a word."""

    @classmethod
    def fromtarfile(cls, file: tarfile.TarFile) -> _CheckedTarInfo:
        try:
            return super().fromtarfile(file)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _extracted(file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = file.extractfile(info)
    assert stream is not None  # regular files always have one
    return stream


def _damaged(archive: Path, error: Exception) -> DataError:
    return DataError(f"The archive {archive} is damaged or not supported: {error}.")


def _link_refused(archive: Path, name: str) -> DataError:
    return DataError(
        f"The archive {archive} holds {name!r}, which is a link or a device, not a file; "
        "refused. Make the archive anew with the files themselves."
    )
