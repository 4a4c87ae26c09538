"""A catalogue survives its file, knows itself by its fingerprint, and takes a model's classes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.data.catalogue import Catalogue, build, natural_key
from vizsla.data.sources import open_source, read_manifest
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import DataError
from vizsla.records import ClassLabel

# Any name that a file may have; NUL and slash are no system's to give.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=12)
ROWS = st.lists(st.tuples(NAMES, NAMES, st.integers(0, 2)), min_size=1, max_size=12)


def catalogue_of(rows: list[tuple[str, str, int]]) -> Catalogue:
    """Rows of file name, class folder and split; the first one made a training picture."""
    rows = [(*rows[0][:2], 0), *rows[1:]]
    paths = [f"{folder}/{name}" for name, folder, _ in rows]
    return build(Path("root"), paths, [row[1] for row in rows], [row[2] for row in rows])


def classes(*names: str) -> tuple[ClassLabel, ...]:
    return tuple(ClassLabel.from_folder(name) for name in names)


SMALL = [("1.jpg", "001.A", 0), ("2.jpg", "002.B", 0), ("3.jpg", "001.A", 1), ("4.jpg", "002.B", 2)]


def test_a_written_manifest_is_read_again(dogs: DrawnDataset, tmp_path: Path) -> None:
    written = open_source(dogs.folder)
    written.write_csv(tmp_path / "catalogue.csv")
    read = open_source(tmp_path / "catalogue.csv")
    assert read.paths == written.paths
    assert read.classes == written.classes
    assert (read.labels == written.labels).all()
    assert (read.splits == written.splits).all()
    assert read.root == tmp_path


def test_an_undivided_catalogue_stays_undivided_in_its_file(tmp_path: Path) -> None:
    build(tmp_path, ["a/1.jpg", "b/2.jpg"], ["a", "b"], [-1, -1]).write_csv(tmp_path / "c.csv")
    assert not open_source(tmp_path / "c.csv").is_split


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_name_survives_the_file(rows: list[tuple[str, str, int]]) -> None:
    written = catalogue_of(rows)
    with tempfile.TemporaryDirectory() as folder:
        written.write_csv(Path(folder) / "catalogue.csv")
        read = read_manifest(Path(folder) / "catalogue.csv", exact=True)
    assert list(read.paths) == list(written.paths)
    assert read.classes == written.classes
    assert read.fingerprint(divided=True) == written.fingerprint(divided=True)


@settings(max_examples=40, deadline=None)
@given(ROWS.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_rows_changes_no_class(
    pair: tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]],
) -> None:
    one, two = (
        build(Path("root"), [f"{r[1]}/{r[0]}" for r in rows], [r[1] for r in rows], [0] * len(rows))
        for rows in pair
    )
    assert one.classes == two.classes
    assert one.fingerprint() == two.fingerprint()


def test_the_fingerprint_ignores_order_and_root() -> None:
    one = catalogue_of(SMALL)
    two = build(
        Path("elsewhere"),
        one.paths[::-1],
        [one.classes[label].folder for label in one.labels[::-1]],
        one.splits[::-1].tolist(),
    )
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint(divided=True) == two.fingerprint(divided=True)


def test_the_fingerprint_tells_another_picture_another_label_and_another_division() -> None:
    one = catalogue_of(SMALL)
    renamed = build(one.root, ["001.A/x.jpg", *one.paths[1:]], [r[1] for r in SMALL], [0, 0, 1, 2])
    relabelled = build(one.root, one.paths, ["001.A", "002.B", "002.B", "002.B"], [0, 0, 1, 2])
    moved = build(one.root, one.paths, [row[1] for row in SMALL], [0, 0, 1, 1])
    assert len({c.fingerprint() for c in (one, renamed, relabelled)}) == 3
    assert moved.fingerprint() == one.fingerprint()
    assert moved.fingerprint(divided=True) != one.fingerprint(divided=True)


def test_rows_and_counts_are_those_of_the_split() -> None:
    catalogue = catalogue_of(SMALL)
    assert [catalogue.rows(split).tolist() for split in ("train", "valid", "test", "all")] == [
        [0, 1],
        [2],
        [3],
        [0, 1, 2, 3],
    ]
    assert catalogue.counts("valid").tolist() == [1, 0]


# -- The classes of a trained model ------------------------------------------------------------


def test_a_models_classes_set_the_labels() -> None:
    theirs = classes("003.C", "002.B", "001.A")
    seen = catalogue_of(SMALL).with_classes(theirs)
    assert seen.classes == theirs
    assert seen.labels.tolist() == [2, 1, 2, 1]
    assert catalogue_of(SMALL).fingerprint() == seen.fingerprint()


def test_a_class_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(
        DataError, match=r"have 2 classes and the model 2; it does not know '002.B'"
    ):
        catalogue_of(SMALL).with_classes(classes("001.A", "009.Z"))


def test_many_unknown_classes_are_named_in_part() -> None:
    rows = [("1.jpg", f"{number}.X", 0) for number in range(9)]
    with pytest.raises(DataError, match=r"'0.X', '1.X', '2.X' and 6 more\. Evaluate"):
        catalogue_of(rows).with_classes(classes("a", "b"))


# -- Natural order -----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5000), unique=True), st.sampled_from(["", "dog ", "Å-"]))
def test_numbers_sort_as_numbers(numbers: list[int], prefix: str) -> None:
    names = [f"{prefix}{number}.x" for number in numbers]
    assert sorted(names, key=natural_key) == [f"{prefix}{number}.x" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=8), unique=True))
def test_any_names_have_one_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)
