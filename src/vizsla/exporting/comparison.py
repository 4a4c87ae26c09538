"""An export against its original on the same pictures: answers, accuracy, size and speed.

`verify.py` asks whether a file answers as the network that it was written from, to the last digit;
here the two may differ, and the question is how much that costs. Latencies are taken in turn, so
that whatever else the machine does hits both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vizsla.exporting.fallback import AGREEMENT_FACTOR, Answers, Judged, Limits
from vizsla.findings import Finding
from vizsla.metrics import MetricSums, log_softmax
from vizsla.records import SplitMetrics

_ROUNDS = {1: 21, 16: 7}  # by pictures a batch


@dataclass(frozen=True)
class Figures:
    """One network: its metrics on the pictures, the bytes of its file, and milliseconds of a batch
    by its pictures, each the median of several."""

    metrics: SplitMetrics
    size_bytes: int
    latency_ms: Mapping[int, float]

    def to_dict(self) -> dict[str, Any]:
        latency = {str(count): round(span, 3) for count, span in self.latency_ms.items()}
        return {**asdict(self.metrics), "bytes": self.size_bytes, "latency_ms": latency}


@dataclass(frozen=True)
class Comparison:
    """An export against its original. `agreement` is the share of pictures with the same first
    answer, `largest_difference` the largest of any two probabilities."""

    split: str
    agreement: float
    largest_difference: float
    original: Figures
    export: Figures
    threads: int

    @property
    def pictures(self) -> int:
        return self.original.metrics.pictures

    @property
    def lost(self) -> float:
        """Accuracy lost, as a share of the pictures; negative where it gained."""
        return self.original.metrics.accuracy - self.export.metrics.accuracy

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "pictures": self.pictures,
            "agreement": self.agreement,
            "largest_probability_difference": self.largest_difference,
            "threads": self.threads,
            "original": self.original.to_dict(),
            "export": self.export.to_dict(),
        }


def compare(
    original: tuple[Answers, int],
    export: tuple[Answers, int],
    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.integer]]],
    classes: int,
    split: str,
    temperature: float = 1.0,
    threads: int = 1,
) -> Comparison:
    """Hold two networks, each with its bytes, against one another on `batches` of inputs and
    labels; `threads` is what both were given, to be told."""
    networks = (original[0], export[0])
    sums = [MetricSums(classes) for _ in networks]
    same, largest, example = 0, 0.0, None
    for inputs, labels in batches:
        logs = [log_softmax(answers(inputs) / temperature) for answers in networks]
        for total, log in zip(sums, logs, strict=True):
            total.add(log, labels)
        same += int((logs[0].argmax(axis=1) == logs[1].argmax(axis=1)).sum())
        largest = max(largest, float(np.abs(np.exp(logs[0]) - np.exp(logs[1])).max()))
        example = inputs[:1] if example is None else example
    assert example is not None
    latencies = latencies_ms(networks, example)
    figures = [
        Figures(total.summary(), size, latency)
        for total, (_, size), latency in zip(sums, (original, export), latencies, strict=True)
    ]
    count = figures[0].metrics.pictures
    return Comparison(split, same / count, largest, figures[0], figures[1], threads)


def latencies_ms(
    networks: Iterable[Callable[[NDArray[np.float32]], Any]], example: NDArray[np.float32]
) -> list[dict[int, float]]:
    """For each network the median milliseconds of batches of 1 and of 16, taken in turn.

    `example` (1, 3, size, size) is repeated.
    """
    answering = list(networks)
    found: list[dict[int, float]] = [{} for _ in answering]
    for count, rounds in _ROUNDS.items():
        inputs = np.ascontiguousarray(example.repeat(count, axis=0))
        spans: list[list[float]] = [[] for _ in answering]
        for _ in range(rounds + 1):
            for own, answers in zip(spans, answering, strict=True):
                started = time.perf_counter()
                answers(inputs)
                own.append(1000 * (time.perf_counter() - started))
        for figures, own in zip(found, spans, strict=True):
            figures[count] = statistics.median(own[1:])  # the first warms up
    return found


def judge_export(comparison: Comparison, limits: Limits, what: str, ways_out: str) -> list[Finding]:
    """An error, with `ways_out` as advice, where the export lost more accuracy, or changed more
    answers, than it may."""
    judged = Judged(comparison.agreement, comparison.lost, 0.0, comparison.pictures)
    if limits.hold(judged):
        return []
    original, export = comparison.original.metrics, comparison.export.metrics
    too_many_lost = comparison.lost > limits.accuracy
    meaning = (
        f"The {what} export answers {comparison.pictures} {comparison.split} pictures with an "
        f"accuracy of {export.accuracy:.4f} instead of {original.accuracy:.4f}, and "
        f"{comparison.agreement:.1%} of them as the original does"
    )
    allowed = f"it may lose {limits.accuracy:g} (max_loss)"
    if limits.disagreement is not None:
        allowed += f" and change {limits.disagreement:.1%} of the answers"
    return [
        Finding(
            rule="export_loses",
            severity="error",
            where=what,
            measured=comparison.lost if too_many_lost else 1 - comparison.agreement,
            threshold=limits.accuracy if too_many_lost else limits.disagreement,
            meaning=f"{meaning}; {allowed}.",
            advice=f"Nothing was written. {ways_out}",
            evidence={"pictures": comparison.pictures, "factor": AGREEMENT_FACTOR},
        )
    ]
