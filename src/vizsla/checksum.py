"""The SHA-256 of a file, by which weights and a bundle's files are known."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def crc_of(text: str) -> int:
    """A number of 32 bits that a text is known by, where nothing depends on collisions."""
    return zlib.crc32(text.encode())
