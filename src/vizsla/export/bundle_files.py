"""Writing a bundle: every file of it in a scratch folder, then in place by rename."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import vizsla
from vizsla.bundle.format import FACTS_FILE, ONNX_FILE, BundleFacts, describe_files
from vizsla.errors import VizslaError
from vizsla.export.onnx import export_onnx
from vizsla.runs.files import storage_error, write_json

# What bundle.predictor imports, directly or not. A bundle carries it, so that it answers with
# ONNX Runtime, NumPy and Pillow and the very code that made the validation figures.
RUNTIME_MODULES = (
    "__init__.py",
    "version.py",
    "errors.py",
    "records.py",
    "checksum.py",
    "metrics.py",
    "bundle/__init__.py",
    "bundle/format.py",
    "bundle/predictor.py",
    "data/__init__.py",
    "data/decode.py",
    "data/transforms.py",
)


def write_bundle(
    module: nn.Module,
    facts: BundleFacts,
    folder: Path,
    check: Callable[[Path], None] = lambda _: None,
) -> BundleFacts:
    """Write the bundle of a trained `module` to `folder`, in place of an older one.

    `check` sees the folder with the exported network before it takes its place. Returns the facts
    with the files' hashes. Raises `StorageError` or `WorkError`; no half bundle is left.
    """
    scratch = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "code").mkdir(parents=True)
        _write_weights(module, facts, scratch)
        size_px = facts.preprocessing.size_px
        export_onnx(module, facts.architecture, size_px, scratch / ONNX_FILE)
        check(scratch)
        (scratch / "card.md").write_text(model_card(facts), encoding="utf-8")
        _write_code(scratch / "code")
        facts = replace(facts, files=describe_files(scratch))
        write_json(scratch / FACTS_FILE, facts.to_dict())
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except VizslaError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:  # each library tells of a full disk
        raise storage_error(folder, error) from error  # in its own way
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return facts


def _write_weights(module: nn.Module, facts: BundleFacts, folder: Path) -> None:
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    torch.save(tensors, folder / "model.pth")
    preprocessing = facts.preprocessing
    # The keys under which `models/weights.py` reads them when this file is trained on.
    metadata = {
        "format": "pt",
        "architecture": facts.architecture,
        "input_size": f"3,{preprocessing.size_px},{preprocessing.size_px}",
        "interpolation": preprocessing.interpolation,
        "crop_pct": str(preprocessing.crop_pct),
        "mean": ",".join(map(str, preprocessing.mean)),
        "std": ",".join(map(str, preprocessing.std)),
    }
    if "pad_type" in facts.arguments:
        metadata["pad_type"] = str(facts.arguments["pad_type"])
    unshared = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(unshared, folder / "model.safetensors", metadata)
    _sort_header(folder / "model.safetensors")


def _sort_header(path: Path) -> None:
    """Put the file's header in order: its writer leaves the metadata in an order of chance, and
    the same training shall give the same bytes."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


def _write_code(folder: Path) -> None:
    package = Path(vizsla.__file__).parent
    for name in RUNTIME_MODULES:
        target = folder / "vizsla" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / name, target)
    template = resources.files("vizsla.export").joinpath("inference_template.py")
    (folder / "inference.py").write_bytes(template.read_bytes())
    (folder / "requirements.txt").write_text("numpy\nonnxruntime\npillow\n", encoding="utf-8")


def model_card(facts: BundleFacts) -> str:
    """The bundle in words, for the person who finds it."""
    lines = [
        f"# {facts.architecture} for {len(facts.classes)} classes",
        "",
        f"Made by vizsla {facts.vizsla} on {facts.created}.",
        "",
        "| split | accuracy | top-5 | macro F1 | loss | pictures |",
        "|---|---|---|---|---|---|",
    ]
    for split, figures in facts.metrics.items():
        shares = " | ".join(
            f"{figures[name]:.4f}" for name in ("accuracy", "top5_accuracy", "macro_f1", "loss")
        )
        lines.append(f"| {split} | {shares} | {figures['pictures']} |")
    preprocessing = facts.preprocessing
    lines += [
        "",
        f"Input: RGB, {preprocessing.size_px} by {preprocessing.size_px} pixels, "
        f"{preprocessing.crop} crop, {preprocessing.interpolation}.",
        f"Weights at the start: {facts.recipe.get('weights', 'unknown')}; "
        f"trained: {facts.recipe.get('unfreeze', 'unknown')}.",
        "",
        "It answers with one of its own classes to any picture whatever; confidences are not "
        "calibrated. It was judged on pictures like those it was trained on and on no others.",
        "",
        "Classes: " + ", ".join(f"{label.name}" for label in facts.classes) + ".",
        "",
        "    vizsla predict . picture.jpg",
        "",
    ]
    return "\n".join(lines)
