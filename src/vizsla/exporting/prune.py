"""A trained network made smaller by taking away what weighs least.

`structured` removes whole channels, so that the network has fewer numbers and fewer products in
any runtime; which layers must shrink together (through a residual sum, a depthwise convolution, a
norm) is found by torch-pruning. `magnitude` sets single weights to zero: the network keeps its
shape and its speed, and only a compressed file of it is smaller. Both cost accuracy, of which
`recovery.py` brings most back.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from vizsla import extras
from vizsla.errors import ModelError, SettingError
from vizsla.models.weights import head_names

PruneMethod = Literal["structured", "magnitude"]
LARGEST_AMOUNT = 0.9
# What vector units and int8 kernels work in.
_CHANNEL_STEP = 8


@dataclass(frozen=True)
class Pruned:
    """A pruned network and what was taken from it.

    `parameters_after` counts the numbers of the smaller network, or of magnitude pruning those
    that were not set to zero; `sparsity` is the share of `parameters_before` that is gone.
    `removed` is plain JSON, an entry a layer: for `structured` its `channels_before` and
    `channels_after` (outputs), with the `attributes` and tensor `shapes` that `rebuild_pruned`
    needs; for `magnitude` its number of `weights` and its share of `zeros`.
    """

    module: nn.Module
    method: PruneMethod
    sparsity: float
    parameters_before: int
    parameters_after: int
    removed: list[dict[str, Any]]
    notes: tuple[str, ...]


def prune(module: nn.Module, amount: float, method: PruneMethod, example_px: int) -> Pruned:
    """A pruned copy of `module`, on the CPU and in eval mode; `module` itself stays as it is.

    `amount`, above 0 and at most 0.9, is the share of each layer's channels that goes
    (`structured`) or of all convolution and linear weights together (`magnitude`). The classifier
    keeps its outputs and, by magnitude, its weights: it is small, and was trained from so small a
    start that a common threshold would empty it. `example_px` is the side of an input.

    Raises `SettingError` for another amount or method, `ModelError` where no channels can be
    removed from this architecture, `DependencyError` where torch-pruning is missing.
    """
    if not 0 < amount <= LARGEST_AMOUNT:
        raise SettingError(
            f"prune is {amount:g}, but must be above 0 and at most {LARGEST_AMOUNT:g}: the share "
            "of channels, or of weights, to remove."
        )
    smaller = copy.deepcopy(module).cpu().float().eval()
    if method == "structured":
        return _structured(smaller, amount, example_px)
    if method == "magnitude":
        return _by_magnitude(smaller, amount)
    raise SettingError(f"prune_method is {method!r}, but must be structured or magnitude.")


def rebuild_pruned(module: nn.Module, removed: Sequence[dict[str, Any]]) -> nn.Module:
    """Give an untrained `module` of the original architecture the shapes of a pruned one, in
    place, so that the pruned network's state dict loads into it. `removed` is `Pruned.removed`.

    Raises `ModelError` where an entry does not fit the module.
    """
    parts = dict(module.named_modules())
    for entry in removed:
        part = parts.get(entry["layer"])
        if part is None:
            raise ModelError(
                f"The pruned network has a layer {entry['layer']!r} that {type(module).__name__} "
                "has not; rebuild it with the architecture and arguments of its bundle."
            )
        for name, value in entry.get("attributes", {}).items():
            if not _is_size(vars(part).get(name)):
                raise ModelError(f"{entry['layer']} has no size called {name!r}.")
            setattr(part, name, tuple(value) if isinstance(value, list) else value)
        for name, shape in entry.get("shapes", {}).items():
            _reshape(part, name, shape)
    return module


def _reshape(part: nn.Module, name: str, shape: list[int]) -> None:
    old = _own_tensors(part).get(name)
    if old is None:
        raise ModelError(f"{type(part).__name__} has no tensor called {name!r}.")
    fresh = torch.zeros(shape, dtype=old.dtype)
    if isinstance(old, nn.Parameter):
        setattr(part, name, nn.Parameter(fresh, requires_grad=old.requires_grad))
    else:
        setattr(part, name, fresh)


def _structured(module: nn.Module, amount: float, example_px: int) -> Pruned:
    """Remove from each group of coupled layers the channels of least L2 norm over the whole group
    (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023), the same share of each:
    a common threshold for all layers would close narrow ones."""
    torch_pruning = extras.require("torch_pruning", "prune", "Structured pruning")
    sizes, before = _sizes(module), _count(module)
    pixels = torch.zeros(1, 3, example_px, example_px)
    with torch.no_grad():
        expected = module(pixels).shape
    try:
        with _quiet(), torch.enable_grad():  # the layers' dependencies are read off autograd
            module.requires_grad_(True)
            torch_pruning.pruner.BasePruner(
                module,
                pixels,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                # Its own rounding only goes down: asked for a hundredth, it halves 16 channels.
                pruning_ratio_dict={
                    layer: _share_to_remove(layer.weight.shape[0], amount)
                    for layer in weighty_layers(module).values()
                },
                pruning_ratio=amount,
                ignored_layers=_classifiers(module),
                # Left out, these are dictionaries that all pruners of a process share.
                in_channel_groups={},
                out_channel_groups={},
            ).step()
        with torch.no_grad():
            answered = module(pixels)
    # The library and the network that it has cut wrongly raise whatever they like.
    except Exception as error:
        raise _cannot_be_cut(module, str(error)) from error
    if answered.shape != expected or not bool(answered.isfinite().all()):
        raise _cannot_be_cut(module, f"it answers {tuple(answered.shape)}")
    removed = _changes(module, sizes)
    after = _count(module)
    if not removed:
        raise ModelError(
            f"Nothing was removed: {amount:g} of the channels of any layer of "
            f"{type(module).__name__} is less than half of {_CHANNEL_STEP}. Give a larger share, "
            "or --prune-method magnitude."
        )
    return Pruned(
        module=module,
        method="structured",
        sparsity=1 - after / before,
        parameters_before=before,
        parameters_after=after,
        removed=removed,
        notes=(
            f"Each layer keeps a multiple of {_CHANNEL_STEP} channels, or of its groups; the "
            "network no longer has its architecture's shapes.",
        ),
    )


def _share_to_remove(channels: int, amount: float) -> float:
    """The share that leaves the multiple of 8 nearest to what `amount` leaves, and never none."""
    left = round(channels * (1 - amount) / _CHANNEL_STEP) * _CHANNEL_STEP
    left = min(max(left, _CHANNEL_STEP), channels)
    # The library rounds what is left down: half a channel more keeps it off the edge.
    return 0.0 if left == channels else 1 - (left + 0.5) / channels


def _cannot_be_cut(module: nn.Module, why: str) -> ModelError:
    first = (why.strip().splitlines() or ["it does not trace"])[0].rstrip(".")
    return ModelError(
        f"No channels can be removed from {type(module).__name__} ({first[:200]}). Use "
        "--prune-method magnitude, which works for every architecture, or train a smaller one."
    )


def _by_magnitude(module: nn.Module, amount: float) -> Pruned:
    """Set the smallest weights of all layers together to zero (Han et al., "Learning both Weights
    and Connections for Efficient Neural Networks", NeurIPS 2015). The file and the time of an
    answer stay as they are; zeros pay off where the file is compressed, as in an archive."""
    heads = {id(part) for head in _classifiers(module) for part in head.modules()}
    layers = {name: part for name, part in weighty_layers(module).items() if id(part) not in heads}
    zeros_before = sum(_zeros(part) for part in layers.values())
    torch_prune.global_unstructured(
        [(part, "weight") for part in layers.values()],
        pruning_method=torch_prune.L1Unstructured,
        amount=amount,
    )
    for part in layers.values():
        torch_prune.remove(part, "weight")  # type: ignore[no-untyped-call]
    before = _count(module)
    gone = sum(_zeros(part) for part in layers.values()) - zeros_before
    return Pruned(
        module=module,
        method="magnitude",
        sparsity=gone / before,
        parameters_before=before,
        parameters_after=before - gone,
        removed=[
            {
                "layer": name,
                "kind": type(part).__name__,
                "weights": part.weight.numel(),
                "zeros": _zeros(part) / part.weight.numel(),
            }
            for name, part in layers.items()
        ],
        notes=(
            "Single weights are zero: the file is smaller only when it is compressed, and answers "
            "take as long as before.",
        ),
    )


def weighty_layers(module: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers of a network, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }


def _classifiers(module: nn.Module) -> list[nn.Module]:
    """The layers that give the logits."""
    parts = dict(module.named_modules())
    return [parts[name] for name in {name.rpartition(".")[0] for name in head_names(module)}]


def _zeros(layer: nn.Conv2d | nn.Linear) -> int:
    return int((layer.weight == 0).sum())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _own_tensors(part: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a module without those of its children."""
    own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    return dict(own)


def _is_size(value: object) -> bool:
    """Whether a module's attribute may be a number of channels, or a tuple of such."""
    if isinstance(value, tuple | list):
        return all(_is_size(one) for one in value)
    return isinstance(value, int) and not isinstance(value, bool)


_Sizes = dict[str, tuple[dict[str, Any], dict[str, list[int]]]]


def _sizes(module: nn.Module) -> _Sizes:
    """Of each module by name, its whole-number attributes and the shapes of its own tensors."""
    return {
        name: (
            {
                key: list(value) if isinstance(value, tuple | list) else value
                for key, value in vars(part).items()
                if not key.startswith("_") and _is_size(value)
            },
            {key: list(tensor.shape) for key, tensor in _own_tensors(part).items()},
        )
        for name, part in module.named_modules()
    }


def _changes(module: nn.Module, before: _Sizes) -> list[dict[str, Any]]:
    """What is of another size than `before`, as plain JSON, an entry a layer."""
    changes = []
    kinds = {name: type(part).__name__ for name, part in module.named_modules()}
    for name, (attributes, shapes) in _sizes(module).items():
        old_attributes, old_shapes = before[name]
        differing = {
            key: value for key, value in attributes.items() if old_attributes[key] != value
        }
        reshaped = {key: shape for key, shape in shapes.items() if old_shapes[key] != shape}
        if not differing and not reshaped:
            continue
        entry: dict[str, Any] = {"layer": name, "kind": kinds[name]}
        if shapes.get("weight"):
            entry["channels_before"] = old_shapes["weight"][0]
            entry["channels_after"] = shapes["weight"][0]
        changes.append({**entry, "attributes": differing, "shapes": reshaped})
    return changes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch-pruning warns of each parameter outside a layer, whose handling is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
