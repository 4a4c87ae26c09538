"""Reading weights from a file without running anything that is in it, and fitting them.

`.safetensors` holds only numbers and text; a `.pth` is read by torch's restricted unpickler,
which refuses code. A file from elsewhere names and nests its tensors in a few known ways, which
are unwrapped; the head is taken over only if it has the right shape.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from vizsla.data.transforms import Preprocessing
from vizsla.errors import ModelError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class WeightsFile:
    """The tensors of a weights file, by name, and what its metadata says about them."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    def check_architecture(self, architecture: str) -> None:
        """Raise `ModelError` if the file's metadata names another architecture."""
        named = self.metadata.get("architecture", architecture)
        if named.split(".")[0] != architecture.split(".")[0]:
            raise ModelError(
                f"The weights in {self.path} say that they are for {named}, and the model is "
                f"{architecture}. Set --model {named}, or give weights for {architecture}."
            )

    def load_into(self, module: nn.Module) -> None:
        """Copy the tensors into the network; a head of another shape keeps its random start.

        Raises `ModelError` that says what differs.
        """
        wanted = module.state_dict()
        head = set(head_names(module))
        given = {
            name: tensor
            for name, tensor in self.tensors.items()
            if not (name in head and tensor.shape != wanted[name].shape)
        }
        # An older classifier of another name, such as torchvision's for a network without one.
        missing = [name for name in wanted if name not in given and name not in head]
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        surplus = [name for name in given if name not in wanted]
        odd = [
            f"{name} is {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
            for name in wanted
            if name in given and given[name].shape != wanted[name].shape
        ]
        if missing or surplus or odd:
            raise ModelError(self._misfit(type(module).__name__, missing, surplus, odd))
        module.load_state_dict(given, strict=False)

    def _misfit(self, network: str, missing: list[str], surplus: list[str], odd: list[str]) -> str:
        parts = [
            f"{len(names)} tensors {what} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for names, what in (
                (missing, "are missing"),
                (surplus, "are unknown to it"),
                (odd, "have another shape"),
            )
            if names
        ]
        return (
            f"The weights in {self.path} do not fit the network ({network}): {'; '.join(parts)}. "
            "Set --model to the architecture that the file was made for."
        )

    def preprocessing(self, default: Preprocessing) -> Preprocessing:
        """`default` with whatever the file's metadata says better. Raises `ModelError` on
        metadata that is not what it should be."""
        known = default
        try:
            if "input_size" in self.metadata:
                known = replace(known, size_px=int(self._numbers("input_size")[-1]))
            for key in ("mean", "std"):
                if key in self.metadata:
                    first, second, third = self._numbers(key)
                    known = replace(known, **{key: (first, second, third)})  # type: ignore[arg-type]
            if "crop_pct" in self.metadata:
                known = replace(known, crop_pct=self._numbers("crop_pct")[0])
        except ValueError as error:
            raise ModelError(f"The metadata of {self.path} cannot be read: {error}.") from None
        interpolation = self.metadata.get("interpolation", known.interpolation)
        possible = interpolation in _INTERPOLATIONS and known.size_px in range(1, 4097)
        if not (possible and 0 < known.crop_pct <= 1 and min(known.std) > 0):
            raise ModelError(
                f"The metadata of {self.path} asks for size {known.size_px}, interpolation "
                f"{interpolation!r}, crop_pct {known.crop_pct} and std {known.std}; that is not "
                "possible."
            )
        return replace(known, interpolation=interpolation)

    def _numbers(self, key: str) -> list[float]:
        numbers = [float(part) for part in self.metadata[key].strip("()[] ").split(",")]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{key} is {self.metadata[key]!r}")
        return numbers


def read_weights(path: Path) -> WeightsFile:
    """The weights of a `.safetensors` or `.pth` file. Raises `ModelError` if it has none."""
    path = path.expanduser()
    if not path.is_file():
        raise ModelError(
            f"There is no weights file {path}. Give --weights a .safetensors or .pth file, "
            "pretrained, or none."
        )
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"The weights file {path} is damaged: {error}.") from None
        return WeightsFile(path, _bare(tensors), metadata)
    return WeightsFile(path, _bare(_unpickled(path)), {})


def _unpickled(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"The weights file {path} holds more than numbers (code or whole objects), or is "
            "damaged, and was not loaded. Save its state dict again with "
            "torch.save(model.state_dict(), …), or as .safetensors."
        ) from None
    # On damaged bytes the restricted unpickler lets many kinds of error through (struct, Index,
    # Assertion, Runtime, EOF, …): each means that the file cannot be read.
    except Exception as error:
        why = str(error) or type(error).__name__
        raise ModelError(f"The weights file {path} cannot be read: {why}.") from None
    while isinstance(content, dict):
        inner = next(
            (content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None
        )
        if inner is None:
            break
        content = inner
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise ModelError(f"The weights file {path} holds no state dict.")
    return tensors


def _bare(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without the prefixes that wrappers such as DataParallel put in front of all."""
    names = dict(zip(tensors, tensors, strict=True))
    for prefix in _PREFIXES:
        if all(bare.startswith(prefix) for bare in names.values()):
            names = {name: bare.removeprefix(prefix) for name, bare in names.items()}
    return {bare: tensors[name] for name, bare in names.items()}


def head_names(module: nn.Module) -> list[str]:
    """Names of the classifier's tensors in the network's state dict."""
    classifiers = module.get_classifier()  # type: ignore[operator]
    parts = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    return [
        f"{prefix}.{name}"
        for prefix, part in module.named_modules()
        if any(part is classifier for classifier in parts)
        for name in part.state_dict()
    ]
