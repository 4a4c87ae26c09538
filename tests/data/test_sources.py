"""Every layout that people have becomes the same catalogue; what cannot be used says why."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vizsla.data.catalogue import Catalogue
from vizsla.data.sources import open_source, read_manifest
from vizsla.data.splits import divide
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import DataError
from vizsla.records import SPLITS


def touch(root: Path, *names: str) -> Path:
    """Empty files: finding pictures opens none."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def rows(catalogue: Catalogue) -> set[tuple[str, str, str]]:
    """Path, class folder and split of every picture."""
    return {
        (path, catalogue.classes[label].folder, SPLITS[split] if split >= 0 else "")
        for path, label, split in zip(
            catalogue.paths, catalogue.labels.tolist(), catalogue.splits.tolist(), strict=True
        )
    }


def folders(catalogue: Catalogue) -> list[str]:
    return [label.folder for label in catalogue.classes]


def table(folder: Path, text: str, name: str = "manifest.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


# -- Folders -----------------------------------------------------------------------------------


def test_a_folder_of_splits(dogs: DrawnDataset) -> None:
    catalogue = open_source(dogs.folder)
    assert tuple(folders(catalogue)) == dogs.classes
    assert len(catalogue) == 3 * 24
    assert {split: len(catalogue.rows(split)) for split in SPLITS} == {
        "train": 48,
        "valid": 12,
        "test": 12,
    }
    assert all(catalogue.path(row).is_file() for row in range(len(catalogue)))
    assert all(path.split("/")[1] == label for path, label, _ in rows(catalogue))


@pytest.mark.parametrize("valid", ["valid", "val", "validation", "Val", "VALIDATION"])
def test_every_usual_name_of_the_validation_folder(tmp_path: Path, valid: str) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", f"{valid}/a/3.jpg", "test/b/4.jpg")
    assert rows(open_source(tmp_path)) == {
        ("train/a/1.jpg", "a", "train"),
        ("train/b/2.jpg", "b", "train"),
        (f"{valid}/a/3.jpg", "a", "valid"),
        ("test/b/4.jpg", "b", "test"),
    }


def test_a_folder_of_classes(tmp_path: Path) -> None:
    catalogue = open_source(touch(tmp_path, "cat/1.jpg", "dog/2.PNG", "dog/3.webp"))
    assert rows(catalogue) == {
        ("cat/1.jpg", "cat", ""),
        ("dog/2.PNG", "dog", ""),
        ("dog/3.webp", "dog", ""),
    }
    assert not catalogue.is_split


@pytest.mark.parametrize("top", ["dogImages", "downloads/2024/dogImages"])
@pytest.mark.parametrize("inner", ["train/", ""])
def test_folders_around_the_data_set_are_passed_through(
    tmp_path: Path, top: str, inner: str
) -> None:
    touch(tmp_path, f"{top}/{inner}a/1.jpg", f"{top}/{inner}b/2.jpg")
    catalogue = open_source(tmp_path)
    assert catalogue.root == tmp_path / top
    assert set(catalogue.paths) == {f"{inner}a/1.jpg", f"{inner}b/2.jpg"}


def test_hidden_files_and_macos_litter_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "dogs/train/a/1.jpg", "dogs/train/b/2.jpg", "__MACOSX/dogs/train/a/._1.jpg")
    touch(tmp_path, ".DS_Store", "dogs/.DS_Store", "dogs/train/.cache/3.jpg")
    touch(tmp_path, "dogs/train/a/._1.jpg", "dogs/train/a/.hidden/4.jpg", "dogs/train/a/Thumbs.db")
    assert rows(open_source(tmp_path)) == {
        ("train/a/1.jpg", "a", "train"),
        ("train/b/2.jpg", "b", "train"),
    }


