"""Files that a crash, a kill or a full disk leaves whole."""

from __future__ import annotations

import errno
import json
import tempfile
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.errors import StorageError
from vizsla.runs.files import append_lines, read_lines, write_json, write_text, write_whole


def _write_half_and_run_out_of_space(file: IO[bytes]) -> None:
    file.write(b"half of the new cont")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_file_appears_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_whole(path, lambda file: file.write(b"first"))
    write_whole(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_reader_never_sees_a_file_half_written(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    seen: list[bytes] = []

    def write(file: IO[bytes]) -> None:
        file.write(b"ne")
        file.flush()
        seen.append(path.read_bytes())
        file.write(b"w")

    write_whole(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"


def test_full_disk_leaves_the_old_file_and_says_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    with pytest.raises(StorageError) as caught:
        write_whole(path, _write_half_and_run_out_of_space)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    message = str(caught.value)
    assert message.startswith(f"{path} could not be written: No space left on device.")
    assert "untouched" in message
    assert "--resume" in message


def test_full_disk_as_torch_reports_it_is_a_storage_error_too(tmp_path: Path) -> None:
    def write(_: IO[bytes]) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 128 vs 22")

    with pytest.raises(StorageError, match="unexpected pos"):
        write_whole(tmp_path / "last.pt", write)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_and_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")

    def write(_: IO[bytes]) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        write_whole(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        write_text(tmp_path / "nowhere" / "a.txt", "text")
    with pytest.raises(StorageError, match="No such file or directory"):
        append_lines(tmp_path / "nowhere" / "a.jsonl", [{"a": 1}])


def test_json_keeps_letters_of_all_kinds(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Zoë's 犬"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "Zoë's 犬" in text
    assert json.loads(text) == {"name": "Zoë's 犬"}


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    append_lines(path, [{"step": 1}, {"step": 2}])
    append_lines(path, [{"step": 3, "note": "two\nlines"}])
    assert list(read_lines(path)) == [{"step": 1}, {"step": 2}, {"step": 3, "note": "two\nlines"}]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "steps.jsonl")) == []


@given(
    records=st.lists(
        st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_line_cut_off_anywhere_is_skipped_and_not_glued(
    records: list[dict[str, int | str]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.jsonl")
        append_lines(path, records)
        content = path.read_bytes()
        kept = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:kept])
        whole = list(read_lines(path))
        assert whole == records[: len(whole)]
        assert len(whole) >= content[:kept].count(b"\n")
        append_lines(path, [{"later": 1}])
        assert list(read_lines(path)) == [*whole, {"later": 1}]


@given(content=st.binary(max_size=80))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_read_as_lines(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "steps.jsonl")
        path.write_bytes(content)
        assert all(isinstance(line, dict) for line in read_lines(path))
