"""Archives open once and fast, and can neither write outside their folder nor fill the disk."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data import archive as archive_module
from vizsla.data.archive import unpack
from vizsla.data.sources import open_source
from vizsla.errors import DataError, StorageError
from vizsla.places import cache_folder

KEEP = frozenset({".jpg", ".csv"})
SPLITS = ["train/a/1.jpg", "train/b/2.jpg", "valid/a/3.jpg", "test/b/4.jpg"]
LAYOUTS = {
    "splits": SPLITS,
    "nested splits": [f"dogImages/{name}" for name in SPLITS],
    "classes": ["a/1.jpg", "a/3.jpg", "b/2.jpg", "b/4.jpg"],
    "manifest": ["pictures/1.jpg", "pictures/2.jpg", "pictures/3.jpg", "pictures/4.jpg"],
}
MANIFEST = b"path,label\n" + b"".join(
    f"pictures/{number}.jpg,{label}\n".encode() for number, label in enumerate("abab", start=1)
)


def noise(name: str, size: int = 700) -> bytes:
    return random.Random(name).randbytes(size)


def write_zip(path: Path, names: list[str], **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            file.writestr(name, noise(name))
        for name, content in extra.items():
            file.writestr(name.replace("__", "."), content)
    return path


def write_tar(path: Path, names: list[str], **extra: bytes) -> Path:
    mode = {".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    contents = {name: noise(name) for name in names}
    contents.update({name.replace("__", "."): content for name, content in extra.items()})
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def write(path: Path, names: list[str], **extra: bytes) -> Path:
    return (write_zip if path.suffix == ".zip" else write_tar)(path, names, **extra)


def odd_tar(path: Path, kind: bytes, linkname: str = "") -> Path:
    """A tar whose second member is not a regular file."""
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("a/1.jpg"), io.BytesIO())
        member = tarfile.TarInfo("a/2.jpg")
        member.type, member.linkname = kind, linkname
        file.addfile(member)
    return path


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


# -- Layouts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_opens_from_every_kind_of_archive(
    tmp_path: Path, suffix: str, layout: str
) -> None:
    extra = {"labels__csv": MANIFEST} if layout == "manifest" else {}
    catalogue = open_source(write(tmp_path / f"pets{suffix}", LAYOUTS[layout], **extra))
    assert len(catalogue) == 4
    assert [label.folder for label in catalogue.classes] == ["a", "b"]
    assert catalogue.is_split == ("splits" in layout)
    for row in range(4):
        name = catalogue.paths[row]
        packed = f"dogImages/{name}" if layout.startswith("nested") else name
        assert catalogue.path(row).read_bytes() == noise(packed)


def test_what_is_no_picture_stays_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.zip", ["a/1.jpg", "a/2.JPG", "a/run.exe", "README", "a/.jpg"])
    assert files_below(unpack(path, KEEP, tmp_path / "out")) == {"a/1.jpg", "a/2.JPG"}


def test_backslashes_of_windows_are_folders(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.zip", ["train\\a\\1.jpg"])
    assert files_below(unpack(path, KEEP, tmp_path / "out")) == {"train/a/1.jpg"}


# -- Once --------------------------------------------------------------------------------------


def test_a_second_opening_uses_the_unpacked_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "pets.zip", SPLITS)
    first = open_source(path).root

    def never(*_: object) -> None:
        raise AssertionError("unpacked twice")

    monkeypatch.setattr(archive_module, "_unpack_into", never)
    assert open_source(path).root == first
    assert first.is_relative_to(cache_folder())


def test_a_changed_archive_is_unpacked_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.zip", ["a/1.jpg"])
    old = unpack(path, KEEP, tmp_path / "out")
    write(path, ["a/1.jpg", "a/2.jpg"])
    new = unpack(path, KEEP, tmp_path / "out")
    assert new != old
    assert files_below(new) == {"a/1.jpg", "a/2.jpg"}


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", "~/here")
    assert cache_folder() == Path.home() / "here"
    monkeypatch.delenv("VIZSLA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/vizsla")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "vizsla"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "disk full")])
def test_stopping_midway_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = write(tmp_path / "pets.zip", SPLITS)
    seen: list[str] = []
    real = archive_module._safe_name

    def fails_at_the_third(name: str, archive: Path) -> object:
        seen.append(name)
        if len(seen) == 3:
            raise error
        return real(name, archive)

    with monkeypatch.context() as patch:
        patch.setattr(archive_module, "_safe_name", fails_at_the_third)
        with pytest.raises((KeyboardInterrupt, StorageError)):
            unpack(path, KEEP, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert files_below(unpack(path, KEEP, tmp_path / "out")) == set(SPLITS)


def test_losing_the_race_against_another_process_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "pets.zip", ["a/1.jpg"])
    target = unpack(path, KEEP, tmp_path / "out")
    target.rename(tmp_path / "theirs")
    real = archive_module._unpack_into

    def slower(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        (tmp_path / "theirs").rename(target)

    monkeypatch.setattr(archive_module, "_unpack_into", slower)
    assert unpack(path, KEEP, tmp_path / "out") == target
    assert files_below(tmp_path / "out") == {f"{target.name}/a/1.jpg"}


# -- Attacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/tmp/x.jpg", "..\\x.jpg", "\\x.jpg", "C:\\x.jpg"]
)
def test_a_member_outside_the_folder_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = write(inner / f"evil{suffix}", ["a/1.jpg", name])
    with pytest.raises(DataError, match="would be written outside its folder; refused"):
        unpack(path, KEEP, inner / "out")
    assert files_below(tmp_path) == {f"inner/evil{suffix}"}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = odd_tar(tmp_path / "evil.tar", kind, linkname="/etc/passwd")
    with pytest.raises(DataError, match=r"'a/2.jpg', which is a link or a device"):
        unpack(path, KEEP, tmp_path / "out")


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a/link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="which is a link or a device"):
        unpack(tmp_path / "evil.zip", KEEP, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_more_than_an_archive_can_plausibly_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(archive_module, "_ALWAYS_ALLOWED_BYTES", 1 << 20)
    zeros = b"\0" * (3 << 20)
    path = write(tmp_path / f"bomb{suffix}", [], one__jpg=zeros, two__jpg=zeros)
    assert path.stat().st_size < 20_000
    with pytest.raises(DataError, match="unpacks to more than its .* bytes can plausibly hold"):
        unpack(path, KEEP, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_last_of_the_disk_is_left_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "pets.zip", ["a/1.jpg"])
    monkeypatch.setattr(archive_module, "_KEEP_FREE_BYTES", 1 << 60)
    with pytest.raises(DataError, match="or the disk has free"):
        unpack(path, KEEP, tmp_path / "out")


# -- Damage ------------------------------------------------------------------------------------


def test_an_encrypted_zip_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "secret.zip", ["a/1.jpg"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted; unpack it yourself first"):
        unpack(path, KEEP, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.7])
def test_a_truncated_archive_is_refused_whole(tmp_path: Path, suffix: str, share: float) -> None:
    path = write(tmp_path / f"cut{suffix}", [f"a/{number}.jpg" for number in range(30)])
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(DataError, match="is damaged or not supported"):
        unpack(path, KEEP, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("spoil", [lambda b: b[:200], lambda b: b[:148] + b"\xff" * 8 + b[156:]])
def test_a_tar_with_a_broken_header_in_the_middle_is_refused(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    path = write(tmp_path / "pets.tar", ["a/1.jpg", "a/2.jpg"])
    content, second = path.read_bytes(), 512 + 1024
    path.write_bytes(content[:second] + spoil(content[second:]))
    with pytest.raises(DataError, match="is damaged"):
        unpack(path, KEEP, tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".zip", ".tar", ".tar.gz", ".tar.xz"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    kept=st.floats(0, 1),
)
def test_damaged_archives_open_or_raise_a_data_error(
    suffix: str, changes: list[tuple[float, int]], kept: float
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write(folder / f"pets{suffix}", ["a/é1.jpg", "a/2.jpg", "b/3.jpg"])
        content = bytearray(path.read_bytes())
        for place, value in changes:
            content[int(place * len(content))] = value
        path.write_bytes(content[: max(1, int(kept * len(content)))])
        try:
            target = unpack(path, KEEP, folder / "out")
        except DataError:
            assert list((folder / "out").iterdir()) == []
        else:
            assert all(path.stat().st_size <= 700 for path in target.rglob("*.jpg"))
        assert {entry.name for entry in folder.iterdir()} == {path.name, "out"}


def test_a_cache_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    path = write(tmp_path / "pets.zip", ["a/1.jpg"])
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match="Unpacking .* failed: .*VIZSLA_CACHE"):
        unpack(path, KEEP, tmp_path / "out")
