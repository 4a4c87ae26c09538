"""What a training could have gained, measured on this machine once it is over.

Two measurements of some seconds: a step in float32 against one in bf16, and a pass through the
frozen layers, which a cache would have saved. They compute with copies, without anybody's hooks,
and leave the trained network and every random generator as they were. Where steps take long, they
compute with fewer pictures than the training did.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vizsla.data.fixed_views import FixedViews, has_fixed_views
from vizsla.data.transforms import Preprocessing
from vizsla.models.freezing import set_training_mode
from vizsla.models.partition import partition
from vizsla.records import EpochRecord
from vizsla.settings import Recipe
from vizsla.training.events import TrainingFacts, TrainingParts
from vizsla.training.setup import computes_bf16

_MOST_S = 3.0
_MOST_STEP_S = 0.5
_TURNS = 5
_ADVISED_VIEWS = 8


class Probe:
    """Watches the first inputs of a training, and measures with their like afterwards."""

    def __init__(self, facts: TrainingFacts, parts: TrainingParts) -> None:
        self._facts, self._parts = facts, parts
        self._inputs: torch.Tensor | None = None
        self._handle = parts.computed.register_forward_pre_hook(self._keep)

    def close(self) -> None:
        self._handle.remove()

    def bf16_gain(self, epochs: list[EpochRecord]) -> dict[str, Any] | None:
        """Seconds of a step in float32 and in bf16; None where that is no question here."""
        inputs, parts = self._fewer(epochs), self._parts
        if inputs is None or parts.optimizer is None:
            return None
        if inputs.ndim != 4:  # a head on kept outputs: products too small to gain, and float32
            return None  # lets the kept outputs serve the exact evaluation as well
        if not computes_bf16(inputs.device):
            return None
        # Compiled, each of the two would first be compiled anew.
        network = _copy_of(getattr(parts.computed, "_orig_mod", parts.computed))
        set_training_mode(network)

        def step(bf16: bool) -> None:
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
                answer = network(inputs)
            answer.float().logsumexp(1).sum().backward()
            network.zero_grad(set_to_none=True)

        seconds = _timed(inputs.device, {"fp32": lambda: step(False), "bf16": lambda: step(True)})
        return {
            "gain": round(seconds["fp32"] / seconds["bf16"], 3),
            "fp32_seconds": seconds["fp32"],
            "bf16_seconds": seconds["bf16"],
            "pictures": len(inputs),
            "precision": self._facts.precision,
        }

    def frozen_work(
        self, recipe: Recipe, model: Mapping[str, Any], epochs: list[EpochRecord]
    ) -> dict[str, Any] | None:
        """Seconds of a picture's pass through the frozen layers, how many were computed, and how
        many a cache would have saved; None where nothing was computed twice."""
        inputs, facts = self._fewer(epochs), self._facts
        if inputs is None or facts.note is None or inputs.ndim != 4:
            return None
        passes = sum(one.train.pictures + one.valid.pictures for one in epochs)
        saved = passes - _needed(recipe, model, facts, epochs)
        if saved <= 0:
            return None
        network = _copy_of(self._parts.network)
        trainable = {name for name, one in network.named_parameters() if one.requires_grad}
        halves = partition(network, trainable, inputs.shape[-1])
        if halves is None:
            return None
        trunk, bf16 = halves.trunk.eval(), facts.precision == "bf16"

        @torch.inference_mode()
        def run() -> None:
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
                trunk(inputs)

        seconds = _timed(inputs.device, {"trunk": run})["trunk"]
        return {
            "trunk_seconds_per_picture": seconds / len(inputs),
            "passes": passes,
            "saved": saved,
            "why": facts.note,
            "boundary": halves.boundary,
        }

    def _fewer(self, epochs: list[EpochRecord]) -> torch.Tensor | None:
        """Inputs as the training's, no more than a step of half a second computes; None where no
        epoch tells how long one takes."""
        if self._inputs is None or not epochs:
            return None
        pictures = sum(one.train.pictures for one in epochs)
        seconds = sum(one.train_seconds for one in epochs) / max(pictures, 1)
        return self._inputs[: max(2, int(_MOST_STEP_S / max(seconds, 1e-9)))]

    def _keep(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        # In place of the pictures, which stay the training's own: only shape and device matter.
        if given and isinstance(given[0], torch.Tensor):
            self._inputs = torch.zeros_like(given[0], requires_grad=False)
            self.close()


def _copy_of(network: nn.Module) -> nn.Module:
    """The network without hooks, whose owners would hear of passes that are none of theirs, and
    without the forward that Accelerate puts on it for bf16, which is bound to the original."""
    memo: dict[int, Any] = {}
    for module in network.modules():
        for name, hooks in vars(module).items():
            if "_hooks" in name and isinstance(hooks, dict):
                memo[id(hooks)] = type(hooks)()
    patched = vars(network).get("forward")
    if patched is not None:
        memo[id(patched)] = None
    copied = copy.deepcopy(network, memo)
    vars(copied).pop("forward", None)
    return copied


def _needed(
    recipe: Recipe, model: Mapping[str, Any], facts: TrainingFacts, epochs: list[EpochRecord]
) -> int:
    """Passes that are left where outputs are kept: in the views that the recipe has, or in those
    that would be advised in place of ever new ones."""
    views = _ADVISED_VIEWS
    if has_fixed_views(recipe):
        preprocessing = Preprocessing.from_dict(model["preprocessing"])
        views = len(FixedViews(recipe, preprocessing, recipe.seed).taken)
    return facts.train_pictures * min(views, len(epochs)) + epochs[-1].valid.pictures


def _timed(device: torch.device, ways: Mapping[str, Callable[[], None]]) -> dict[str, float]:
    """The shortest time of each way, taken in turns, after one turn that nobody counts."""
    best = dict.fromkeys(ways, math.inf)
    end = time.perf_counter() + _MOST_S
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for turn in range(_TURNS + 1):
            for name, run in ways.items():
                started = time.perf_counter()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn:
                    best[name] = min(best[name], time.perf_counter() - started)
            if turn and time.perf_counter() > end:
                break
    return best
