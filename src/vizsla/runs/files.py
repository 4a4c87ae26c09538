"""Writing files so that a crash, a kill or a full disk leaves the old content or the new.

Whole files appear by rename; JSON lines are appended, one writer each, and a line cut off by a
kill is skipped by readers and never glued to the next.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vizsla.errors import StorageError

_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def write_whole(path: Path, write: Callable[[IO[bytes]], object], durable: bool = True) -> None:
    """Write a file through `write`, then put it in place of the old one in one step. Unless
    `durable`, it may be lost where the machine itself fails within seconds.

    Raises `StorageError` where that fails; the old file then stands untouched.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with scratch.open("wb") as file:
                write(file)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise storage_error(path, error) from error


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text in UTF-8."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """`write_whole` for one JSON document."""
    write_text(path, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def append_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Append JSON lines in one write. Raises `StorageError` on a full disk."""
    append_text(path, json_lines(records))


def json_lines(records: list[dict[str, Any]]) -> str:
    """A line of JSON for each record."""
    return "".join(
        json.dumps(record, separators=(",", ":"), default=plain_number) + "\n" for record in records
    )


def append_text(path: Path, text: str) -> None:
    """Append whole lines in one write. Raises `StorageError` on a full disk."""
    try:
        with path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a line that a kill cut off
                    text = "\n" + text
            file.write(text.encode())
    except OSError as error:
        raise storage_error(path, error) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none if there is no file. Safe while it is written."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if (record := _record(line)) is not None:
                yield record


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's object; None of one that is damaged, cut off by a kill, or still being written."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def plain_number(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's own, as JSON lines are written. Raises `TypeError`
    for anything else."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON: numbers, texts, lists and mappings are")


def storage_error(path: Path, error: Exception) -> StorageError:
    """The error as a sentence with the way out."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    refused = isinstance(error, OSError) and error.errno in _REFUSALS
    cure = (
        "choose another place or make this one writable"
        if refused
        else "free some space and go on with vizsla train --resume"
    )
    return StorageError(
        f"{path} could not be written: {why.strip().rstrip('.')}. What was saved before is "
        f"untouched; {cure}."
    )
