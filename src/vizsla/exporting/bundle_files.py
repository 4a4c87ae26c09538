"""Writing a bundle: every file of it in a scratch folder, then in place by rename."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import vizsla
from vizsla.bundle.format import FACTS_FILE, ONNX_FILE, BundleFacts, describe_files
from vizsla.errors import SettingError, VizslaError
from vizsla.exporting.card import model_card
from vizsla.exporting.onnx import export_onnx
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

    def fill(scratch: Path) -> BundleFacts:
        write_weights(module, facts, scratch)
        size_px = facts.preprocessing.size_px
        export_onnx(module, facts.architecture, size_px, scratch / ONNX_FILE)
        check(scratch)
        return facts

    with storing(folder):
        return assemble(folder, fill, replace_older=True)


def assemble(
    folder: Path, fill: Callable[[Path], BundleFacts], replace_older: bool = False
) -> BundleFacts:
    """Make a bundle in `folder`: what `fill` writes into a scratch folder beside it, with the card,
    the code and the hashes, put in place by rename.

    `fill` returns the bundle's facts. Unless it may `replace_older`, `OSError` is raised where a
    folder is there already, and `SettingError` in any case where another process is making it. No
    half bundle is left; what a killed process left of an earlier one is removed.
    """
    scratch = folder.with_name(f".{folder.name}.part")
    with _held(scratch, folder):
        facts = fill(scratch)
        (scratch / "card.md").write_text(model_card(facts), encoding="utf-8")
        _write_code(scratch / "code")
        facts = replace(facts, files=describe_files(scratch))
        write_json(scratch / FACTS_FILE, facts.to_dict())
        if replace_older:
            shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    return facts


@contextlib.contextmanager
def _held(scratch: Path, folder: Path) -> Iterator[None]:
    """Hold the empty folder `scratch`, in which `folder` is made; after an error it is gone.

    The lock is on the folder itself: nothing else is left lying about, and the system lets go of
    it when its process dies, so that what a killed one left is taken over.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY)
    try:
        if not _locked(handle) or not os.path.samestat(os.fstat(handle), scratch.stat()):
            raise SettingError(
                f"{folder} is being made by another process. Wait for it, or choose another place."
            )
        try:
            for left in list(scratch.iterdir()):
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
            yield
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Whether an open folder is now locked by this process, or lies where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Inside, what each library says of a full disk, in its own way, becomes a `StorageError`."""
    try:
        yield
    except VizslaError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        raise storage_error(folder, error) from error


def write_weights(module: nn.Module, facts: BundleFacts, folder: Path) -> None:
    """Write the weights to `folder`, as a safetensors file and as a state dict."""
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
    template = resources.files("vizsla.exporting").joinpath("inference_template.py")
    (folder / "inference.py").write_bytes(template.read_bytes())
    (folder / "requirements.txt").write_text("numpy\nonnxruntime\npillow\n", encoding="utf-8")
