"""Cutting a network in two where training begins: a trunk that stays and a tail that trains.

The network is traced with torch.fx and cut at the last place before the first trainable
parameter where a single tensor passes. Both halves use the network's own modules, so that
training the tail trains the network. What does not trace is cut between timm's own
`forward_features` and `forward_head`, if the head alone trains. What does not compute the same in
two halves is left whole, and the caller is told so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.models.freezing import set_training_mode
from vizsla.models.weights import head_names

# isort: split
import timm
from timm.models import get_notrace_functions, get_notrace_modules
from torchvision.models.feature_extraction import NodePathTracer


class Tail(nn.Module):
    """The training half. Python branches on `training` are fixed by tracing, so it holds one
    graph for each mode, over the same modules."""

    def __init__(self, in_training: fx.GraphModule, in_evaluation: fx.GraphModule) -> None:
        super().__init__()
        self.in_training = in_training
        self.in_evaluation = in_evaluation

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        graph = self.in_training if self.training else self.in_evaluation
        logits: torch.Tensor = graph(features)
        return logits


class _Features(nn.Module):
    """The frozen half of a network that does not trace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.network = module

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network.forward_features(pictures)  # type: ignore[operator]
        return features


class _Head(nn.Module):
    """The training half of a network that does not trace."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.network = module

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network.forward_head(features)  # type: ignore[operator]
        return logits


@dataclass(frozen=True)
class Partition:
    """`tail(trunk(x))` computes the network; `boundary` names the last module of the trunk, or is
    `forward_features` where the network did not trace. The trunk wants to be in eval mode."""

    trunk: nn.Module
    tail: nn.Module
    boundary: str

    @property
    def traced(self) -> bool:
        return isinstance(self.trunk, fx.GraphModule)

    def trunk_weights(self) -> dict[str, torch.Tensor]:
        """Everything that the trunk computes with, by name; batch norm's counters aside."""
        state = self.trunk.state_dict()
        if isinstance(self.trunk, _Features):
            for name in head_names(self.trunk.network):
                del state[f"network.{name}"]
        return {name: state[name] for name in state if not name.endswith("num_batches_tracked")}

    def trunk_structure(self) -> str:
        """A hash of what the trunk computes, its weights aside: graph, layers, library."""
        facts: list[Any] = [timm.__version__]
        if isinstance(self.trunk, fx.GraphModule):
            facts += [repr(self.trunk), self.trunk.code]
        elif isinstance(self.trunk, _Features):
            head = self.trunk.network.get_classifier()  # type: ignore[operator]
            layers = [part for part in self.trunk.modules() if not list(part.children())]
            facts += [type(self.trunk.network).__name__]
            facts += [repr(part) for part in layers if part is not head]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


_WHOLE_FEATURES = "forward_features"


def partition(
    module: nn.Module, trainable: Collection[str], size_px: int, boundary: str | None = None
) -> Partition | None:
    """Cut `module` before the first of the `trainable` parameters (names), or at `boundary`, the
    place where another network of the same shape was cut.

    None where nothing is frozen before it, or the network cannot be cut. The module's training
    mode is left as `set_training_mode` would have it.
    """
    halves = None
    if boundary != _WHOLE_FEATURES:
        halves = _cut_by_tracing(module, trainable, boundary)
    if halves is None and set(trainable) <= set(head_names(module)):
        halves = Partition(_Features(module), _Head(module), _WHOLE_FEATURES)
    same = halves is not None and _computes_the_same(module, halves, size_px)
    set_training_mode(module)
    return halves if same else None


def _cut_by_tracing(
    module: nn.Module, trainable: Collection[str], boundary: str | None
) -> Partition | None:
    try:
        set_training_mode(module)
        traced, names = _traced(module)
        place = boundary or _place(traced, names, module, trainable)
        if place is None:
            return None
        tail_training = _halves(module, traced, _node_at(place, traced, names))[1]
        module.eval()
        traced, names = _traced(module)
        trunk, tail_evaluating = _halves(module, traced, _node_at(place, traced, names))
    # Networks are arbitrary code, and tracing may fail in any way that code can.
    except Exception:
        return None
    if not list(trunk.parameters()):
        return None
    return Partition(trunk, Tail(tail_training, tail_evaluating), place)


