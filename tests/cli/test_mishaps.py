"""Trainings that go wrong late, or oddly: each ends with a sentence and leaves what it had."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from vizsla.cli import run as cli
from vizsla.cli.sagemaker import _joined
from vizsla.data.sources import open_source
from vizsla.data.synthetic import DrawnDataset, draw_dataset
from vizsla.runs.folder import list_runs

TOY = ["--model", "test_resnet", "--weights", "none", "--size-px", "64", "--workers", "0"]


def train(data: Path, runs: Path, *more: str) -> int:
    return cli(["train", str(data), "--runs", str(runs), *TOY, *more])


@pytest.fixture
def own_dogs(tmp_path: Path) -> DrawnDataset:
    """Two breeds to spoil."""
    return draw_dataset(tmp_path / "dogs", breeds=2, pictures_per_breed=12, size_px=48)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [('optimizer = "sgd"\n', ["--nesterov"]), ("epochs = 20\n", ["--warmup-epochs", "12"])],
)
def test_flags_are_judged_together_with_the_recipe(
    recipe: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.toml").write_text(recipe)
    # The settings agree, so what is refused is the data, which is not there.
    assert (
        train(tmp_path / "none", tmp_path, "--recipe", str(tmp_path / "recipe.toml"), *flags) == 2
    )
    assert "There is no" in capsys.readouterr().err


def test_a_diverged_training_says_so(
    own_dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--unfreeze", "all", "--optimizer", "sgd", "--lr", "100", "--weight-decay", "10"]
    assert train(own_dogs.folder, tmp_path / "runs", *flags, "--epochs", "6") == 1
    assert "diverged" in capsys.readouterr().err
    (run,) = list_runs(tmp_path / "runs")
    assert run.status() == "failed"
    assert "diverged" in (run.outcome() or {})["reason"]


def test_validation_pictures_that_begin_corrupt_cost_nothing(
    own_dogs: DrawnDataset, tmp_path: Path
) -> None:
    for path in sorted((own_dogs.folder / "valid" / own_dogs.classes[0]).iterdir()):
        spoil(path)
    assert train(own_dogs.folder, tmp_path / "runs", "--unfreeze", "head", "--epochs", "2") == 0
    assert list_runs(tmp_path / "runs")[0].status() == "finished"


def test_a_corrupt_test_picture_is_listed_or_fatal_as_the_policy_says(
    own_dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = min((own_dogs.folder / "test").rglob("*.jpg"))
    spoil(broken)
    flags = ["--unfreeze", "head", "--epochs", "1"]
    assert train(own_dogs.folder, tmp_path / "skip", *flags) == 0
    run = list_runs(tmp_path / "skip")[0]
    assert [problem.path.rsplit("/")[-1] for problem in run.problems()] == [broken.name]
    assert [finding["rule"] for finding in run.findings()] == ["corrupt_pictures"]
    assert train(own_dogs.folder, tmp_path / "fail", *flags, "--corrupt", "fail") == 2
    assert broken.name in capsys.readouterr().err


def test_a_batch_of_one_names_the_batch_size(
    own_dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A network whose last stage is one pixel wide, which batch norm cannot train on alone.
    flags = ["--unfreeze", "all", "--batch-size", "1", "--size-px", "32"]
    toy = [word for word in TOY if word not in ("--size-px", "64")]
    code = cli(["train", str(own_dogs.folder), "--runs", str(tmp_path / "runs"), *toy, *flags])
    assert code == 2
    assert "batch_size" in capsys.readouterr().err


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("airplane", "bus", "train"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "1.png")
    catalogue = open_source(tmp_path)
    assert [label.folder for label in catalogue.classes] == ["airplane", "bus", "train"]


def test_a_channel_of_splits_beside_a_test_channel_trains_on_no_test_picture(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    channels = {"train": str(dogs.folder), "test": str(dogs.folder / "test")}
    with _joined(channels, tmp_path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert f"/{row['split']}/" in row["path"]
    assert len({row["path"] for row in rows}) == len(rows)
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
