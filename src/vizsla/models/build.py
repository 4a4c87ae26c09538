"""From settings to a network that is ready to train: architecture, weights, preprocessing.

timm makes the networks and knows how the inputs of its weights were prepared; a local weights
file may say so itself in its metadata, and is believed first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.checksum import sha256_of
from vizsla.data.transforms import Preprocessing
from vizsla.errors import ModelError, SettingError, nearest
from vizsla.models.hub import fetch_pretrained
from vizsla.models.weights import WeightsFile, head_names, read_weights
from vizsla.phases import phase
from vizsla.settings import ModelSettings, PictureSettings

# isort: split
import timm
from timm.data import resolve_model_data_config
from timm.models import get_arch_pretrained_cfgs


@dataclass(frozen=True)
class Network:
    """A network with what is needed to make it again and to feed it.

    `arguments` are the extra keywords of `timm.create_model`; `weights_origin` says in words
    where the weights came from, `weights_hash` (SHA-256) which they were, where there was a file.
    """

    module: nn.Module
    architecture: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    weights_origin: str
    weights_hash: str | None


def build_network(settings: ModelSettings, pictures: PictureSettings, class_count: int) -> Network:
    """The network of `settings`, its head made for `class_count` classes.

    Raises `ModelError` for an unknown architecture, weights that do not fit, or a hub that
    cannot be reached. Random weights are drawn from torch's global generator: seed it before.
    """
    check_architecture(settings.model)
    local = None
    if settings.weights not in ("pretrained", "none"):
        with phase("weights"):
            local = read_weights(Path(settings.weights))
    arguments = _arguments(settings, pictures, local)
    if settings.weights == "pretrained":
        with phase("weights"):
            file, origin = fetch_pretrained(settings.model)
        adapted = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
        module = _create(settings.model, class_count, {**arguments, **adapted})
        _start_head(module)
        weights_hash: str | None = sha256_of(file)
    else:
        module = _create(settings.model, class_count, arguments)
        origin = "none (random)" if local is None else str(local.path.resolve())
        weights_hash = sha256_of(local.path) if local is not None else None
        if local is not None:
            _start_head(module)
            with phase("weights"):
                local.load_into(module)
    if pictures.size_px is not None:
        _check_size(module, settings.model, pictures.size_px)
    return Network(
        module=module,
        architecture=settings.model,
        arguments=arguments,
        preprocessing=_preprocessing(module, pictures, local),
        weights_origin=origin,
        weights_hash=weights_hash,
    )


def rebuild(architecture: str, arguments: dict[str, Any], class_count: int) -> nn.Module:
    """An untrained network of the same shape, for loading a bundle's or checkpoint's weights."""
    check_architecture(architecture)
    return _create(architecture, class_count, arguments)


def check_architecture(name: str) -> None:
    """Raise `ModelError`, with the nearest names, unless timm knows the architecture."""
    if not timm.is_model(name):
        base = name.split(".")[0]
        raise ModelError(
            f"There is no architecture {name!r}.{nearest(base, timm.list_models())} "
            "All names: python -c 'import timm; print(*timm.list_models(), sep=chr(10))'"
        )
    base, _, tag = name.partition(".")
    known = list(get_arch_pretrained_cfgs(base))
    if tag and name not in known:
        raise ModelError(
            f"The architecture {base} has no weights tagged {tag!r}.{nearest(name, known)} "
            f"There are: {', '.join(known) or 'none'}."
        )


def _arguments(
    settings: ModelSettings, pictures: PictureSettings, local: WeightsFile | None
) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if settings.drop_rate:
        arguments["drop_rate"] = settings.drop_rate
    if settings.drop_path_rate:
        arguments["drop_path_rate"] = settings.drop_path_rate
    if local is not None:
        local.check_architecture(settings.model)
    if local is not None and "pad_type" in local.metadata:
        arguments["pad_type"] = local.metadata["pad_type"]
    config = timm.get_pretrained_cfg(settings.model, allow_unregistered=True)
    if config is not None and config.fixed_input_size and pictures.size_px is not None:
        arguments["img_size"] = pictures.size_px
    return arguments


def _create(architecture: str, class_count: int, arguments: dict[str, Any]) -> nn.Module:
    try:
        module: nn.Module = timm.create_model(architecture, num_classes=class_count, **arguments)
    except TypeError as error:
        raise SettingError(
            f"{architecture} does not take {', '.join(arguments)}: {error}. Leave that setting out."
        ) from None
    except AssertionError as error:
        raise SettingError(f"{architecture} cannot be built with {arguments}: {error}.") from None
    if not head_names(module):
        raise ModelError(f"{architecture} has no classifier to train; choose another architecture.")
    return module


def _check_size(module: nn.Module, architecture: str, size_px: int) -> None:
    """Raise `SettingError` unless pictures of that size go through the network."""
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, size_px, size_px))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise SettingError(
            f"size_px is {size_px}, but {architecture} cannot take pictures of that size: "
            f"{str(error).strip().rstrip('.')}. Leave it out for the size that the network was "
            "made for, or try a multiple of 32."
        ) from None
    finally:
        module.train()


def _start_head(module: nn.Module) -> None:
    """Draw a small random head. Some architectures' own start gives logits of a size that a
    short training of the head alone never recovers from (86 % instead of 98 % on pets)."""
    for name, parameter in module.named_parameters():
        if name in head_names(module):
            nn.init.normal_(parameter, std=0.01) if parameter.ndim > 1 else nn.init.zeros_(
                parameter
            )


def _preprocessing(
    module: nn.Module, pictures: PictureSettings, local: WeightsFile | None
) -> Preprocessing:
    config = resolve_model_data_config(module)
    known = Preprocessing(
        size_px=int(config["input_size"][-1]),
        crop_pct=float(config["crop_pct"]),
        interpolation=str(config["interpolation"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    if local is not None:
        known = local.preprocessing(known)
    known = replace(known, crop=pictures.crop)
    if pictures.size_px is not None:
        known = replace(known, size_px=pictures.size_px)
    if pictures.crop_pct is not None:
        known = replace(known, crop_pct=pictures.crop_pct)
    return known