def _traced(module: nn.Module) -> tuple[list[fx.Node], dict[fx.Node, str]]:
    """The nodes of the module in its present mode, and the module that each comes from."""
    tracer = NodePathTracer(
        leaf_modules=tuple(get_notrace_modules()), autowrap_functions=tuple(get_notrace_functions())
    )
    nodes = list(tracer.trace(module).nodes)
    return nodes, {node: tracer.node_to_qualname.get(node, node.name) for node in nodes}


def _node_at(place: str, nodes: list[fx.Node], names: dict[fx.Node, str]) -> fx.Node:
    return next(node for node in nodes if names[node] == place)


def _place(
    nodes: list[fx.Node],
    names: dict[fx.Node, str],
    module: nn.Module,
    trainable: Collection[str],
) -> str | None:
    """Where the last single value is made before anything that trains or is drawn by chance; None
    if that is the input itself."""
    first = next(
        at
        for at, node in enumerate(nodes)
        if _trains(node, module, trainable) or _drops(node, module)
    )
    for at in range(first, 0, -1):
        crossing = _crossing(nodes, at)
        if len(crossing) == 1:
            return names[crossing[0]] if crossing[0].op != "placeholder" else None
    return None


def _trains(node: fx.Node, module: nn.Module, trainable: Collection[str]) -> bool:
    if node.op == "get_attr":
        return str(node.target) in trainable
    if node.op != "call_module":
        return False
    part = module.get_submodule(str(node.target))
    return any(f"{node.target}.{name}" in trainable for name, _ in part.named_parameters())


def _drops(node: fx.Node, module: nn.Module) -> bool:
    """Whether the node drops values by chance, so that what follows it differs every time."""
    if node.op == "call_module":
        part = module.get_submodule(str(node.target))
        return isinstance(part, _DropoutNd) and part.training and part.p > 0
    if node.target in (nn.functional.dropout, nn.functional.scaled_dot_product_attention):
        share = node.kwargs.get("p", node.kwargs.get("dropout_p", 0))
        return bool(node.kwargs.get("training", True) and share)
    return False


def _crossing(nodes: list[fx.Node], at: int) -> list[fx.Node]:
    """Values made before position `at` and used from there on, constants aside."""
    later = set(nodes[at:])
    return [
        node
        for node in nodes[:at]
        if not (_is_constant(node, nodes) or later.isdisjoint(node.users))
    ]


def _is_constant(node: fx.Node, nodes: list[fx.Node]) -> bool:
    """Parameters, and optional inputs of the network, which stay at their defaults."""
    return node.op == "get_attr" or (node.op == "placeholder" and node is not nodes[0])


def _halves(
    module: nn.Module, nodes: list[fx.Node], boundary: fx.Node
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What leads to `boundary`, and what follows from it, over the module's own parts."""
    cut = nodes.index(boundary) + 1
    following = set(nodes[cut:])
    trunk, tail = fx.Graph(), fx.Graph()
    in_trunk: dict[fx.Node, Any] = {}
    in_tail: dict[fx.Node, Any] = {boundary: tail.placeholder("features")}
    for node in nodes[:cut]:
        _copy(node, nodes, trunk, in_trunk)
        if _is_constant(node, nodes) and not following.isdisjoint(node.users):
            _copy(node, nodes, tail, in_tail)
    trunk.output(in_trunk[boundary])
    for node in nodes[cut:]:
        _copy(node, nodes, tail, in_tail)
    return fx.GraphModule(module, trunk), fx.GraphModule(module, tail)


def _copy(node: fx.Node, nodes: list[fx.Node], graph: fx.Graph, copies: dict[fx.Node, Any]) -> None:
    if node.op == "placeholder" and node is not nodes[0]:
        copies[node] = node.args[0] if node.args else None
    else:
        copies[node] = graph.node_copy(node, copies.__getitem__)


@torch.no_grad()
def _computes_the_same(module: nn.Module, halves: Partition, size_px: int) -> bool:
    """Whether two batch sizes give the network's own logits (a trace may have fixed one)."""
    device = next(module.parameters()).device
    module.eval()
    halves.tail.eval()
    try:
        for count in (2, 3):
            example = torch.linspace(-1, 1, count * 3 * size_px * size_px, device=device)
            example = example.view(count, 3, size_px, size_px)
            expected, got = module(example), halves.tail(halves.trunk(example))
            if not torch.allclose(expected, got, rtol=1e-4, atol=1e-4):
                return False
    except Exception:  # as in tracing
        return False
    return True
