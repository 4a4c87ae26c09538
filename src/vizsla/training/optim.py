"""Updates: the optimiser, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.settings import OptimizerSettings, Recipe

# isort: split
from timm.optim import create_optimizer_v2

# Peak rates that work without a search: (head alone, part, all of a pretrained network, scratch).
_ADAM_RATES = (3e-3, 3e-4, 1e-4, 2e-3)
_SGD_RATES = (1e-1, 1e-2, 1e-2, 5e-2)


def peak_rate(recipe: Recipe) -> float:
    """The recipe's learning rate, or one that suits its optimiser and what trains."""
    if recipe.lr is not None:
        return recipe.lr
    rates = _SGD_RATES if recipe.optimizer == "sgd" else _ADAM_RATES
    if recipe.weights == "none" and recipe.unfreeze == "all":
        return rates[3]
    return rates[{"head": 0, "all": 2}.get(recipe.unfreeze, 1)]


def learning_rate(
    settings: OptimizerSettings, peak: float, step: int, per_epoch: int, epochs: int
) -> float:
    """The rate of update `step`, counted from 0, of `epochs` epochs of `per_epoch` updates.

    Warm-up rises linearly to `peak`. After it `cosine` falls to zero over what remains (Loshchilov
    and Hutter, 2017), `step` is multiplied by `step_factor` every `step_epochs`, and `constant`
    stays. `onecycle` (Smith and Topin, 2018) rises over the warm-up, or the first 30 %, and falls
    to a ten-thousandth, both along a cosine.
    """
    total = per_epoch * epochs
    warmup = round(settings.warmup_epochs * per_epoch)
    if settings.schedule == "onecycle":
        top = warmup or max(1, round(0.3 * total))
        if step < top:
            return _glide(peak / 25, peak, (step + 1) / top)
        return _glide(peak, peak / 1e4, (step + 1 - top) / max(total - top, 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    if settings.schedule == "cosine":
        return _glide(peak, 0.0, (step - warmup) / max(total - warmup, 1))
    if settings.schedule == "step":
        drops = int((step / per_epoch) / settings.step_epochs)
        return float(peak * settings.step_factor**drops)
    return peak


def _glide(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, rate: float
) -> torch.optim.Optimizer:
    """timm's optimiser over the parameters that train; biases and norms do not decay."""
    arguments: dict[str, float | bool] = {}
    name: str = settings.optimizer
    if name == "sgd":
        # timm calls plain momentum by its own name and means Nesterov by sgd.
        name = "sgd" if settings.nesterov else "momentum"
        arguments["momentum"] = settings.momentum
    else:
        arguments["eps"] = settings.eps
    if name in ("adam", "adamw"):
        arguments["fused"] = True  # one pass over the weights: two to five times as fast
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        module, opt=name, lr=rate, weight_decay=settings.weight_decay, **arguments
    )
    return optimizer
