"""A study is a folder. This file knows its layout, makes it, locks it, writes and reads it.

study.toml        data, base recipe, search space, how it searches; versions
journal.log       Optuna's own record, unless the study has a storage elsewhere
trials/0000/ …    a run folder a trial
screening/        a run folder a model that was probed, and screening.json
footprints/       size and speed of networks, where a study asks for them
logs/             what the processes that train wrote besides
findings.jsonl    what rules noticed
leaderboard.csv   every trial with its settings and figures
best.toml         the recipe of the best trial
bundle/           its bundle
report.html       by vizsla report
"""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from vizsla.errors import RunError, StorageError
from vizsla.runs.files import storage_error, write_text
from vizsla.runs.folder import RunFolder, new_folder

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT_VERSION = 1


@dataclass(frozen=True)
class StudyFolder:
    """One study on disk. Holds no open file and no state."""

    path: Path

    @classmethod
    def create(cls, parent: Path, name: str, now: datetime | None = None) -> StudyFolder:
        """A new, empty study folder `YYYY-MM-DD-HHMMSS-name` in `parent`."""
        return cls(new_folder(parent, name, now))

    @classmethod
    def open(cls, path: Path) -> StudyFolder:
        """An existing study. Raises `RunError` if `path` is none, or of another format."""
        if not (path / "study.toml").is_file():
            hint = " It is a run." if (path / "run.toml").is_file() else ""
            raise RunError(f"{path} is not a study: it has no study.toml.{hint}")
        study = cls(path)
        version = study.facts().get("format_version")
        if version != FORMAT_VERSION:
            raise RunError(
                f"The study {path} has format version {version}, and this vizsla reads version "
                f"{FORMAT_VERSION}. Use the vizsla that wrote it."
            )
        return study

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def journal(self) -> Path:
        return self.path / "journal.log"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def best_recipe(self) -> Path:
        return self.path / "best.toml"

    @property
    def leaderboard(self) -> Path:
        return self.path / "leaderboard.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def screening(self) -> Path:
        return self.path / "screening"

    def trial(self, number: int) -> RunFolder:
        """The run folder of a trial, there or not."""
        return RunFolder(self.path / "trials" / f"{number:04}")

    @contextlib.contextmanager
    def locked(self, wait_s: float = 2.0) -> Iterator[None]:
        """Hold the study for writing; raises `RunError` where another process still does after
        `wait_s` (who only looks whether it is held holds it for a moment)."""
        lock = FileLock(self.path / ".lock", timeout=wait_s)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"The study {self.path} is being run by another process; wait for it or stop it."
            ) from None
        except OSError as error:
            raise storage_error(self.path / ".lock", error) from error
        try:
            yield
        finally:
            lock.release()

    def is_running(self) -> bool:
        """Whether a process holds the study."""
        try:
            with self.locked(wait_s=0.0):
                return False
        except StorageError:
            return False
        except RunError:
            return True

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `study.toml`, which makes the folder a study; it has an `id` of its own."""
        whole = {"format_version": FORMAT_VERSION, "id": uuid.uuid4().hex, **facts}
        path = self.path / "study.toml"
        write_text(path, tomli_w.dumps(whole))
        if "storage" in facts.get("study", {}):  # its address may hold a password
            path.chmod(0o600)

    def facts(self) -> dict[str, Any]:
        """The content of `study.toml`."""
        try:
            return tomllib.loads((self.path / "study.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{self.path / 'study.toml'} cannot be read: {error}.") from None
