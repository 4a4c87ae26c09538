"""The loss of a training batch in eval mode: what batch norm's running statistics make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def eval_mode_loss(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    loss_fn: nn.Module,
    targets: tuple[Any, ...],
) -> torch.Tensor:
    """The loss of a batch with every module in eval mode; every module's mode and the random
    numbers to come are afterwards as they were."""
    modes = [(module, module.training) for module in network.modules()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        try:
            network.eval()
            loss: torch.Tensor = loss_fn(network(*args, **kwargs), *targets)
        finally:
            for module, mode in modes:
                module.training = mode
    return loss.detach().float().mean()
