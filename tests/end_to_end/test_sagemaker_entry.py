"""The script that a SageMaker training container runs."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vizsla import load_bundle
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import list_runs

SCRIPT = Path(__file__).resolve().parents[2] / "train_model.py"
SMALL = ["--model", "test_vit", "--weights", "none", "--size_px", "64", "--workers", "0"]
SMALL += ["--epochs", "1", "--batch_size", "16", "--unfreeze", "all"]

Script = Callable[..., int]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """Run train_model.py with `SM_*` variables and arguments; the exit code."""
    for name in [name for name in os.environ if name.startswith("SM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **places: Path) -> int:
        for name, place in places.items():
            monkeypatch.setenv(f"SM_{name}", str(place))
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        assert isinstance(left.value.code, int)
        return left.value.code

    return run


def assert_model(folder: Path, dogs: DrawnDataset) -> None:
    """A bundle at the root of the folder, which answers."""
    assert {"model.pth", "bundle.json", "model.onnx"} <= {path.name for path in folder.iterdir()}
    assert (folder / "code" / "inference.py").is_file()
    assert torch.load(folder / "model.pth", weights_only=True)
    answer = load_bundle(folder).predict(min((dogs.folder / "test").rglob("*.jpg")))
    assert f"{answer.predicted_label}.{answer.class_name}" in dogs.classes


def test_one_channel_of_splits(
    script: Script, dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL_DIR": tmp_path / "model", "OUTPUT_DATA_DIR": tmp_path / "output"}
    assert script(*SMALL, "--lr", "0.001", CHANNEL_TRAIN=dogs.folder, **places) == 0
    assert_model(tmp_path / "model", dogs)
    printed = capsys.readouterr().out
    assert "validation:accuracy=" in printed
    assert "test:accuracy=" in printed
    (run,) = list_runs(tmp_path / "output" / "runs")
    assert run.facts()["recipe"]["lr"] == 0.001
    assert run.facts()["recipe"]["batch_size"] == 16


def test_a_channel_for_each_split(script: Script, dogs: DrawnDataset, tmp_path: Path) -> None:
    channels = {
        f"CHANNEL_{name.upper()}": dogs.folder / name for name in ("train", "valid", "test")
    }
    assert script(*SMALL, MODEL_DIR=tmp_path / "model", **channels) == 0
    assert_model(tmp_path / "model", dogs)
    (run,) = list_runs(tmp_path / "runs")
    assert run.facts()["data"]["pictures"] == {"train": 48, "valid": 12, "test": 12}
    facts = json.loads((tmp_path / "model" / "bundle.json").read_text())
    assert facts["metrics"]["test"]["pictures"] == 12


def test_a_training_that_was_stopped_goes_on(
    script: Script, dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CHANNEL_TRAIN": dogs.folder, "MODEL_DIR": tmp_path / "model"}
    assert script(*SMALL, **places) == 0
    (run,) = list_runs(tmp_path / "runs")
    shutil.rmtree(run.bundle)
    assert script(*SMALL, **places) == 0
    assert list_runs(tmp_path / "runs") == [run]
    shutil.rmtree(run.bundle)
    assert script(*SMALL, "--seed", "3", **places) == 0
    assert len(list_runs(tmp_path / "runs")) == 2  # other settings are another training


@pytest.mark.parametrize(
    ("missing", "part"),
    [("MODEL_DIR", "SM_MODEL_DIR is not set"), ("CHANNEL_TRAIN", "SM_CHANNEL_TRAIN is not set")],
)
def test_a_missing_variable_is_named(
    script: Script,
    dogs: DrawnDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    part: str,
) -> None:
    places = {"CHANNEL_TRAIN": dogs.folder, "MODEL_DIR": tmp_path / "model"}
    del places[missing]
    assert script(*SMALL, **places) == 2
    errors = capsys.readouterr().err
    assert part in errors
    assert errors.count("\n") == 1


def test_a_channel_that_is_no_folder_is_named(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CHANNEL_TRAIN": tmp_path / "gone", "MODEL_DIR": tmp_path / "model"}
    assert script(*SMALL, **places) == 2
    assert "gone" in capsys.readouterr().err


def test_a_setting_out_of_range_is_named(
    script: Script, dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CHANNEL_TRAIN": dogs.folder, "MODEL_DIR": tmp_path / "model"}
    assert script("--drop_rate", "2", **places) == 2
    assert "drop_rate is 2" in capsys.readouterr().err


def test_a_model_folder_that_cannot_be_made_is_told_of_before_training(
    script: Script, dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    places = {"CHANNEL_TRAIN": dogs.folder, "MODEL_DIR": tmp_path / "file" / "model"}
    assert script(*SMALL, **places) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
