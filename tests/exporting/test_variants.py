"""An export is a new bundle that answers, verified against its source, which is left as it was."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vizsla import evaluate, load_bundle, train
from vizsla.api import export
from vizsla.bundle.format import check_files, describe_files, read_facts
from vizsla.bundle.predictor import Predictor
from vizsla.checksum import sha256_of
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import BundleError, DataError, InputError, SettingError, WorkError
from vizsla.exporting.pictures import find_pictures
from vizsla.exporting.settings import ExportSettings
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe

LENIENT = 0.5  # twelve test pictures: one answer more or less is eight points


@pytest.fixture(scope="module")
def run(finished_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the module's own, beside whose bundle exports lie."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    return RunFolder(Path(shutil.copytree(finished_run.path, folder)))


@pytest.fixture(scope="module")
def int8(run: RunFolder) -> Path:
    return export(run.path, quantize="int8", max_loss=LENIENT)


def _pictures(dogs: DrawnDataset, split: str = "test") -> list[Path]:
    return sorted(Path(dogs.folder, split).rglob("*.jpg"))


def _probabilities(predictor: Predictor, paths: list[Path]) -> np.ndarray:
    return predictor.probabilities(np.stack([predictor.prepare(path) for path in paths]))


def test_int8_is_a_whole_bundle_beside_its_source(run: RunFolder, int8: Path) -> None:
    assert int8 == run.path / "bundle-int8"
    facts = read_facts(int8)
    check_files(int8, facts)
    names = {path.name for path in int8.iterdir()}
    assert names == {"bundle.json", "card.md", "code", "model.onnx"}
    assert dict(facts.files) == describe_files(int8)
    assert not [path for path in run.path.iterdir() if path.name.endswith(".part")]
    assert facts.classes == read_facts(run.bundle).classes
    assert (int8 / "model.onnx").stat().st_size < (run.bundle / "model.onnx").stat().st_size


def test_source_is_left_as_it_was(run: RunFolder, int8: Path, finished_run: RunFolder) -> None:
    assert describe_files(run.bundle) == describe_files(finished_run.bundle)
    assert sha256_of(run.bundle / "bundle.json") == sha256_of(finished_run.bundle / "bundle.json")
    assert "export" not in json.loads((run.bundle / "bundle.json").read_text())


def test_figures_in_the_bundle_are_those_of_its_files(
    run: RunFolder, int8: Path, dogs: DrawnDataset
) -> None:
    made = read_facts(int8).export
    verified = made["verification"]
    assert made["made_from"] == sha256_of(run.bundle / "bundle.json")
    assert (made["format"], made["quantized"], made["pruned"]) == ("onnx", "int8", None)
    assert (verified["split"], verified["pictures"]) == ("test", 12)
    before, after = (
        _probabilities(load_bundle(folder), _pictures(dogs)) for folder in (run.bundle, int8)
    )
    same = (before.argmax(axis=1) == after.argmax(axis=1)).mean()
    assert verified["agreement"] == pytest.approx(same)
    largest = np.abs(before - after).max()
    assert verified["largest_probability_difference"] == pytest.approx(largest, abs=1e-6)
    assert 1e-6 < largest < 0.2
    for name, folder in (("original", run.bundle), ("export", int8)):
        figures = verified[name]
        again = asdict(evaluate(folder, dogs.folder, split="test").metrics)
        assert {key: figures[key] for key in again} == pytest.approx(again)
        assert figures["bytes"] == (folder / "model.onnx").stat().st_size
        assert set(figures["latency_ms"]) == {"1", "16"}
        assert min(figures["latency_ms"].values()) > 0


def test_metrics_are_of_the_export_and_not_of_its_source(
    int8: Path, run: RunFolder, dogs: DrawnDataset
) -> None:
    metrics = read_facts(int8).metrics
    assert list(metrics) == ["test"]
    again = asdict(evaluate(int8, dogs.folder, split="test").metrics)
    assert metrics["test"] == pytest.approx(again)
    assert metrics["test"]["loss"] != read_facts(run.bundle).metrics["test"]["loss"]


def test_card_tells_of_the_export(int8: Path) -> None:
    verified = read_facts(int8).export["verification"]
    card = (int8 / "card.md").read_text(encoding="utf-8")
    assert "## Exported: onnx, int8" in card
    row = [f"{verified[name]['accuracy']:.4f}" for name in ("original", "export")]
    assert f"| accuracy | {row[0]} | {row[1]} |" in card
    assert f"{verified['agreement']:.1%} of the pictures" in card


def test_int8_bundle_answers_one_and_many(int8: Path, dogs: DrawnDataset) -> None:
    predictor = load_bundle(int8, check=True)
    paths = _pictures(dogs)
    many = predictor.predict(list(paths))
    one = predictor.predict(paths[3])
    assert one.predicted_label == many[3].predicted_label
    assert one.confidence == pytest.approx(many[3].confidence, abs=1e-5)


def test_pruned_bundle_can_be_exported_on(run: RunFolder, dogs: DrawnDataset) -> None:
    pytest.importorskip("torch_pruning")
    told: list[tuple[str, str]] = []
    pruned = export(
        run.path,
        prune=0.3,
        recovery_epochs=1,
        max_loss=1,
        tell=lambda stage, message: told.append((stage, message)),
    )
    assert pruned.name == "bundle-pruned30"
    facts = read_facts(pruned)
    check_files(pruned, facts)
    assert {"model.safetensors", "model.pth"} <= set(facts.files)
    made = facts.export["pruned"]
    assert (made["amount"], made["method"], made["recovery_epochs"]) == (0.3, "structured", 1)
    state = torch.load(pruned / "model.pth", weights_only=True)
    source = torch.load(run.bundle / "model.pth", weights_only=True)
    assert sum(map(torch.numel, state.values())) < sum(map(torch.numel, source.values()))
    assert {"pictures", "prune", "recover", "verify"} == {stage for stage, _ in told}
    both = export(pruned, quantize="int8", max_loss=1)
    assert both.name == "bundle-pruned30-int8"
    assert read_facts(both).export["pruned"] == made
    assert read_facts(both).export["made_from"] == sha256_of(pruned / "bundle.json")
    before, after = (
        _probabilities(load_bundle(folder), _pictures(dogs)) for folder in (pruned, both)
    )
    assert np.abs(before - after).max() < 0.2
    script = export(pruned, to="torchscript")
    assert script.name == "bundle-pruned30-torchscript"
    answers = _probabilities(load_bundle(script), _pictures(dogs))
    assert np.abs(before - answers).max() < 1e-5


def test_network_that_recovered_in_bf16_is_exported_in_float32(
    moved: Path, dogs: DrawnDataset
) -> None:
    facts = json.loads((moved / "bundle.json").read_text())
    facts["recipe"]["precision"] = "bf16"
    (moved / "bundle.json").write_text(json.dumps(facts))
    folder = export(
        moved,
        prune=0.1,
        prune_method="magnitude",
        recovery_epochs=1,
        data=dogs.folder,
        max_loss=1,
    )
    graph = onnx.load(str(folder / "model.onnx")).graph
    assert onnx.TensorProto.BFLOAT16 not in {one.data_type for one in graph.initializer}
    assert not [node for node in graph.node if node.op_type == "Cast"]


def test_magnitude_pruning_sets_weights_to_zero(run: RunFolder) -> None:
    folder = export(run.path, prune=0.5, prune_method="magnitude", recovery_epochs=0, max_loss=1)
    assert folder.name == "bundle-pruned50-magnitude"
    state = torch.load(folder / "model.pth", weights_only=True)
    weights = torch.cat([value.flatten() for value in state.values() if value.ndim == 4])
    assert (weights == 0).float().mean() > 0.4


@pytest.mark.parametrize(
    ("to", "file"), [("torchscript", "model.torchscript.pt"), ("torch-export", "model.pt2")]
)
def test_torch_formats_lie_beside_the_network_that_answers(
    run: RunFolder, dogs: DrawnDataset, to: str, file: str
) -> None:
    folder = export(run.path, to=to)
    facts = read_facts(folder)
    check_files(folder, facts)
    assert {file, "model.onnx", "model.safetensors"} <= set(facts.files)
    assert facts.files["model.onnx"] == read_facts(run.bundle).files["model.onnx"]
    assert facts.metrics == read_facts(run.bundle).metrics  # of what answers
    verified = facts.export["verification"]
    assert verified["agreement"] == 1
    assert verified["largest_probability_difference"] < 1e-4
    assert verified["export"]["bytes"] == (folder / file).stat().st_size


def test_tflite_lies_beside_the_network_that_answers(run: RunFolder) -> None:
    pytest.importorskip("litert_torch")
    folder = export(run.path, to="tflite", quantize="int8", max_loss=LENIENT)
    assert folder.name == "bundle-tflite-int8"
    assert {"model.tflite", "model.onnx"} <= set(read_facts(folder).files)


@pytest.mark.parametrize("limit", [{"max_loss": 0}, {"max_loss": 0.001}])
def test_what_loses_too_much_is_refused_and_leaves_nothing(
    run: RunFolder, tmp_path: Path, limit: dict[str, float]
) -> None:
    """A network pruned to a tenth that does not learn anew."""
    with pytest.raises(WorkError, match=r"accuracy of 0\.\d+ instead of .* Nothing was written"):
        export(
            run.path,
            prune=0.9,
            prune_method="magnitude",
            recovery_epochs=0,
            output=tmp_path / "new",
            **limit,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def moved(run: RunFolder, tmp_path: Path) -> Path:
    """The bundle alone, away from its run."""
    return Path(shutil.copytree(run.bundle, tmp_path / "bundle"))


def test_bundle_away_from_its_run_takes_given_pictures(moved: Path, dogs: DrawnDataset) -> None:
    with pytest.raises(DataError, match=r"does not lie in its run.*--data"):
        export(moved, quantize="int8")
    folder = export(moved, quantize="int8", data=dogs.folder, max_loss=LENIENT)
    assert read_facts(folder).export["verification"]["split"] == "test"
    assert folder == moved.with_name("bundle-int8")


def test_undivided_pictures_are_halved(moved: Path, dogs: DrawnDataset) -> None:
    pictures = find_pictures(moved, read_facts(moved), Path(dogs.folder, "train"))
    calibrated = pictures.calibration_rows(1000)
    verified = pictures.verification_rows()
    assert not set(calibrated) & set(verified)
    assert len(calibrated) + len(verified) == len(pictures.catalogue)
    assert not pictures.is_own
    with pytest.raises(DataError, match=r"no telling which it may learn from.*--recovery-epochs 0"):
        export(moved, prune=0.2, prune_method="magnitude", data=Path(dogs.folder, "train"))


def test_calibration_pictures_are_balanced_over_the_classes(run: RunFolder) -> None:
    pictures = find_pictures(run.bundle, read_facts(run.bundle), None)
    rows = pictures.calibration_rows(9)
    catalogue = pictures.catalogue
    assert np.bincount(catalogue.labels[rows]).tolist() == [3, 3, 3]
    assert set(rows) <= set(catalogue.rows("valid").tolist())
    assert len(set(rows)) == 9


def test_no_test_split_is_told(moved: Path, dogs: DrawnDataset, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        shutil.copytree(Path(dogs.folder, split), tmp_path / "data" / split)
    told: list[str] = []
    folder = export(
        moved,
        quantize="int8",
        data=tmp_path / "data",
        max_loss=LENIENT,
        tell=lambda stage, message: told.append(message),
    )
    assert read_facts(folder).export["verification"]["split"] == "valid"
    assert any("there is no test split" in line for line in told)


def test_pictures_that_do_not_decode_are_left_out_unless_all_are(
    moved: Path, dogs: DrawnDataset, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(dogs.folder, tmp_path / "data"))
    pictures = sorted(Path(data, "test").rglob("*.jpg"))
    pictures[0].write_bytes(b"no picture")
    told: list[str] = []
    folder = export(
        moved,
        quantize="int8",
        data=data,
        max_loss=LENIENT,
        tell=lambda stage, message: told.append(message),
    )
    assert read_facts(folder).export["verification"]["pictures"] == 11
    assert "left out 1 picture that did not decode" in told
    shutil.rmtree(folder)
    for path in data.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the 12 pictures .* could be decoded"):
        export(moved, quantize="int8", data=data, max_loss=LENIENT)
    assert not folder.exists()


def test_int8_is_no_source(int8: Path) -> None:
    with pytest.raises(BundleError, match="is an int8 export already"):
        export(int8, to="torchscript")


def test_damaged_source_is_refused(moved: Path, dogs: DrawnDataset) -> None:
    data = bytearray((moved / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (moved / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"model\.safetensors is not the file"):
        export(moved, quantize="int8", data=dogs.folder)


def test_source_without_weights_is_told(moved: Path, dogs: DrawnDataset) -> None:
    facts = json.loads((moved / "bundle.json").read_text())
    del facts["files"]["model.safetensors"]
    (moved / "bundle.json").write_text(json.dumps(facts))
    (moved / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"has no model\.safetensors"):
        export(moved, to="torchscript", data=dogs.folder)


def test_output_that_is_there_is_refused(run: RunFolder, int8: Path, tmp_path: Path) -> None:
    before = describe_files(int8)
    with pytest.raises(SettingError, match="is there already.*--output"):
        export(run.path, quantize="int8")
    assert describe_files(int8) == before
    with pytest.raises(SettingError, match="There is no folder .*nowhere"):
        export(run.path, quantize="int8", output=tmp_path / "nowhere" / "new")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "has its ONNX file already"),
        ({"to": "tensorflow"}, "to is 'tensorflow'"),
        ({"quantize": "int4"}, "quantize is 'int4'"),
        ({"prune": 0}, "prune is 0"),
        ({"prune": 0.96}, r"prune is 0\.96"),
        ({"prune": float("nan")}, "prune is nan"),
        ({"quantize": "int8", "to": "torchscript"}, "int8 is for onnx and tflite alone"),
        ({"quantize": "int8", "max_loss": -0.1}, r"max_loss is -0\.1"),
        ({"quantize": "int8", "calibration_pictures": 1}, "calibration_pictures is 1"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ExportSettings(**settings)  # type: ignore[arg-type]


def test_killed_export_leaves_no_bundle_and_the_next_one_succeeds(
    run: RunFolder, tmp_path: Path
) -> None:
    code = """
