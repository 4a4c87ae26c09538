"""The exception tree. Every error that a person can cause or cure is one of these.

    VizslaError
    ├── InputError (ValueError)        wrong usage or input: exit code 2
    │   ├── SettingError               a setting out of range, misspelt or contradictory
    │   ├── DataError                  a data set that cannot be trained or evaluated on
    │   ├── PictureError               one picture that cannot be decoded
    │   ├── ModelError                 an unknown architecture, or weights that do not fit
    │   ├── RunError                   a run folder that is missing, busy or of another version
    │   ├── BundleError                a bundle that is missing, damaged or of another version
    │   ├── StorageError (OSError)     a disk that is full or a folder that cannot be written
    │   └── DependencyError (ImportError)  an optional package that is not installed
    ├── WorkError (RuntimeError)       the input was fine and the work failed: exit code 1
    └── Interrupted                    stopped by a signal, after saving: exit code 128 + signal

A message is one sentence or two: what is wrong, the value, where, the way out. The command line
alone turns these into exit codes; anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VizslaError(Exception):
    """Base of every error that vizsla raises on purpose."""


class InputError(VizslaError, ValueError):
    """The caller gave something that cannot be used."""


class SettingError(InputError):
    """A setting is out of range, misspelt, or contradicts another."""


class DataError(InputError):
    """The data set as a whole cannot be used."""


class PictureError(InputError):
    """One picture cannot be decoded. `code` says why in a word, as the server's answers do:
    not_a_picture, broken_picture or picture_too_large."""

    def __init__(self, message: str, code: str = "broken_picture") -> None:
        super().__init__(message)
        self.code = code


class ModelError(InputError):
    """An architecture is unknown, or weights do not fit it."""


class RunError(InputError):
    """A run folder is missing, incomplete, busy, or written by another version."""


class BundleError(InputError):
    """A bundle is missing, damaged, or written by another version."""


class StorageError(InputError, OSError):
    """A file could not be written: a full disk, or a folder without permission."""


class DependencyError(InputError, ImportError):
    """An optional package is needed and not installed."""


class WorkError(VizslaError, RuntimeError):
    """The input was fine and the work failed all the same."""


class Interrupted(VizslaError):
    """A signal asked training to stop; the step was finished and a checkpoint written."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause that offers the known names closest to `name`, or an empty string.

    >>> nearest("resnet5O", ["resnet50", "vgg16"])
    ' Did you mean resnet50?'
    """
    close = difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f" Did you mean {', '.join(close)}?" if close else ""
