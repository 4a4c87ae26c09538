"""Labels and answers of a batch, as its loss function saw them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Of a larger batch the first ones are enough to judge by.
_MOST = 256


@dataclass(frozen=True)
class AnswerPieces:
    """Of each picture of a batch label, predicted class and its probability: each (pictures,)."""

    labels: torch.Tensor
    predictions: torch.Tensor
    confidences: torch.Tensor


@torch.no_grad()
def answers_of(args: tuple[Any, ...], most: int | None = _MOST) -> list[AnswerPieces]:
    """Answers from what a loss was given: logits (pictures, classes) and labels (pictures,);
    nothing for a loss of anything else, such as mixed labels."""
    if len(args) < 2 or not all(isinstance(one, torch.Tensor) for one in args[:2]):
        return []
    logits, labels = args[0].detach(), args[1].detach()
    classes = logits.ndim == 2 and logits.shape[1] > 1 and logits.is_floating_point()
    if not classes or labels.shape != logits.shape[:1] or labels.is_floating_point():
        return []
    confidences, predictions = logits[:most].float().softmax(dim=1).max(dim=1)
    return [AnswerPieces(labels[:most].clone(), predictions, confidences)]
