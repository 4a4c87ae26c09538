"""From what a person has (a folder, an archive, a manifest) to a catalogue.

Four layouts are understood, each also inside an archive: folders of splits holding folders of
classes, folders of classes alone, a CSV or Parquet manifest, and any of these one or more
folders down. Reading lists of files is all that happens here; archives are unpacked by
`archive.py`, and no picture is opened.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vizsla.data.archive import ARCHIVE_SUFFIXES, unpack
from vizsla.data.catalogue import NO_SPLIT, Catalogue, build
from vizsla.errors import DataError, nearest
from vizsla.extras import require
from vizsla.records import SPLITS

PICTURE_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .gif".split())
MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})
_SPLIT_FOLDERS = {
    "train": 0, "training": 0, "valid": 1, "val": 1, "validation": 1, "test": 2, "testing": 2,
}  # fmt: skip


def open_source(source: str | os.PathLike[str]) -> Catalogue:
    """The catalogue of a folder, an archive or a manifest.

    Raises `DataError` where there is nothing or no picture; a single class is refused when the
    pictures are divided, since a model can well be evaluated on one.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"There is no {path}. Give a folder of pictures, a .zip or .tar of one, or a .csv or "
            ".parquet manifest."
        )
    catalogue = _read(path)
    if len(catalogue) == 0:
        raise DataError(
            f"No pictures found in {path}. Expected one folder a class "
            "(photos/Beagle/1.jpg), inside train, valid and test folders or alone; "
            f"pictures end in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    return catalogue


def _read(path: Path) -> Catalogue:
    if path.is_dir():
        return _read_folder(path)
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return _read_folder(unpack(path, keep=PICTURE_SUFFIXES | MANIFEST_SUFFIXES))
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return read_manifest(path)
    raise DataError(
        f"{path} is neither a folder, an archive ({', '.join(ARCHIVE_SUFFIXES)}) nor a manifest "
        f"({', '.join(sorted(MANIFEST_SUFFIXES))})."
    )


def _read_folder(folder: Path) -> Catalogue:
    while True:
        folders, files = _children(folder)
        splits = {
            name: _SPLIT_FOLDERS[name.lower()] for name in folders if name.lower() in _SPLIT_FOLDERS
        }
        # A class may be called train, too: of a split's folder the children are folders.
        if any(index == 0 and _children(folder / name)[0] for name, index in splits.items()):
            return _read_classes(folder, list(splits.items()))
        manifests = [folder / name for name in files if _is_manifest(name)]
        fitting = [path for path in manifests if _has_needed_columns(path)]
        if len(fitting) == 1:
            return read_manifest(fitting[0])
        if splits and len(splits) == len(folders):
            raise DataError(
                f"{folder} holds {', '.join(sorted(splits))} but no train folder. Add one, or "
                "give a folder of classes alone and vizsla divides it."
            )
        if len(folders) != 1 or not _is_wrapper(folder / folders[0]):
            return _read_classes(folder, [("", NO_SPLIT)])
        folder = folder / folders[0]


def _is_wrapper(folder: Path) -> bool:
    """Whether an only folder is no class but holds the data set, as in dogImages.zip."""
    folders, files = _children(folder)
    return bool(folders) or any(map(_is_manifest, files))


def _read_classes(root: Path, parts: list[tuple[str, int]]) -> Catalogue:
    paths: list[str] = []
    folders: list[str] = []
    splits: list[int] = []
    for part, split in parts:
        base = root / part if part else root
        for class_folder in sorted(_children(base)[0]):
            prefix = f"{part}/{class_folder}" if part else class_folder
            found = sorted(_pictures_below(base / class_folder, prefix))
            _check_names(found, root)
            paths += found
            folders += [class_folder] * len(found)
            splits += [split] * len(found)
    return build(root, paths, folders, splits)


def _pictures_below(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of the pictures in `folder` and below, each as `prefix/…`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES:
                yield f"{prefix}/{name}"
            elif entry.is_dir():
                yield from _pictures_below(Path(entry.path), f"{prefix}/{name}")


def _check_names(paths: list[str], root: Path) -> None:
    """Raise `DataError` for a name that no text file could hold, such as the run's own."""
    try:
        "\n".join(paths).encode()
    except UnicodeEncodeError:
        name = next(path for path in paths if any("\ud800" <= sign <= "\udfff" for sign in path))
        raise DataError(
            f"The name of {os.fsencode(root / name)!r} is not valid UTF-8. Rename it, for instance "
            "with convmv."
        ) from None


def _children(folder: Path) -> tuple[list[str], list[str]]:
    """Names of folders and files, without hidden ones and macOS's archive litter."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def _is_manifest(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in MANIFEST_SUFFIXES


def _has_needed_columns(path: Path) -> bool:
    """Whether a table found beside pictures is a manifest, and not something else's notes."""
    if path.suffix.lower() == ".parquet":
        parquet = require("pyarrow.parquet", "parquet", "Reading a Parquet manifest")
        try:
            header = {name.strip().lower() for name in parquet.read_schema(path).names}
        except (ValueError, OSError):
            return False
        return {"path", "label"} <= header
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        try:
            header = {name.strip().lower() for name in next(csv.reader(file), [])}
        except csv.Error:
            return False
    return {"path", "label"} <= header


def read_manifest(path: Path, *, exact: bool = False) -> Catalogue:
    """The catalogue of a `path,label[,split]` table; paths are relative to its folder.

    Blanks around a value are dropped, as people type them after commas; with `exact` they stay,
    for a table that `Catalogue.write_csv` wrote.
    """
    paths: list[str] = []
    folders: list[str] = []
    splits: list[int] = []
    known: dict[str, str] = {}
    for line, picture, label, split in _manifest_rows(path):
        if not exact:
            picture, label, split = picture.strip(), label.strip(), split.strip()
        if not picture or not label:
            raise DataError(f"{path}, line {line}: a row needs a path and a label.")
        paths.append(picture)
        folders.append(known.setdefault(label, label))
        splits.append(_split_index(split, path, line))
    if NO_SPLIT in splits and set(splits) != {NO_SPLIT}:
        raise DataError(
            f"{path}: the split of {paths[splits.index(NO_SPLIT)]!r} is empty though other rows "
            "have one. Fill it in everywhere, or leave the column out and vizsla divides the "
            "pictures."
        )
    if paths and set(splits).isdisjoint({0, NO_SPLIT}):
        raise DataError(f"{path}: no row is of the split 'train'.")
    return build(path.parent, paths, folders, splits)


def _split_index(name: str, path: Path, line: int) -> int:
    if not name:
        return NO_SPLIT
    index = _SPLIT_FOLDERS.get(name.lower())
    if index is None:
        raise DataError(
            f"{path}, line {line}: the split is {name!r}, but must be one of "
            f"{', '.join(SPLITS)}.{nearest(name.lower(), _SPLIT_FOLDERS)}"
        )
    return index


def _manifest_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Each row's line in the file (or number in a Parquet table), path, label and split."""
    try:
        if path.suffix.lower() == ".parquet":
            yield from _parquet_rows(path)
        else:
            yield from _csv_rows(path)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"The manifest {path} cannot be read: {error}.") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        columns = _columns(next(reader, []), path)
        width = max(index for index in columns if index is not None)
        for row in reader:
            if not row:
                continue
            if len(row) <= width:
                raise DataError(
                    f"{path}, line {reader.line_num}: {len(row)} columns, but {width + 1} needed."
                )
            yield reader.line_num, *("" if at is None else row[at] for at in columns)  # type: ignore[misc]


def _parquet_rows(path: Path) -> Iterator[tuple[int, str, str, str]]:
    parquet = require("pyarrow.parquet", "parquet", "Reading a Parquet manifest")
    try:
        table: Any = parquet.ParquetFile(path)
        names = list(table.schema_arrow.names)
        columns = _columns(names, path)
        number = 0
        for batch in table.iter_batches(columns=[names[at] for at in columns if at is not None]):
            values = batch.to_pydict()
            series = [values[names[at]] if at is not None else [""] * len(batch) for at in columns]
            for row in zip(*series, strict=True):
                number += 1
                yield number, *("" if value is None else str(value) for value in row)  # type: ignore[misc]
    except (ValueError, KeyError) as error:  # pyarrow's errors derive from these
        if isinstance(error, DataError):
            raise
        raise DataError(f"The manifest {path} cannot be read as Parquet: {error}.") from None


def _columns(header: list[str], path: Path) -> tuple[int, int, int | None]:
    names = [name.strip().lower() for name in header]
    for needed in ("path", "label"):
        if needed not in names:
            raise DataError(
                f"The manifest {path} has the columns {', '.join(header) or '(none)'}, but needs "
                "path and label, and may have split."
            )
    split = names.index("split") if "split" in names else None
    return names.index("path"), names.index("label"), split
