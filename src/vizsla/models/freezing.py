"""Which part of a network trains: the freeze policy.

A network is a row of stages (timm's own grouping) with the head last. What is frozen keeps its
weights *and* its behaviour: a frozen batch norm stays in eval mode and a frozen block drops
nothing, so that the frozen part computes one fixed function of its input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.errors import ModelError, nearest
from vizsla.models.weights import head_names

# isort: split
from timm.models import group_parameters


@dataclass(frozen=True)
class FreezePolicy:
    """The parameters that train, by name, and how many numbers they are out of how many."""

    trainable: frozenset[str]
    trained_numbers: int
    all_numbers: int

    def apply(self, module: nn.Module) -> None:
        """Switch gradients on for what trains and off for the rest."""
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in self.trainable)


def plan_freezing(module: nn.Module, unfreeze: str) -> FreezePolicy:
    """The policy that `unfreeze` names: `head`, `last`, `all`, a number of stages, or a prefix.

    `last` is one stage and the head; a number n is the last n stages and the head; a module
    prefix such as `layer4` trains what it matches and the head. Raises `ModelError`, with what
    there is, for a prefix that matches nothing or more stages than the network has.
    """
    head = set(head_names(module))
    names = [name for name, _ in module.named_parameters()]
    trainable = head & set(names) | set(_chosen(module, names, head, unfreeze))
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    return FreezePolicy(
        trainable=frozenset(trainable),
        trained_numbers=sum(sizes[name] for name in trainable),
        all_numbers=sum(sizes.values()),
    )


def _chosen(module: nn.Module, names: list[str], head: set[str], unfreeze: str) -> Iterable[str]:
    if unfreeze == "head":
        return []
    if unfreeze == "all":
        return names
    if unfreeze == "last" or unfreeze.isdecimal():
        count = 1 if unfreeze == "last" else int(unfreeze)
        rows = stages(module)
        if count > len(rows):
            raise ModelError(
                f"unfreeze is {count} stages, but {type(module).__name__} has {len(rows)}; "
                "use all to train everything."
            )
        return [name for stage in rows[len(rows) - count :] for name in stage]
    matched = [name for name in names if name == unfreeze or name.startswith(unfreeze + ".")]
    if not matched:
        there = boundaries(names)
        raise ModelError(
            f"unfreeze is {unfreeze!r}, but no part of {type(module).__name__} is called so."
            f"{nearest(unfreeze, there)} There are: {', '.join(there[:30])}; or head, last, all, "
            "or a number of stages."
        )
    return matched


def stages(module: nn.Module) -> list[list[str]]:
    """Parameter names of each stage without the head, input side first."""
    head = set(head_names(module))
    matcher = module.group_matcher(coarse=True)  # type: ignore[operator]
    groups = group_parameters(module, matcher, reverse=True)
    rows: dict[int, list[str]] = {}
    dimensions = {name: parameter.ndim for name, parameter in module.named_parameters()}
    for name in dimensions:
        if name not in head:
            rows.setdefault(groups[name], []).append(name)
    result: list[list[str]] = []
    for _, stage in sorted(rows.items()):
        # A closing norm is no stage of its own; it trains with the stage before it.
        if result and all(dimensions[name] < 2 for name in stage):
            result[-1] += stage
        else:
            result.append(stage)
    return result


def boundaries(names: list[str]) -> list[str]:
    """Module prefixes worth naming to a person: the first level and, for containers, the second."""
    first = list(dict.fromkeys(name.split(".")[0] for name in names))
    second = list(
        dict.fromkeys(".".join(name.split(".")[:2]) for name in names if name.count(".") > 1)
    )
    return first + [name for name in second if name.split(".")[1].isdecimal()]


def set_training_mode(module: nn.Module) -> None:
    """Train mode for what trains, eval mode for every module whose parameters are all frozen."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()
