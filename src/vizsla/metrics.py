"""Metrics of a classifier from its probabilities, in NumPy.

Training, the evaluation of a bundle and later reports share this one implementation, and the
second of them must run where torch is absent; that is why it is not torchmetrics (a test holds
the figures against it). A confusion matrix plus three running sums say everything, so metrics
of a split never need all its probabilities in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.records import ClassLabel, SplitMetrics


@dataclass
class MetricSums:
    """Running sums over one split of `class_count` classes; `confusion[true, predicted]`."""

    class_count: int
    loss_sum: float = 0.0
    top5_hits: int = 0
    confusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def __post_init__(self) -> None:
        if self.confusion.size == 0:
            self.confusion = np.zeros((self.class_count, self.class_count), np.int64)

    def add(self, log_probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> None:
        """Count one batch: log-probabilities (pictures, classes) and labels (pictures,)."""
        rows = np.arange(len(labels))
        own = log_probabilities[rows, labels]
        self.loss_sum += float(-own.sum(dtype=np.float64))
        among_five = (log_probabilities > own[:, None]).sum(axis=1) < 5
        self.top5_hits += int((among_five & ~np.isnan(own)).sum())  # nothing is above a NaN
        np.add.at(self.confusion, (labels, log_probabilities.argmax(axis=1)), 1)

    def summary(self) -> SplitMetrics:
        pictures = int(self.confusion.sum())
        count = max(pictures, 1)
        return SplitMetrics(
            loss=self.loss_sum / count,
            accuracy=int(self.confusion.trace()) / count,
            top5_accuracy=self.top5_hits / count,
            macro_f1=macro_f1(self.confusion),
            pictures=pictures,
        )


def per_class(
    confusion: NDArray[np.int64], classes: tuple[ClassLabel, ...]
) -> list[dict[str, Any]]:
    """Precision, recall, F1 and pictures of every class, in class order."""
    precision, recall, f1 = _class_scores(confusion)
    return [
        {
            "label": label.code,
            "class_name": label.name,
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "pictures": int(confusion[index].sum()),
        }
        for index, label in enumerate(classes)
    ]


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that occur, as a label or as a prediction."""
    occurs = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    return float(_class_scores(confusion)[2][occurs].mean()) if occurs.any() else 0.0


def _class_scores(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], ...]:
    hits = confusion.diagonal().astype(np.float64)
    predicted, actual = confusion.sum(axis=0), confusion.sum(axis=1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    return precision, recall, 2 * hits / np.maximum(predicted + actual, 1)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities of logits (…, classes), computed in float64 for a stable tail."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
