"""Where Optuna keeps a study: a journal file in its folder, or a database for several machines."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from vizsla.errors import RunError, SettingError
from vizsla.extras import require
from vizsla.tuning.folder import StudyFolder

# A name of its own in each journal; in a database the folder's.
JOURNAL_NAME = "study"


def open_storage(folder: StudyFolder, url: str | None) -> tuple[BaseStorage, str]:
    """The storage of a study and the study's name in it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it tells of trials, we tell
    if url is not None:
        return open_database(url), folder.facts().get("name_in_storage", folder.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return JournalStorage(JournalFileBackend(str(folder.journal))), JOURNAL_NAME


def heal_journal(folder: StudyFolder) -> None:
    """Undo what a writer left that was killed: a line cut off, which would spoil the one after
    it, and a lock that nobody holds. Only for who holds the study's own lock."""
    Path(f"{folder.journal}.lock").unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError), folder.journal.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def load(folder: StudyFolder) -> optuna.Study:
    """Optuna's study of a folder, to be read."""
    storage, name = open_storage(folder, folder.facts()["study"].get("storage"))
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise RunError(
            f"The study {folder.path} has no trials in its storage yet; begin again with: "
            f"vizsla tune --resume {folder.path}"
        ) from None
    except ValueError as error:
        raise RunError(f"{folder.journal} is damaged: {error}.") from None


def open_database(url: str) -> RDBStorage:
    """Optuna's storage at a database's address. Raises `SettingError` where it cannot be used."""
    if "://" not in url:
        raise SettingError(
            f"storage is {url!r}, but must be a database's address, such as "
            "postgresql+psycopg://user@host/name."
        )
    if url.startswith("postgresql+psycopg://"):
        require("psycopg", "postgresql", "A study in PostgreSQL")
    from sqlalchemy.pool import NullPool  # takes a moment, which a journal does without

    # A connection for each use: a trial takes longer than some servers keep an idle one.
    try:
        return RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    # SQLAlchemy and the drivers have errors of many kinds, and imports that fail.
    except Exception as error:
        reason = " ".join(str(error).split()).split(" (Background on this error")[0]
        raise SettingError(
            f"The storage {without_password(url)} cannot be used: {reason.rstrip('.')}."
        ) from None


def without_password(url: str) -> str:
    """The address as it may be shown."""
    scheme, _, rest = url.partition("://")
    access, at, place = rest.rpartition("@")
    user = access.partition(":")[0]
    return f"{scheme}://{user}{at}{place}"
