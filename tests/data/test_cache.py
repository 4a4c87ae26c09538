"""The cache folder keeps to its budget and clears what nobody uses."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vizsla.data import cache
from vizsla.data.record_store import RecordStore
from vizsla.places import cache_folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path))
    return tmp_path


def store(name: str, size: int, age_s: float = 0.0, kind: str = "features") -> RecordStore:
    """A store of about `size` bytes that was last used `age_s` seconds ago."""
    made = RecordStore(cache_folder() / kind / name, f"about {name}")
    with made.writing(lambda: False):
        made.append([name.encode().ljust(16)], np.zeros((1, size), np.uint8))
    then = time.time() - age_s
    os.utime(made.folder / cache.FACTS_FILE, (then, then))
    return made


def names() -> set[str]:
    return {entry.path.name for entry in cache.entries()}


def test_entries_tell_what_is_there_the_last_used_first(folder: Path) -> None:
    store("old", 5000, age_s=500)
    store("new", 1000, kind="images")
    (folder / "archives" / "dogs").mkdir(parents=True)
    (folder / "archives" / "dogs" / "dog.jpg").write_bytes(b"123")
    os.utime(folder / "archives" / "dogs", (1, 1))
    found = cache.entries()
    assert [(entry.kind, entry.about) for entry in found] == [
        ("images", "about new"), ("features", "about old"), ("archives", "dogs"),
    ]  # fmt: skip
    assert found[1].bytes > 5000
    assert found[2].bytes == 3


@pytest.mark.parametrize("facts", ["", "{}", "[1]", "{"])
def test_a_store_with_damaged_facts_is_listed_all_the_same(facts: str) -> None:
    (store("a", 100).folder / cache.FACTS_FILE).write_text(facts)
    assert names() == {"a"}
    assert cache.make_room(cache_folder() / "features" / "b", 10, 1e6)


def test_an_empty_or_missing_cache_has_no_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.entries() == []
    monkeypatch.setenv("VIZSLA_CACHE", "/nowhere/at/all")
    assert cache.entries() == []


def test_room_is_made_by_removing_what_was_used_longest_ago() -> None:
    oldest, middle, own = store("a", 4000, 300), store("b", 4000, 200), store("c", 4000, 900)
    assert cache.make_room(own.folder, 2000, 11_000)
    assert not oldest.folder.exists()
    assert middle.folder.exists()
    assert own.folder.exists()


def test_no_room_is_made_for_what_is_larger_than_the_budget() -> None:
    other, own = store("a", 4000), store("b", 4000)
    assert not cache.make_room(own.folder, 8000, 10_000)
    assert other.folder.exists()


def test_a_store_that_is_being_written_stays() -> None:
    busy, own = store("a", 6000, 300), store("b", 4000)
    with busy.writing(lambda: False):
        assert not cache.make_room(own.folder, 4000, 10_000)
        gone, left = cache.clear()
    assert {entry.path.name for entry in gone} == {"b"}
    assert {entry.path.name for entry in left} == {"a"}
    assert names() == {"a"}


def test_clear_by_age_leaves_what_is_younger() -> None:
    store("old", 10, age_s=3 * 86_400)
    store("new", 10)
    gone, busy = cache.clear(older_than_s=86_400)
    assert [entry.path.name for entry in gone] == ["old"]
    assert busy == []
    assert names() == {"new"}


def test_using_a_store_makes_it_young() -> None:
    made = store("old", 10, age_s=3 * 86_400)
    made.find([b"x" * 16])
    assert cache.clear(older_than_s=86_400) == ([], [])


def test_an_unpacked_archive_in_use_is_not_cleared(folder: Path) -> None:
    inner = folder / "archives" / "key-dogs" / "dogs"
    inner.mkdir(parents=True)
    with cache.in_use(inner):
        assert [entry.path.name for entry in cache.clear()[1]] == ["key-dogs"]
        assert inner.exists()
    assert [entry.path.name for entry in cache.clear()[0]] == ["key-dogs"]
    assert not inner.exists()


def test_the_mark_of_a_process_that_is_gone_holds_nothing(folder: Path) -> None:
    (folder / "archives" / "key-dogs").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    (folder / "archives" / "key-dogs.users").mkdir()
    (folder / "archives" / "key-dogs.users" / str(child.pid)).touch()
    assert len(cache.clear()[0]) == 1


def test_pictures_outside_the_cache_are_not_marked(tmp_path: Path) -> None:
    with cache.in_use(tmp_path / "photographs"):
        assert list(tmp_path.rglob("*.users")) == []