import sys, time
from vizsla.api import export
def tell(stage, message):
    if stage == "verify":
        print("there", flush=True)
        time.sleep(60)
export(sys.argv[1], quantize="int8", max_loss=0.5, output=sys.argv[2], tell=tell)
"""
    target = tmp_path / "new"
    command = [sys.executable, "-c", code, str(run.path), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    assert not target.exists()
    with pytest.raises(InputError):
        load_bundle(target)
    assert load_bundle(export(run.path, quantize="int8", max_loss=LENIENT, output=target)).folder
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_temperature_is_kept_and_both_are_compared_under_it(
    tmp_path: Path, dogs: DrawnDataset
) -> None:
    recipe = Recipe(
        model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=1, workers=0,
        precision="fp32",
    )  # fmt: skip
    run = train(dogs.folder, recipe, runs=tmp_path / "runs")
    facts = json.loads((run.path / "bundle" / "bundle.json").read_text())
    facts["temperature"] = 0.25
    (run.path / "bundle" / "bundle.json").write_text(json.dumps(facts))
    folder = export(run.path, quantize="int8", max_loss=1)
    before, after = (
        _probabilities(load_bundle(one), _pictures(dogs)) for one in (run.path / "bundle", folder)
    )
    assert read_facts(folder).temperature == 0.25
    difference = read_facts(folder).export["verification"]["largest_probability_difference"]
    assert difference == pytest.approx(np.abs(before - after).max(), abs=1e-6)
