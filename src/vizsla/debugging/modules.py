"""What the parts of a network are called, and which of them are to be captured.

Wrappers (DataParallel, DDP, torch.compile) are looked through, so that names are the network's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from vizsla.debugging.format import GRADIENT
from vizsla.debugging.plan import CapturePlan

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Of these a unit may die; leaky ones let a little through.
DYING = (nn.ReLU, nn.ReLU6)
_RELUS = (*DYING, nn.LeakyReLU, nn.PReLU, nn.RReLU)
_KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("relu", _RELUS),
    ("tanh", (nn.Tanh,)),
    ("sigmoid", (nn.Sigmoid,)),
)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network itself."""
    while True:
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def is_compiled(module: nn.Module) -> bool:
    """Whether its forward pass is a compiled graph, into which no hook reaches."""
    if isinstance(module, _WRAPPERS):
        return is_compiled(module.module)
    wrapped = isinstance(getattr(module, "_orig_mod", None), nn.Module)
    return wrapped or getattr(module, "_compiled_call_impl", None) is not None


def parameter_collection(name: str) -> str:
    return "biases" if name.rpartition(".")[2].endswith("bias") else "weights"


@dataclass(frozen=True)
class Wanted:
    """What of a network is captured: parameters and gradients by their name, and of modules what
    goes in and comes out, with collections. `known` are all names, for examples."""

    parameters: dict[str, tuple[nn.Parameter, str]] = field(default_factory=dict)
    gradients: dict[str, nn.Parameter] = field(default_factory=dict)
    inputs: dict[str, tuple[nn.Module, str | None]] = field(default_factory=dict)
    outputs: dict[str, tuple[nn.Module, str | None]] = field(default_factory=dict)
    has_rows: bool = False  # activations (batch, channels, length)
    compiled: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


def trains(network: nn.Module) -> tuple[tuple[int, bool], ...]:
    """Which parameters there are, and which of them train; equal as long as nothing changes."""
    return tuple((id(one), one.requires_grad) for one in network.parameters())


def wanted_of(
    network: nn.Module, plan: CapturePlan, compiled: bool, others: tuple[str, ...] = ()
) -> Wanted:
    """What a plan wants of a network (unwrapped), which is `compiled` as a whole or not; `others`
    are names of what is not its part. A tied weight goes by its first name."""
    found = Wanted()
    root = type(network).__name__
    known = [*others, f"{root}_input_0", f"{root}_output_0"]
    for path, parameter in network.named_parameters():
        name = path.replace("_orig_mod.", "")
        home, gradient = parameter_collection(name), GRADIENT + name
        known += [name, gradient]
        trains = parameter.requires_grad
        if plan.wants(name, home if trains else None):
            found.parameters[name] = (parameter, home)
        if trains and plan.wants(gradient, "gradients"):
            found.gradients[gradient] = parameter
    unseen: list[str] = []
    for path, module, hidden in _modules(network, compiled):
        if not path:
            continue
        kind = next((kind for kind, types in _KINDS if isinstance(module, types)), None)
        ends = (("input", found.inputs), ("output", found.outputs))
        for end, places in ends:
            name = f"{path}_{end}_0"
            known.append(name)
            collection = f"{kind}_{end}" if kind is not None else None
            if plan.wants(name, collection):
                if hidden:
                    unseen.append(path)
                else:
                    places[path] = (module, collection)
    unmatched = [
        one.pattern
        for one in (*plan.patterns, *plan.whole)
        if not any(one.search(name) for name in _with_later_calls(known))
    ]
    return Wanted(
        found.parameters, found.gradients, found.inputs, found.outputs,
        any(isinstance(one, nn.Conv1d) for one in network.modules()),
        tuple(dict.fromkeys(unseen)), tuple(unmatched), tuple(known),
    )  # fmt: skip


def in_backward() -> bool:
    """Whether autograd is running: a forward pass now is a checkpointed one, computed again."""
    probe = getattr(torch._C, "_current_graph_task_id", None)
    return probe is not None and probe() != -1


def _modules(network: nn.Module, compiled: bool) -> Iterator[tuple[str, nn.Module, bool]]:
    """Path, module, and whether it lies inside a compiled one; a shared module once."""
    hidden: list[str] = []
    for path, module in network.named_modules():
        inside = compiled or any(f"{path}.".startswith(f"{outer}.") for outer in hidden)
        in_place = getattr(module, "_compiled_call_impl", None) is not None
        yield path.replace("_orig_mod.", ""), module, inside or in_place
        if is_compiled(module):
            hidden.append(path)


def _with_later_calls(names: list[str]) -> Iterator[str]:
    """The names, and those of a module that is called several times."""
    for name in names:
        yield name
        if name.endswith("put_0"):
            yield from (f"{name[:-1]}{call}" for call in range(1, 10))
