"""Exports that go wrong from outside: each ends with a sentence, and leaves what was there."""

from __future__ import annotations

import copy
import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from vizsla.api import export
from vizsla.bundle.format import ONNX_FILE, check_files, read_facts
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import (
    BundleError,
    DataError,
    DependencyError,
    RunError,
    SettingError,
    StorageError,
    WorkError,
)
from vizsla.exporting import onnx, quantize, variants
from vizsla.exporting.pictures import find_pictures
from vizsla.exporting.settings import ExportSettings
from vizsla.exporting.tflite import write_tflite
from vizsla.runs.folder import RunFolder
from vizsla.tuning.study import Study

# Takes a moment and, at such an amount, no accuracy.
LIGHT: dict[str, Any] = {"prune": 0.001, "prune_method": "magnitude", "recovery_epochs": 0}


@pytest.fixture
def run(finished_run: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished_run.path, tmp_path / "run")))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_second_export_to_the_same_folder_is_told_and_costs_the_first_nothing(
    run: RunFolder,
) -> None:
    refused: list[str] = []

    def again(stage: str, message: str) -> None:
        if stage == "verify":
            with pytest.raises(SettingError, match="is being made by another process") as told:
                export(run.path, max_loss=1, **LIGHT)
            refused.append(str(told.value))

    folder = export(run.path, max_loss=1, tell=again, **LIGHT)
    assert len(refused) == 1
    check_files(folder, read_facts(folder))
    assert (folder / "model.pth").is_file()


