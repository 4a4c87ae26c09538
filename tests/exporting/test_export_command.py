"""`vizsla export` as a person types it: what it prints, and its exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vizsla.bundle.format import read_facts
from vizsla.cli import run as vizsla
from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run(finished_run: RunFolder, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run.path, tmp_path / "run"))


def test_export_tells_what_it_did_and_the_bundle_answers(
    run: Path, dogs: DrawnDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        vizsla(["export", str(run), "--to", "onnx", "--quantize", "int8", "--max-loss", "1"]) == 0
    )
    told = capsys.readouterr().out
    folder = run / "bundle-int8"
    verified = read_facts(folder).export["verification"]
    assert f"source    {run}" in told
    assert "calibrated on 12 valid, verified on 12 test, of the run run" in told
    for name in ("original", "export"):
        assert f"{verified[name]['accuracy']:.4f}" in told
    assert f"{verified['agreement']:.1%}" in told
    assert "time of 16 pictures" in told
    assert f"bundle    {folder}" in told
    assert told.rstrip().endswith(f"vizsla serve {folder}")
    picture = next(Path(dogs.folder, "test").rglob("*.jpg"))
    assert vizsla(["predict", str(folder), str(picture)]) == 0
    assert vizsla(["evaluate", str(folder), str(dogs.folder)]) == 0
    assert f"test:accuracy={verified['export']['accuracy']:.6f}" in capsys.readouterr().out


def test_data_and_output_are_taken(
    run: Path, dogs: DrawnDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.move(run / "bundle", tmp_path / "alone"))
    flags = ["--data", str(dogs.folder), "--output", str(tmp_path / "new")]
    assert vizsla(["export", str(bundle), "--to", "torch-export", *flags]) == 0
    assert (tmp_path / "new" / "model.pt2").is_file()
    assert f"file      {tmp_path / 'new' / 'model.pt2'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "has its ONNX file already"),
        (["--to", "keras"], "keras"),
        (["--quantize", "int4"], "int4"),
        (["--prune", "0"], "prune is 0"),
        (["--prune", "0.96"], "prune is 0.96"),
        (["--quantize", "int8", "--max-loss", "2"], "max_loss is 2"),
        (["--quantize", "int8", "--data", "nowhere"], "There is no nowhere"),
        (["--quantize", "int8", "--output", "."], "is there already"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    assert vizsla(["export", str(run), *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vizsla: ")
    assert message in told
    assert len(told.splitlines()) == 1
    assert sorted(run.rglob("*")) == before


def test_no_bundle_and_a_damaged_one_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vizsla(["export", str(tmp_path / "none"), "--quantize", "int8"]) == 2
    assert "There is no" in capsys.readouterr().err
    (run / "bundle" / "model.onnx").write_bytes(b"damaged")
    assert vizsla(["export", str(run), "--quantize", "int8"]) == 2
    assert "model.onnx is not the file" in capsys.readouterr().err


def test_what_loses_too_much_is_exit_code_1(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.rglob("*"))
    flags = ["--prune", "0.9", "--prune-method", "magnitude", "--recovery-epochs", "0"]
    assert vizsla(["export", str(run), *flags]) == 1
    told = capsys.readouterr().err
    assert "Nothing was written" in told
    assert "Raise --max-loss, prune less, or recover for longer" in told
    assert sorted(run.rglob("*")) == before
