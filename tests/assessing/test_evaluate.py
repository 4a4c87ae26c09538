"""Figures of a bundle on a split: the training's own division, and data of other shapes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from vizsla import evaluate, train
from vizsla.assessing.bundle import BundleEvaluation
from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.errors import DataError, SettingError
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe

FIGURES = ("loss", "accuracy", "top5_accuracy", "macro_f1")


def _assert_same_figures(result: BundleEvaluation, run: RunFolder, split: str) -> None:
    expected = run.evaluation(split)
    assert expected is not None
    assert result.split == split
    facts = result.to_dict()
    for name in FIGURES:
        assert facts[name] == pytest.approx(expected[name], abs=1e-4)
    assert facts["confusion"] == expected["confusion"]
    assert facts["pictures"] == expected["pictures"]
    assert [row["label"] for row in facts["per_class"]] == [
        row["label"] for row in expected["per_class"]
    ]


@pytest.mark.parametrize("split", ["valid", "test"])
def test_figures_are_those_of_the_training(
    finished_run: RunFolder, dogs: DrawnDataset, split: str
) -> None:
    _assert_same_figures(evaluate(finished_run.path, dogs.folder, split=split), finished_run, split)


def test_test_split_is_the_default(finished_run: RunFolder, dogs: DrawnDataset) -> None:
    assert evaluate(finished_run.bundle, dogs.folder).split == "test"


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undivided") / "dogs"
    return draw_dataset(
        folder, breeds=3, pictures_per_breed=16, size_px=64, seed=4, splits=False
    ).folder


@pytest.fixture(scope="module")
def divided_by_seed(undivided: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A training that divided its pictures itself, with a seed that is not the default."""
    recipe = Recipe(
        model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=1, workers=0, seed=5
    )
    return train(undivided, recipe, runs=tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_undivided_data_is_divided_as_the_training_did(
    divided_by_seed: RunFolder, undivided: Path, split: str
) -> None:
    result = evaluate(divided_by_seed.path, undivided, split=split)
    _assert_same_figures(result, divided_by_seed, split)


def test_undivided_data_elsewhere_under_other_names_has_no_test_split(
    divided_by_seed: RunFolder, undivided: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(undivided, tmp_path / "copy"))
    assert evaluate(divided_by_seed.path, copy).split == "test"  # the place makes no difference
    next(copy.rglob("*.jpg")).rename(next(copy.rglob("*.jpg")).with_name("new.jpg"))
    with pytest.raises(DataError, match="no telling which are its test pictures.*--split all"):
        evaluate(divided_by_seed.path, copy, split="test")
    result = evaluate(divided_by_seed.path, copy)
    assert result.split == "all"
    assert result.metrics.pictures == 48


def test_manifest_without_the_splits_it_was_trained_with_is_told(
    finished_run: RunFolder, dogs: DrawnDataset, tmp_path: Path
) -> None:
    shutil.copytree(dogs.folder, tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "pictures.csv"
    with (finished_run.path / "catalogue.csv").open(newline="") as file:
        rows = [(row["path"], row["label"]) for row in csv.DictReader(file)]
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    with pytest.raises(DataError, match="not divided into splits"):
        evaluate(finished_run.path, manifest, split="test")
    assert evaluate(finished_run.path, manifest).split == "all"


def test_validation_pictures_that_the_training_set_aside_are_found_again(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    data = tmp_path / "dogs"
    for split in ("train", "test"):
        shutil.copytree(dogs.folder / split, data / split)
    recipe = Recipe(
        model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=1, workers=0
    )
    run = train(data, recipe, runs=tmp_path / "runs")
    for split in ("valid", "test"):
        _assert_same_figures(evaluate(run.path, data, split=split), run, split)


def test_unknown_classes_are_told(
    finished_run: RunFolder, dogs: DrawnDataset, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(dogs.folder / "test", tmp_path / "copy"))
    (copy / dogs.classes[0]).rename(copy / "004.Cat")
    with pytest.raises(DataError, match=r"3 classes and the model 3; it does not know '004\.Cat'"):
        evaluate(finished_run.path, copy, split="all")


def test_some_of_the_classes_are_enough(
    finished_run: RunFolder, dogs: DrawnDataset, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(dogs.folder / "test", tmp_path / "copy"))
    shutil.rmtree(copy / dogs.classes[0])
    result = evaluate(finished_run.path, copy)
    whole = evaluate(finished_run.path, dogs.folder, split="test")
    assert result.split == "all"
    assert not result.confusion[0].any()
    assert np.array_equal(result.confusion[1:], whole.confusion[1:])
    assert result.metrics.pictures == 8


@pytest.mark.parametrize("split", ["", "tests", "Train"])
def test_unknown_split_is_told(finished_run: RunFolder, dogs: DrawnDataset, split: str) -> None:
    with pytest.raises(SettingError, match=f"split is '{split}', but must be one of train, valid"):
        evaluate(finished_run.path, dogs.folder, split=split)


def test_split_without_pictures_is_told(
    finished_run: RunFolder, dogs: DrawnDataset, tmp_path: Path
) -> None:
    shutil.copytree(dogs.folder / "train", tmp_path / "train")
    with pytest.raises(DataError, match="no pictures in its test split; try --split all"):
        evaluate(finished_run.path, tmp_path, split="test")


def test_picture_that_does_not_decode_is_counted_and_the_rest_judged(
    finished_run: RunFolder, dogs: DrawnDataset, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(dogs.folder / "test", tmp_path / "copy"))
    broken = sorted(copy.rglob("*.jpg"))[5]
    broken.write_bytes(broken.read_bytes()[:60])
    result = evaluate(finished_run.path, copy)
    assert result.metrics.pictures == 11
    (problem,) = result.problems
    assert problem.path == broken.relative_to(copy).as_posix()
    assert problem.action == "skipped"
    assert problem.problem
    assert result.to_dict()["skipped"][0]["path"] == problem.path


def test_truncated_training_pictures_are_counted(finished_run: RunFolder, tmp_path: Path) -> None:
    drawn = draw_dataset(
        tmp_path / "dogs",
        breeds=3,
        pictures_per_breed=8,
        size_px=64,
        seed=1,
        faults=Faults(truncated=3),
    )
    result = evaluate(finished_run.path, drawn.folder, split="train")
    assert {problem.path for problem in result.problems} == set(drawn.truncated)


def test_nothing_that_decodes_is_an_error(finished_run: RunFolder, tmp_path: Path) -> None:
    for name in finished_run.facts()["data"]["classes"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the 3 pictures of the all split could be decoded"):
        evaluate(finished_run.path, tmp_path)