def test_folders_inside_a_class_belong_to_it(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/a/indoor/2.jpg", "train/a/indoor/dark/3.jpg")
    touch(tmp_path, "train/b/4.jpg")
    catalogue = open_source(tmp_path)
    assert folders(catalogue) == ["a", "b"]
    assert ("train/a/indoor/dark/3.jpg", "a", "train") in rows(catalogue)


def test_a_table_of_something_else_beside_the_classes_is_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    table(tmp_path, "photographer,camera\nKim,old\n", "credits.csv")
    table(tmp_path, "x" * 200_000 + "\n", "one-huge-field.csv")
    assert folders(open_source(tmp_path)) == ["a", "b"]


def test_a_manifest_beside_the_classes_counts(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    table(tmp_path, "path,label\na/1.jpg,x\nb/2.jpg,y\n")
    assert folders(open_source(tmp_path)) == ["x", "y"]


# -- Classes -----------------------------------------------------------------------------------


def test_a_coded_folder_gives_code_and_name(tmp_path: Path) -> None:
    touch(tmp_path, "001.Affenpinscher/1.jpg", "002.Afghan_hound/2.jpg", "mixed breed/3.jpg")
    assert [(label.code, label.name) for label in open_source(tmp_path).classes] == [
        ("001", "Affenpinscher"),
        ("002", "Afghan_hound"),
        ("mixed breed", "mixed breed"),
    ]


def test_classes_are_in_natural_order(tmp_path: Path) -> None:
    names = ["10", "2", "a10", "a2", "B1", "011.Eleven", "001.One", "03_Three"]
    catalogue = open_source(touch(tmp_path, *(f"{name}/1.jpg" for name in names)))
    assert folders(catalogue) == ["001.One", "2", "03_Three", "10", "011.Eleven", "a2", "a10", "B1"]


def test_a_class_missing_from_valid_shifts_no_label(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "train/c/3.jpg")
    touch(tmp_path, "valid/a/4.jpg", "valid/c/5.jpg")
    catalogue = open_source(tmp_path)
    assert folders(catalogue) == ["a", "b", "c"]
    assert ("valid/c/5.jpg", "c", "valid") in rows(catalogue)
    assert catalogue.counts("valid").tolist() == [1, 0, 1]


def test_a_class_without_training_pictures_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/c/2.jpg", "valid/b/3.jpg", "valid/c/4.jpg")
    catalogue = open_source(tmp_path)
    assert folders(catalogue) == ["a", "c"]
    assert "valid/b/3.jpg" not in catalogue.paths
    assert ("valid/c/4.jpg", "c", "valid") in rows(catalogue)


# -- Manifests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_manifest_with_splits(tmp_path: Path, encoding: str) -> None:
    text = "path,label,split\np/1.jpg,Bäcker,train\np/2.jpg,b,Training\np/3.jpg,b,val\n"
    catalogue = open_source(table(tmp_path, text, encoding=encoding))
    assert catalogue.root == tmp_path
    assert rows(catalogue) == {
        ("p/1.jpg", "Bäcker", "train"),
        ("p/2.jpg", "b", "train"),
        ("p/3.jpg", "b", "valid"),
    }


def test_columns_may_come_in_any_order_and_case_and_with_others(tmp_path: Path) -> None:
    text = 'note, Label ,PATH\r\n"a, b",dog, 1.jpg \r\n\r\n,cat,"2, or two.jpg"\r\n'
    catalogue = open_source(table(tmp_path, text))
    assert rows(catalogue) == {("1.jpg", "dog", ""), ("2, or two.jpg", "cat", "")}


def test_blanks_around_values_stay_where_the_table_is_exact(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label\n 1.jpg,dog \n2.jpg,cat\n")
    assert rows(read_manifest(path, exact=True)) == {(" 1.jpg", "dog ", ""), ("2.jpg", "cat", "")}


@pytest.mark.parametrize("labels", [["7", "8", "7"], [7, 8, 7]])
def test_a_parquet_manifest(tmp_path: Path, labels: list[str] | list[int]) -> None:
    columns = {"path": ["1.jpg", "2.jpg", "3.jpg"], "label": labels}
    pq.write_table(pa.table(columns), tmp_path / "plain.parquet")
    assert rows(open_source(tmp_path / "plain.parquet")) == {
        ("1.jpg", "7", ""),
        ("2.jpg", "8", ""),
        ("3.jpg", "7", ""),
    }
    columns["split"] = ["train", "train", "test"]
    pq.write_table(pa.table(columns), tmp_path / "divided.parquet")
    assert ("3.jpg", "7", "test") in rows(open_source(tmp_path / "divided.parquet"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \(none\), but needs path and label"),
        ("file,class\n1.jpg,a\n", "has the columns file, class, but needs path and label"),
        ("path,label,split\n1.jpg,a,trian\n", "line 2: the split is 'trian'.*Did you mean train"),
        ("path,label,split\n1.jpg,a,train\n\n2.jpg,b\n", "line 4: 2 columns, but 3 needed"),
        ("path,label\n1.jpg,a\n\n2.jpg,\n", "line 4: a row needs a path and a label"),
        ("path,label\n,a\n", "line 2: a row needs a path and a label"),
        ("path,label,split\n1.jpg,a,train\n2.jpg,b,\n", "split of '2.jpg' is empty though other"),
        ("path,label,split\n1.jpg,a,valid\n2.jpg,b,test\n", "no row is of the split 'train'"),
        ("path,label\n", "No pictures found"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(table(tmp_path, text))


def test_empty_splits_everywhere_leave_the_dividing_to_us(tmp_path: Path) -> None:
    catalogue = open_source(table(tmp_path, "path,label,split\n1.jpg,a,\n2.jpg,b,  \n"))
    assert not catalogue.is_split


@pytest.mark.parametrize("name", ["latin.csv", "noise.parquet", "empty.parquet"])
def test_a_manifest_that_cannot_be_read_is_a_data_error(tmp_path: Path, name: str) -> None:
    noise = {"latin.csv": b"path,label\n\xe9.jpg,a\n", "noise.parquet": b"PAR1 nothing PAR1"}
    (tmp_path / name).write_bytes(noise.get(name, b""))
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        open_source(tmp_path / name)


def test_a_parquet_manifest_without_its_columns_is_a_data_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["1.jpg"]}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="has the columns file, but needs path and label"):
        open_source(tmp_path / "m.parquet")


# -- Refusals ----------------------------------------------------------------------------------


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no .*photos\. Give a folder"):
        open_source(tmp_path / "photos")


def test_a_file_that_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is neither a folder, an archive .* nor a manifest"):
        open_source(table(tmp_path, "hello", "notes.txt"))


@pytest.mark.parametrize("names", [[], ["a/notes.txt", "b/notes.txt"], ["1.jpg", "2.jpg"]])
def test_no_pictures_where_they_belong(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match="No pictures found in .*Expected one folder a class"):
        open_source(touch(tmp_path, *names))


@pytest.mark.parametrize("names", [["a/1.jpg", "a/2.jpg"], ["train/a/1.jpg", "valid/a/2.jpg"]])
def test_one_class_alone_cannot_be_divided(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(DataError, match="Only one class was found in .*: 'a'"):
        divide(open_source(touch(tmp_path, *names)), seed=0)


def test_splits_without_a_training_folder(tmp_path: Path) -> None:
    touch(tmp_path, "valid/a/1.jpg", "test/b/2.jpg")
    with pytest.raises(DataError, match="holds test, valid but no train folder"):
        open_source(tmp_path)


def test_a_name_that_is_not_text_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/b/caf\xe9.jpg")).touch()
    except OSError:
        pytest.skip("this file system only takes UTF-8 names")
    with pytest.raises(DataError, match=r"caf\\xe9\.jpg' is not valid UTF-8"):
        open_source(tmp_path)
