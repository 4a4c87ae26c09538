"""From a bundle to another bundle: smaller, faster, or for another runtime, and verified.

The source is only read. Everything is made in a scratch folder beside the new bundle, held against
the source on real pictures, and put in place by rename; what loses too much is never there. What a
bundle answers with is always its `model.onnx`: an int8 or pruned export *is* that file, and files
for other runtimes lie beside it.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.bundle.format import FACTS_FILE, ONNX_FILE, BundleFacts, check_files, read_facts
from vizsla.bundle.predictor import Predictor, bundle_folder
from vizsla.checksum import sha256_of
from vizsla.data.cache import in_use
from vizsla.data.cores import available_cores
from vizsla.errors import BundleError, DataError, SettingError, StorageError, WorkError
from vizsla.exporting.bundle_files import assemble, storing, write_weights
from vizsla.exporting.comparison import Comparison, compare, judge_export
from vizsla.exporting.fallback import Answers, Limits
from vizsla.exporting.onnx_files import OnnxAnswerer
from vizsla.exporting.pictures import ExportPictures, find_pictures, prepared, prepared_whole
from vizsla.exporting.settings import ExportSettings
from vizsla.extras import require
from vizsla.settings import Recipe
from vizsla.version import __version__
from vizsla.words import counted

# Told of a stage (a word) and what happens in it (a line).
Tell = Callable[[str, str], None]

FORMAT_FILES = {
    "onnx": ONNX_FILE,
    "tflite": "model.tflite",
    "torchscript": "model.torchscript.pt",
    "torch-export": "model.pt2",
}
_WEIGHTS_FILES = ("model.safetensors", "model.pth")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def export_bundle(
    path: Path,
    settings: ExportSettings,
    data: Path | None = None,
    output: Path | None = None,
    tell: Tell = lambda stage, message: None,
) -> Path:
    """Make a new bundle of the bundle (or run) at `path`, in `output` or beside it; its folder.

    `data` are the pictures to calibrate and verify on, those of the bundle's run unless given.
    Raises `BundleError` for a source that is damaged or an int8 export itself, `SettingError` where
    `output` is there already, `DataError` for pictures that will not do, `DependencyError`,
    `StorageError`, and `WorkError` where the export fails or loses too much. Nothing is then left.
    """
    source = bundle_folder(path)
    facts = _checked(source, settings)
    target = _target(source, settings, output)
    pictures = find_pictures(source, facts, data)
    job = _Export(source, facts, settings, pictures, tell)
    try:
        with in_use(pictures.catalogue.root):
            assemble(target, job.fill)
    except OSError as error:  # a StorageError too, whose advice is for trainings
        raise _not_written(target, error) from error
    return target


def _not_written(target: Path, error: OSError) -> StorageError:
    cause = error.__cause__ if isinstance(error, StorageError) and error.__cause__ else error
    why = (str(getattr(cause, "strerror", None) or cause).strip().splitlines() or ["?"])[0]
    # torch and safetensors tell of a full disk in their own ways.
    full = not isinstance(cause, OSError) or cause.errno in _FULL
    space = f"free some space there and in {tempfile.gettempdir()}, or " if full else ""
    return StorageError(
        f"{target} could not be written: {why.rstrip('.')}. Nothing was exported; {space}choose "
        "another place with --output."
    )


def _checked(source: Path, settings: ExportSettings) -> BundleFacts:
    facts = read_facts(source)
    if facts.export.get("quantized"):
        raise BundleError(
            f"{source} is an {facts.export['quantized']} export already, and an export starts from "
            "float weights; give the bundle that it was made from."
        )
    check_files(source, facts)
    if _needs_weights(settings) and not (source / "model.safetensors").is_file():
        raise BundleError(
            f"{source} has no model.safetensors, which pruning and --to {settings.to} start from; "
            "give the bundle that it was made from."
        )
    if settings.prune is not None and settings.prune_method == "structured":
        require("torch_pruning", "prune", "Structured pruning")
    if settings.to == "tflite" and find_spec("litert_torch") is None:  # importing it takes seconds
        require("litert_torch", "tflite", "Export to TFLite")
    return facts


def _needs_weights(settings: ExportSettings) -> bool:
    return settings.prune is not None or settings.to != "onnx"


def _target(source: Path, settings: ExportSettings, output: Path | None) -> Path:
    source = source.resolve()
    target = source.with_name(f"{source.name}-{settings.name}") if output is None else output
    if target.exists():
        raise SettingError(
            f"{target} is there already. Remove it, or choose another place with --output."
        )
    if not target.absolute().parent.is_dir():
        raise SettingError(
            f"There is no folder {target.absolute().parent} to put {target.name} into. Make it "
            "first, or choose another --output."
        )
    if target.resolve().is_relative_to(source):
        raise SettingError(
            f"{target} lies in the bundle {source}, which stays as it is. Choose another --output."
        )
    return target


@dataclass
class _Export:
    """One export under way."""

    source: Path
    facts: BundleFacts
    settings: ExportSettings
    pictures: ExportPictures
    tell: Tell

    def fill(self, scratch: Path) -> BundleFacts:
        """Write the files of the new bundle, verify them, and return its facts."""
        self._predictor = Predictor(self.source, self.facts)
        self._float_layers: tuple[str, ...] = ()
        self._calibration: dict[str, Any] = {}
        self._notes: tuple[str, ...] = ()
        self._tell_pictures()
        pruned = self.facts.export.get("pruned")
        module = self._module() if _needs_weights(self.settings) else None
        if self.settings.prune is not None:
            module, pruned = self._pruned(module, scratch)
        elif self.settings.to != "onnx":
            shutil.copyfile(self.source / ONNX_FILE, scratch / ONNX_FILE)
        if self.settings.to == "onnx":
            if self.settings.quantize:
                self._quantised(scratch)
            answers: Answers = OnnxAnswerer(scratch / ONNX_FILE, available_cores())
        else:
            answers = self._other_format(module, scratch / FORMAT_FILES[self.settings.to])
        self._add_weights(module, scratch)
        comparison = self._verified(answers, scratch / FORMAT_FILES[self.settings.to])
        return self._new_facts(comparison, pruned, scratch)

    def _tell_pictures(self) -> None:
        pictures, rows = self.pictures, self.pictures.verification_rows()
        calibrated = ""
        if self.settings.quantize:
            count = len(pictures.calibration_rows(self.settings.calibration_pictures))
            calibrated = f"calibrated on {count:,} {pictures.calibrated_on}, "
        unseen = "" if pictures.verified_on == "test" else " (there is no test split)"
        self.tell(
            "pictures",
            f"{calibrated}verified on {len(rows):,} {pictures.verified_on}{unseen}, "
            f"{pictures.origin}",
        )

    def _module(self) -> Any:
        """The source's network with its weights."""
        from safetensors.torch import load_file

        from vizsla.models.build import rebuild

        module = rebuild(
            self.facts.architecture, dict(self.facts.arguments), len(self.facts.classes)
        )
        if before := self.facts.export.get("pruned"):
            from vizsla.exporting.prune import rebuild_pruned

            rebuild_pruned(module, before["removed"])
        try:
            module.load_state_dict(load_file(self.source / "model.safetensors"))
        except RuntimeError as error:
            raise BundleError(
                f"{self.source / 'model.safetensors'} does not fit {self.facts.architecture}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        return module.eval()

    def _pruned(self, module: Any, scratch: Path) -> tuple[Any, dict[str, Any]]:
        from vizsla.exporting.onnx import export_onnx
        from vizsla.exporting.prune import prune
        from vizsla.exporting.recovery import RecoverySettings, recover

        settings, preprocessing = self.settings, self.facts.preprocessing
        assert settings.prune is not None
        if settings.recovery_epochs and not self.pictures.is_own:
            raise DataError(
                "A pruned network trains on, and the pictures are not those that the model was "
                "trained on, so there is no telling which it may learn from. Give its own with "
                "--data, or leave the training out with --recovery-epochs 0."
            )
        result = prune(module, settings.prune, settings.prune_method, preprocessing.size_px)
        self.tell(
            "prune",
            f"{result.parameters_before:,} parameters to {result.parameters_after:,}"
            + "".join(f"; {note}" for note in result.notes),
        )
        module = result.module
        if settings.recovery_epochs:
            recipe = Recipe(**self.facts.recipe)
            recovery = RecoverySettings(
                recipe, settings.recovery_epochs, seed=recipe.seed, workers=recipe.workers
            )
            learnt = recover(
                module,
                self.pictures.catalogue,
                preprocessing,
                recovery,
                lambda line: self.tell("recover", line),
            )
            # Its forward may still be wrapped in bf16 autocast, which would go into the graph.
            module.load_state_dict(learnt.state_dict())
        export_onnx(module, self.facts.architecture, preprocessing.size_px, scratch / ONNX_FILE)
        before = self.facts.export.get("pruned") or {"removed": []}
        return module, {
            "amount": settings.prune,
            "method": settings.prune_method,
            "recovery_epochs": settings.recovery_epochs,
            "sparsity": result.sparsity,
            "parameters_before": result.parameters_before,
            "parameters_after": result.parameters_after,
            "notes": list(result.notes),
            "removed": [*before["removed"], *result.removed],
        }

    def _quantised(self, scratch: Path) -> None:
        """Put the int8 network in place of the float one, which is that of the scratch folder
        where the network was pruned, and the source's otherwise."""
        from vizsla.exporting.quantize import quantize

        path = scratch / ONNX_FILE
        inputs, labels = self._calibration_inputs()
        result = quantize(
            path if path.is_file() else self.source / ONNX_FILE,
            inputs,
            labels,
            Limits.of(self.settings.max_loss),
            lambda message: self.tell("int8", message),
        )
        path.write_bytes(result.graph)
        self._float_layers = result.float_layers
        self._calibration = {
            "pictures": len(inputs),
            "split": self.pictures.calibrated_on,
            "ranges": result.method,
            "agreement": result.judged.agreement,
        }
        whole = result.layers - len(result.float_layers)
        self.tell(
            "int8",
            f"{whole} of {result.layers} layers, ranges by {result.method}: "
            f"{result.judged.in_words} on the calibration pictures",
        )

    def _calibration_inputs(self) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        rows = self.pictures.calibration_rows(self.settings.calibration_pictures)
        return prepared_whole(self._predictor, self.pictures.catalogue, rows)

    def _other_format(self, module: Any, path: Path) -> Answers:
        """Write the file of a format that is not ONNX, and return what answers by it."""
        size_px = self.facts.preprocessing.size_px
        self.tell("write", path.name)
        if self.settings.to == "tflite":
            from vizsla.exporting.bias import corrected_module
            from vizsla.exporting.tflite import tflite_answerer, write_tflite

            calibration = self._calibration_inputs()[0] if self.settings.quantize else None
            if calibration is not None:
                module = corrected_module(module, calibration)
            self._notes = write_tflite(module, size_px, path, calibration)
            if calibration is not None:
                self._calibration = {
                    "pictures": len(calibration),
                    "split": self.pictures.calibrated_on,
                }
            answers: Answers = tflite_answerer(path)
            return answers
        from vizsla.exporting.torch_files import (
            torch_answerer,
            write_torch_export,
            write_torchscript,
        )

        write = write_torchscript if self.settings.to == "torchscript" else write_torch_export
        write(module, size_px, path)
        return torch_answerer(path)

    def _add_weights(self, module: Any, scratch: Path) -> None:
        """The weights, where they changed or torch reads the export; an int8 bundle is small."""
        if self.settings.quantize is not None or self.settings.to == "tflite":
            return
        if self.settings.prune is not None:
            with storing(scratch):
                write_weights(module, self.facts, scratch)
            return
        for name in _WEIGHTS_FILES:
            if (self.source / name).is_file():
                shutil.copyfile(self.source / name, scratch / name)

    def _verified(self, answers: Answers, path: Path) -> Comparison:
        """The comparison of `path`, by which `answers` answers, with the source. Raises `WorkError`
        where it loses too much."""
        rows = self.pictures.verification_rows()
        count = f"{len(rows):,} {self.pictures.verified_on} pictures"
        self.tell("verify", f"{path.name}: {count} through both …")
        original = self.source / ONNX_FILE
        threads = available_cores()
        comparison = compare(
            (OnnxAnswerer(original, threads), original.stat().st_size),
            (answers, path.stat().st_size),
            prepared(self._predictor, self.pictures.catalogue, rows),
            len(self.facts.classes),
            self.pictures.verified_on,
            self.facts.temperature,
            threads,
        )
        if skipped := len(rows) - comparison.pictures:
            self.tell("verify", f"left out {counted(skipped, 'picture')} that did not decode")
        limits = Limits.of(self.settings.max_loss)
        if self.settings.prune is not None:  # it has learnt anew: its accuracy alone counts
            limits = replace(limits, disagreement=None)
        findings = judge_export(comparison, limits, self.settings.name, self.settings.ways_out)
        if findings:
            raise WorkError(" ".join(f"{one.meaning} {one.advice}" for one in findings))
        return comparison

    def _new_facts(
        self, comparison: Comparison, pruned: dict[str, Any] | None, scratch: Path
    ) -> BundleFacts:
        metrics = self.facts.metrics
        if self.settings.to == "onnx":  # what answers is the export
            metrics = {comparison.split: asdict(comparison.export.metrics)}
        elif self.settings.prune is not None:  # it is the pruned network, before the other format
            path = scratch / ONNX_FILE
            again = self._verified(OnnxAnswerer(path, available_cores()), path)
            metrics = {again.split: asdict(again.export.metrics)}
        created = datetime.now().astimezone().isoformat(timespec="seconds")
        return replace(
            self.facts,
            metrics=metrics,
            created=created,
            vizsla=__version__,
            files={},
            export={
                "made_from": sha256_of(self.source / FACTS_FILE),
                "format": self.settings.to,
                "file": FORMAT_FILES[self.settings.to],
                "quantized": self.settings.quantize,
                "calibration": self._calibration,
                "pruned": pruned,
                "float_layers": list(self._float_layers),
                "notes": list(self._notes),
                "verification": {
                    **comparison.to_dict(),
                    "pictures_from": self.pictures.origin,
                    "max_loss": self.settings.max_loss,
                },
                "created": created,
            },
        )
