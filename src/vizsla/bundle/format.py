"""The files of a bundle and the facts in `bundle.json`.

bundle.json         classes, preprocessing, temperature, recipe, metrics, hashes of the rest
model.onnx          what answers
model.safetensors   the weights, for training on and for other tools
model.pth           the same as a state dict that loads with weights_only=True
card.md             what the model is, for people
model.tflite, model.torchscript.pt, model.pt2   an export's, for other runtimes
code/               inference.py and the few modules that it needs
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vizsla.checksum import sha256_of
from vizsla.data.transforms import Preprocessing
from vizsla.errors import BundleError
from vizsla.records import ClassLabel

FORMAT_VERSION = 1
FACTS_FILE = "bundle.json"
ONNX_FILE = "model.onnx"
# Facts that are read by name; the list of files is looked through by `check_files`.
_OBJECTS = ("arguments", "recipe", "metrics", "data", "export")


@dataclass(frozen=True)
class BundleFacts:
    """What `bundle.json` says. Logits are divided by `temperature` before the softmax.
    `abstention_threshold` is kept for whoever decides on answers; the predictor gives them all.
    `metrics` are of `model.onnx`; `export` says what was done to make this bundle from another and
    how the two compare, and is empty for a training's own."""

    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[ClassLabel, ...]
    preprocessing: Preprocessing
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    data: Mapping[str, Any]
    created: str
    vizsla: str
    temperature: float = 1.0
    abstention_threshold: float | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        facts = {**asdict(self), "preprocessing": self.preprocessing.to_dict()}
        facts["classes"] = [asdict(label) for label in self.classes]
        if not self.export:  # older readers know no such name
            del facts["export"]
        return {"format_version": FORMAT_VERSION, **facts}


def read_facts(folder: Path) -> BundleFacts:
    """The facts of the bundle in `folder`. Raises `BundleError` for none, or another version."""
    path = folder / FACTS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is not a bundle: it has no {FACTS_FILE}.") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"The bundle {folder} has format version {version}, and this vizsla reads version "
            f"{FORMAT_VERSION}. Use the vizsla that wrote it, or write the bundle anew."
        )
    try:
        content["classes"] = tuple(ClassLabel(**label) for label in content["classes"])
        content["preprocessing"] = Preprocessing.from_dict(content["preprocessing"])
        facts = BundleFacts(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}.") from None
    for name in _OBJECTS:
        if not isinstance(getattr(facts, name), dict):
            raise BundleError(f"{path} is damaged: its {name} is no object.")
    if not isinstance(facts.temperature, int | float) or not facts.temperature > 0:
        raise BundleError(f"{path} is damaged: its temperature is {facts.temperature!r}.")
    return facts


def check_files(folder: Path, facts: BundleFacts) -> None:
    """Raise `BundleError` unless every file is there with the hash that `bundle.json` gives."""
    try:
        expected = {name: (file["bytes"], file["sha256"]) for name, file in facts.files.items()}
    except (AttributeError, KeyError, TypeError):
        raise BundleError(
            f"{folder / FACTS_FILE} is damaged: its list of files cannot be read."
        ) from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"The bundle {folder} lacks {name}.")
        if path.stat().st_size != size or sha256_of(path) != digest:
            raise BundleError(
                f"{path} is not the file that the bundle was made with; it is damaged."
            )


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in `folder` but `bundle.json`, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != FACTS_FILE)
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
        for path in paths
    }
