"""Where a study is kept: a journal that Optuna's dashboard opens, or a real PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from vizsla import tune
from vizsla.data.synthetic import DrawnDataset, draw_dataset
from vizsla.errors import SettingError
from vizsla.settings import Settings
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.storage import heal_journal, open_database, open_storage
from vizsla.tuning.study import Study


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer_of(url: str, deadline: float) -> str:
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_optunas_dashboard_opens_a_study(finished_study: Study) -> None:
    dashboard = Path(sys.executable).with_name("optuna-dashboard")
    if not dashboard.exists():
        pytest.skip("optuna-dashboard is not installed")
    port = free_port()
    command = [str(dashboard), str(finished_study.folder.journal), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            text = answer_of(f"http://127.0.0.1:{port}/api/studies", time.monotonic() + 30)
            (study,) = json.loads(text)["study_summaries"]
            detail = json.loads(
                answer_of(
                    f"http://127.0.0.1:{port}/api/studies/{study['study_id']}",
                    time.monotonic() + 30,
                )
            )
        finally:
            server.terminate()
    assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 6


def test_a_journal_that_was_cut_off_is_healed(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    storage, _ = open_storage(folder, None)
    storage.create_new_study([_maximize()], "one")
    whole = folder.journal.read_bytes()
    folder.journal.write_bytes(whole + b'{"op_code"')
    Path(f"{folder.journal}.lock").symlink_to(folder.journal)
    heal_journal(folder)
    assert folder.journal.read_bytes() == whole
    storage, _ = open_storage(folder, None)
    storage.create_new_study([_maximize()], "two")
    storage, _ = open_storage(folder, None)
    assert [study.study_name for study in storage.get_all_studies()] == ["one", "two"]


def _maximize():  # type: ignore[no-untyped-def]
    from optuna.study import StudyDirection

    return StudyDirection.MAXIMIZE


def test_an_address_that_cannot_be_used_is_refused_without_its_password() -> None:
    port = free_port()
    with pytest.raises(SettingError) as refused:
        open_database(f"postgresql+psycopg://anna:secret@127.0.0.1:{port}/none")
    assert "127.0.0.1" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a database of a PostgreSQL server started for the tests of this module."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    homes = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.get_exec_path())]
    binaries = next((home for home in homes if (home / "initdb").exists()), None)
    if binaries is None:
        pytest.skip("no PostgreSQL server on this machine")
    # It refuses to run as root, and then wants a folder of its own user.
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    base = Path("/tmp") / f"vizsla-test-postgres-{os.getpid()}"
    base.mkdir(mode=0o700)
    if user:
        shutil.chown(base, "nobody")
    data, port = base / "data", free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": base}
    try:
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "anna", "-A", "trust", "--no-sync"],
            check=True, **quiet, **user,
        )  # fmt: skip
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-p", str(port), "-k", base, "-F",
             "-h", "127.0.0.1"], **quiet, **user,
        )  # fmt: skip
        try:
            yield _when_it_answers(f"postgresql+psycopg://anna@127.0.0.1:{port}/postgres")
        finally:
            server.terminate()
            server.wait(30)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _when_it_answers(address: str) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            open_database(address)
        except SettingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return address


def test_machines_that_share_a_database_share_a_study(
    postgres: str, dogs: DrawnDataset, tmp_path: Path, head: Settings
) -> None:
    search = {"lr": "1e-4..1e-1:log"}
    shared = {"storage": postgres, "name": "dogs", "pruner": "none"}
    one = tune(dogs.folder, search, recipe=head, studies=tmp_path / "one", trials=2, **shared)
    two = tune(dogs.folder, search, recipe=head, studies=tmp_path / "two", trials=3, **shared)
    assert sorted(record.number for record in two.records) == [0, 1, 2]
    assert [run.name for run in (two.folder.path / "trials").iterdir()] == ["0002"]
    assert len(one.records) == 3  # each sees the trials of all
    other = draw_dataset(tmp_path / "cats", breeds=3, pictures_per_breed=12, size_px=64, seed=9)
    with pytest.raises(SettingError, match="another division"):
        tune(other.folder, search, recipe=head, studies=tmp_path / "three", trials=4, **shared)
    with pytest.raises(SettingError, match="another search"):
        tune(dogs.folder, {"lr": "1..2"}, recipe=head, studies=tmp_path / "four", **shared)
