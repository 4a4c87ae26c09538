"""Metrics of a network over a split, summed on the device, and each picture's answer on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from vizsla.data.loader import Batch
from vizsla.data.transforms import Preprocessing
from vizsla.metrics import MetricSums
from vizsla.records import PictureProblem


class DeviceSums:
    """Running sums of a split's metrics, kept on the device so that no step waits for them."""

    def __init__(self, class_count: int, device: torch.device) -> None:
        self._class_count = class_count
        # float64 holds sums and counts exactly; MPS has none, and float32 is near enough there.
        kind = torch.float32 if device.type == "mps" else torch.float64
        self._totals = torch.zeros(2, dtype=kind, device=device)  # loss, top-5 hits
        self._confusion = torch.zeros(class_count * class_count, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: its mean loss, logits (batch, classes) and labels (batch,)."""
        own = logits.gather(1, labels[:, None])
        self._totals[0] += loss.to(self._totals.dtype) * len(labels)
        ranked = ((logits > own).sum(dim=1) < 5) & ~own[:, 0].isnan()
        self._totals[1] += ranked.sum()
        cells = labels * self._class_count + logits.argmax(dim=1)
        self._confusion.index_put_((cells,), torch.ones_like(cells), accumulate=True)

    def summed(self, accelerator: Accelerator | None = None) -> MetricSums:
        """The sums on the host, over all processes of `accelerator` if one is given."""
        totals, confusion = self._totals, self._confusion
        if accelerator is not None:
            totals, confusion = accelerator.reduce(totals), accelerator.reduce(confusion)
        loss_sum, hits = totals.tolist()
        cells = confusion.cpu().numpy().reshape(self._class_count, self._class_count)
        return MetricSums(self._class_count, loss_sum, round(hits), cells)

    def state(self) -> dict[str, torch.Tensor]:
        return {"totals": self._totals.cpu().clone(), "confusion": self._confusion.cpu().clone()}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self._totals.copy_(state["totals"])
        self._confusion.copy_(state["confusion"])


class InputMaker:
    """Bytes of a batch to normalised inputs on the device, in channels-last layout."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        scale, shift = preprocessing.scale_and_shift()
        self._scale = torch.from_numpy(scale).to(device).view(1, 3, 1, 1)
        self._shift = torch.from_numpy(shift).to(device).view(1, 3, 1, 1)
        self._device = device

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, 3) bytes to (batch, 3, height, width) float32."""
        moved = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return moved.to(torch.float32) * self._scale - self._shift


@dataclass
class SplitEvaluation:
    """Sums of a split, its problems, and of an exact evaluation each picture's row and
    probabilities, a batch at a time."""

    sums: MetricSums
    problems: list[PictureProblem]
    rows: list[int] = field(default_factory=list)
    probabilities: list[np.ndarray] = field(default_factory=list)


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    inputs: Callable[[torch.Tensor], torch.Tensor],
    class_count: int,
    accelerator: Accelerator,
    *,
    exact: bool = False,
    tell: Callable[[torch.Tensor, torch.Tensor], object] | None = None,
) -> SplitEvaluation:
    """Metrics of `network` in eval mode over `batches`, in the accelerator's precision and summed
    over its processes; if `exact`, in float32, of this process alone, and with the answers. `tell`
    is called with the logits and labels of each batch."""
    network.eval()
    sums = DeviceSums(class_count, accelerator.device)
    result = SplitEvaluation(sums=MetricSums(class_count), problems=[])
    for batch in batches:
        result.problems += batch.problems
        if len(batch.labels) == 0:
            continue
        labels = batch.labels.to(accelerator.device, non_blocking=True)
        made = inputs(batch.pixels)
        if exact:
            logits = network(made).float()
        else:
            with accelerator.autocast():
                logits = network(made).float()
        sums.add(nn.functional.cross_entropy(logits, labels), logits, labels)
        if tell is not None:
            tell(logits, labels)
        if exact:
            result.rows += batch.rows.tolist()
            result.probabilities.append(logits.softmax(dim=1).cpu().numpy())
    result.sums = sums.summed(None if exact else accelerator)
    return result