@pytest.mark.parametrize("written", ["model.onnx", "weights"])
def test_disk_that_is_full_is_told_with_what_to_do(
    run: RunFolder, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow beyond some kilobytes, from the network on or from its weights on; torch and
    safetensors each have their own error for that."""
    before, limits = _entries(run.path), resource.getrlimit(resource.RLIMIT_FSIZE)
    exported, weights = onnx.export_onnx, variants.write_weights

    def cramped(write: Any) -> Any:
        def limited(*arguments: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            write(*arguments)

        return limited

    if written == "weights":
        monkeypatch.setattr(variants, "write_weights", cramped(weights))
    else:
        monkeypatch.setattr(onnx, "export_onnx", cramped(exported))
    try:
        with pytest.raises(StorageError) as told:
            export(run.path, max_loss=1, **LIGHT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(told.value).startswith(f"{run.path / 'bundle-pruned0_1-magnitude'} could not be")
    assert "Nothing was exported; free some space" in str(told.value)
    assert "--resume" not in str(told.value)
    assert _entries(run.path) == before


def test_full_disk_for_what_lies_in_between_is_no_failure_of_the_network(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quantize.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(StorageError, match="No space left on device.*free some space there and in"):
        export(run.path, quantize="int8")


def test_folder_that_cannot_be_written_is_told_without_talk_of_space(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="Permission denied.*choose another place") as told:
        export(run.path, **LIGHT)
    assert "space" not in str(told.value)


def test_output_within_the_source_is_refused(run: RunFolder) -> None:
    before = _entries(run.path)
    with pytest.raises(SettingError, match="lies in the bundle .*which stays as it is"):
        export(run.path, output=run.bundle / "new", **LIGHT)
    assert _entries(run.path) == before


def test_network_beside_another_format_is_verified_too(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pruned ONNX file, which answers, is not the network that went into TorchScript."""
    right = onnx.export_onnx

    def wrong(module: Any, *rest: Any) -> None:
        module = copy.deepcopy(module)
        nn.init.zeros_(module.get_classifier().weight)  # always the same answer
        right(module, *rest)

    monkeypatch.setattr(onnx, "export_onnx", wrong)
    with pytest.raises(WorkError, match="Nothing was written"):
        export(run.path, to="torchscript", max_loss=0.05, **LIGHT)


def test_pictures_that_moved_are_asked_for(
    dogs: DrawnDataset, run: RunFolder, tmp_path: Path
) -> None:
    text = (run.path / "run.toml").read_text(encoding="utf-8")
    gone = text.replace(str(dogs.folder.resolve()), str(tmp_path / "gone"))
    assert gone != text
    (run.path / "run.toml").write_text(gone, encoding="utf-8")
    with pytest.raises(DataError, match=r"gone.*--data"):
        export(run.path, **LIGHT)
    assert export(run.path, data=dogs.folder, max_loss=1, **LIGHT).is_dir()


def test_catalogue_that_was_changed_is_not_taken_for_the_runs_own(run: RunFolder) -> None:
    """Its test pictures may be ones that the network has learnt from."""
    lines = run.catalogue.read_text(encoding="utf-8").splitlines()
    swapped = [line[:-5] + "test" if line.endswith("train") else line for line in lines[::3]]
    kept = [line for line in lines if line not in lines[::3]]
    run.catalogue.write_text("\n".join([lines[0], *kept, *swapped[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"catalogue\.csv has been changed since.*--data"):
        export(run.path, **LIGHT)


def test_bundle_of_a_study_has_the_pictures_of_its_trials(
    finished_study: Study, dogs: DrawnDataset, tmp_path: Path
) -> None:
    study = Path(shutil.copytree(finished_study.folder.path, tmp_path / "study"))
    folder = export(study, max_loss=1, **LIGHT)
    assert folder.parent == study
    assert read_facts(folder).export["verification"]["pictures_from"] == "of the study study"
    pictures = find_pictures(folder, read_facts(folder), None)
    assert pictures.is_own
    assert len(pictures.verification_rows()) == 12
    assert pictures.catalogue.root.resolve() == dogs.folder.resolve()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantize": "int8", "prune_method": "magnitude"}, "prune_method is magnitude.*--prune"),
        ({"quantize": "int8", "recovery_epochs": 3}, "recovery_epochs is 3.*--prune"),
        ({"prune": 0.3, "calibration_pictures": 64}, "calibration_pictures is 64.*--quantize"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        ExportSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ({"prune": 0.5}, ["prune less", "--recovery-epochs is 10"], ["calibrate"]),
        ({"quantize": "int8"}, ["--calibration-pictures is 256"], ["prune", "recover", "onnx"]),
        ({"quantize": "int8", "to": "tflite"}, ["--to onnx"], ["prune", "recover"]),
        ({"to": "torchscript"}, [], ["prune", "calibrate"]),
    ],
)
def test_refusal_advises_what_can_help(
    settings: dict[str, Any], said: list[str], unsaid: list[str]
) -> None:
    told = ExportSettings(**settings).ways_out
    assert told.startswith("Raise --max-loss")
    assert all(words in told for words in said)
    assert not any(words in told for words in unsaid)


@pytest.mark.parametrize("name", ["export", "metrics", "recipe", "data", "arguments"])
def test_facts_of_another_kind_are_told_as_damage(run: RunFolder, name: str) -> None:
    facts = json.loads((run.bundle / "bundle.json").read_text(encoding="utf-8"))
    facts[name] = ["int8"]
    (run.bundle / "bundle.json").write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BundleError, match=f"bundle.json is damaged: its {name} is no object"):
        export(run.path, quantize="int8")


def test_missing_package_of_tflite_is_told_before_anything_is_made(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = _entries(run.path)
    monkeypatch.setattr(variants, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    with pytest.raises(DependencyError, match=r"pip install 'vizsla\[tflite\]'"):
        export(run.path, to="tflite")
    assert _entries(run.path) == before


def test_part_of_tflite_that_is_missing_is_no_failure_of_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Litert:
        class config:  # noqa: N801
            show_progress = True

        @staticmethod
        def to_channel_last_io(module: nn.Module, args: list[int]) -> nn.Module:
            raise DependencyError("it needs the package 'ai_edge_quantizer'")

    monkeypatch.setitem(sys.modules, "litert_torch", Litert)  # type: ignore[arg-type]
    with pytest.raises(DependencyError, match="ai_edge_quantizer"):
        write_tflite(nn.Identity(), 8, tmp_path / "model.tflite")


def test_ctrl_c_during_the_recovery_leaves_nothing(run: RunFolder) -> None:
    before = _entries(run.path)
    command = [sys.executable, "-m", "vizsla.cli", "export", str(run.path), "--prune", "0.1",
               "--prune-method", "magnitude", "--recovery-epochs", "500"]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any("epoch 2" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "vizsla: Stopped during the recovery; nothing was exported.\n"
    assert _entries(run.path) == before


def test_pruned_bundle_is_pruned_again(run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    once = export(run.path, prune=0.3, recovery_epochs=0, max_loss=1)
    twice = export(once, prune=0.3, recovery_epochs=0, max_loss=1)
    assert twice.name == "bundle-pruned30-pruned30"
    counts = [
        read_facts(folder).export["pruned"][f"parameters_{when}"]
        for folder, when in ((once, "before"), (once, "after"), (twice, "before"), (twice, "after"))
    ]
    assert counts[0] > counts[1] == counts[2] > counts[3]
    script = export(twice, to="torchscript", max_loss=0)  # its weights load into its shapes
    assert read_facts(script).export["verification"]["agreement"] == 1
    assert (twice / ONNX_FILE).stat().st_size < (once / ONNX_FILE).stat().st_size
    card = (twice / "card.md").read_text(encoding="utf-8")
    assert f"Pruned from {counts[2]:,} parameters to {counts[3]:,}, recovered for 0 epochs." in card
    assert "30 % of the channels pruned" in card
