"""Variation of whole batches, on the device: erasing, MixUp and CutMix by timm, and the loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before timm)
from vizsla.settings import AugmentSettings

# isort: split
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing


class BatchMixer:
    """Varies a batch of normalised inputs; draws from the global generators of its process."""

    def __init__(self, settings: AugmentSettings, class_count: int, device: torch.device) -> None:
        self._erase = None
        if settings.random_erasing:
            self._erase = RandomErasing(settings.random_erasing, mode="pixel", device=str(device))
        self._mix = None
        if settings.mixup or settings.cutmix:
            self._mix = Mixup(
                mixup_alpha=settings.mixup,
                cutmix_alpha=settings.cutmix,
                label_smoothing=0.0,  # the loss smooths, mixed or not
                num_classes=class_count,
            )
        self._class_count = class_count

    def __call__(
        self, inputs: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (batch, 3, h, w) and targets: labels (batch,), or shares (batch, classes)."""
        if self._erase is not None:
            inputs = self._erase(inputs)
        if self._mix is None:
            return inputs, labels
        even = len(labels) // 2 * 2  # timm mixes pairs; an odd one out stays as it is
        if even == 0:
            return inputs, F.one_hot(labels, self._class_count).to(inputs.dtype)
        mixed, shares = self._mix(inputs[:even], labels[:even])
        if even == len(labels):
            return mixed, shares
        rest = F.one_hot(labels[even:], self._class_count).to(shares.dtype)
        return torch.cat([mixed, inputs[even:]]), torch.cat([shares, rest])


def build_loss(label_smoothing: float, class_weights: torch.Tensor | None) -> nn.Module:
    """Cross entropy of logits against labels or shares, meaned over the batch."""
    return nn.CrossEntropyLoss(weight=class_weights, label_smoothing=label_smoothing)
