"""vizsla cache, as a person uses it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vizsla.cli import run as cli
from vizsla.data.record_store import RecordStore
from vizsla.places import cache_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))


def add_store(age_days: float = 0.0) -> Path:
    store = RecordStore(cache_folder() / "features" / "abc", "resnet50 up to layer3, 224 px, fp32")
    with store.writing(lambda: False):
        store.append([b"k" * 16], np.zeros((1, 2_500_000), np.uint8))
    facts = store.folder / "store.json"
    os.utime(facts, (facts.stat().st_mtime - age_days * 86_400,) * 2)
    return store.folder


def test_an_empty_cache_says_so_and_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["cache", "info"]) == 0
    printed = capsys.readouterr().out
    assert str(cache_folder()) in printed
    assert "empty" in printed


def test_info_lists_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    add_store()
    assert cli(["cache", "info"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "trunk outputs resnet50 up to layer3, 224 px, fp32 2.5 MB" in printed


def test_clear_removes_it_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    folder = add_store()
    assert cli(["cache", "clear"]) == 0
    assert capsys.readouterr().out == "Removed 1 entry, 2.5 MB.\n"
    assert not folder.exists()


def test_clear_by_age(capsys: pytest.CaptureFixture[str]) -> None:
    folder = add_store(age_days=20)
    assert cli(["cache", "clear", "--older-than", "30d"]) == 0
    assert folder.exists()
    assert cli(["cache", "clear", "--older-than", "2w"]) == 0
    assert not folder.exists()


@pytest.mark.parametrize("age", ["30", "-3d", "d", "3 months", ""])
def test_an_age_that_is_none_is_refused(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = add_store()
    assert cli(["cache", "clear", f"--older-than={age}"]) == 2
    assert "older_than" in capsys.readouterr().err
    assert folder.exists()
