"""What goes into modules and comes out of them, in one forward pass of a step that is due."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from vizsla.debugging.hooks import Hook
from vizsla.debugging.modules import DYING, Wanted, in_backward
from vizsla.debugging.plan import CapturePlan
from vizsla.debugging.reductions import Reduced, unit_shares
from vizsla.debugging.whole import WholeTensors

_PART = "activations"
Bounds = tuple[float, float] | None
_ABOVE_ZERO = (-math.inf, 0.0)


class Pieces(Protocol):
    """Where activations go."""

    reduced: Reduced
    units: dict[str, torch.Tensor]
    whole: dict[str, torch.Tensor]


class Activations:
    """Hooks modules from `begin` to the end of one pass through the network.

    `safely` calls a function of ours so that its failure reaches nobody.
    """

    def __init__(
        self,
        plan: CapturePlan,
        whole: WholeTensors,
        safely: Callable[..., None],
        device: torch.device | None,
    ) -> None:
        self._plan, self._whole, self._safely = plan, whole, safely
        self._device = device  # of several replicas the one whose tensors lie here is taken
        self._saturated: dict[str | None, Bounds] = {
            "tanh_input": plan.tanh_bounds,
            "sigmoid_input": plan.sigmoid_bounds,
        }
        self._handles: list[RemovableHandle] = []
        self._calls: dict[str, int] = {}
        self._pieces: Pieces | None = None
        self._rows_first = False
        self.listening = False

    def begin(self, wanted: Wanted, pieces: Pieces, root: str, given: Any) -> None:
        """Listen to the pass that begins with `given`."""
        self.disarm()
        self._pieces, self.listening = pieces, True
        self._rows_first = wanted.has_rows
        self._take_all(f"{root}_input", "inputs", _tensors_in(given))
        for path, (module, home) in wanted.inputs.items():
            hook = Hook(self._on_input, path, home)
            self._handles.append(module.register_forward_pre_hook(hook))
        for path, (module, home) in wanted.outputs.items():
            hook = Hook(self._on_module_output, path, home)
            self._handles.append(module.register_forward_hook(hook))

    def end(self, root: str, output: Any) -> None:
        """The pass is over; of further ones in the same step nothing is taken."""
        self._take_all(f"{root}_output", "outputs", _tensors_in(output))
        self.disarm()

    def disarm(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._calls.clear()
        self._pieces, self.listening = None, False

    def _on_input(self, path: str, home: str | None, _: nn.Module, args: Any) -> None:
        self._seen(f"{path}_input", home, args, self._saturated.get(home))

    def _on_module_output(
        self, path: str, home: str | None, module: nn.Module, _: Any, output: Any
    ) -> None:
        bounds = _ABOVE_ZERO if isinstance(module, DYING) else None
        self._seen(f"{path}_output", home, output, bounds)

    def _seen(self, name: str, home: str | None, values: Any, bounds: Bounds) -> None:
        if self.listening and not in_backward():
            self._safely(_PART, self._count_and_take, name, home, values, bounds)

    def _count_and_take(self, name: str, home: str | None, values: Any, bounds: Bounds) -> None:
        for value in _tensors_in(values):
            if self._device in (None, value.device):
                call = self._calls.get(name, 0)
                self._calls[name] = call + 1
                self._take(f"{name}_{call}", home, value, bounds)

    def _take_all(self, name: str, home: str, tensors: Iterable[torch.Tensor]) -> None:
        for number, tensor in enumerate(tensors):
            if self._plan.wants(f"{name}_{number}", home):
                self._take(f"{name}_{number}", home, tensor)

    @torch.no_grad()
    def _take(
        self, name: str, home: str | None, tensor: torch.Tensor, bounds: Bounds = None
    ) -> None:
        assert self._pieces is not None
        collection = home or ("inputs" if "_input_" in name else "outputs")
        self._pieces.reduced.add(name, collection, tensor)
        if bounds is not None:
            shares = unit_shares(tensor, bounds, self._rows_first)
            if shares is not None:
                self._pieces.units[name] = shares
        self._whole.take(self._pieces.whole, name, collection, tensor)


def _tensors_in(output: Any) -> Iterable[torch.Tensor]:
    """The tensors of what a module takes or gives: one, several in a sequence or mapping, or
    nested."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for one in output.values():
            yield from _tensors_in(one)
    elif isinstance(output, list | tuple):
        for one in output:
            yield from _tensors_in(one)
