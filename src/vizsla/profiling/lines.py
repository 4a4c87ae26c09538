"""Appending JSON lines to a file a few at a time: by samples every half second, by steps more
often than a file should be opened.

What is held is written when seconds have gone by or much has come together, each time in one
write. A kill loses what was held, and at worst cuts off the last line, which readers skip and the
next writer does not glue its own to.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from vizsla.runs.files import append_lines

_HOLD_S, _HOLD_LINES = 2.0, 256


class Lines:
    """One file of JSON lines. Any thread may append.

    `append`, `flush` and `close` raise `StorageError` where the file cannot be written, in the
    thread that called them, and have then given up what was held: memory does not grow while a
    disk is full, and a later append tries anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._lock = threading.Lock()

    def append(self, record: dict[str, Any]) -> None:
        """Take a line; from now on it belongs to this object."""
        with self._lock:
            self._held.append(record)
            waited = time.monotonic() - self._flushed
            if waited >= _HOLD_S or len(self._held) >= _HOLD_LINES:
                self._write()

    def flush(self) -> None:
        """Write what is held."""
        with self._lock:
            self._write()

    def close(self) -> None:
        """Write what is held. No file stays open between writes, so this may come twice."""
        self.flush()

    def _write(self) -> None:
        held, self._held = self._held, []
        self._flushed = time.monotonic()
        if held:
            append_lines(self._path, held)
