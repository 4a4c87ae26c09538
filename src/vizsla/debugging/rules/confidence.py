"""Rules over confidences: against the labels, and against the share of right answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.answers import (
    LISTED,
    answers_in,
    answers_of_evaluations,
    exceeds,
    last_answers,
    pair_names,
    part_of,
    tally_of,
)
from vizsla.debugging.rules.base import DebugRule, in_words
from vizsla.debugging.tensors import Answers
from vizsla.findings import Finding

_BINS = 15
# A change of accuracy up to this is none.
_SAME_ACCURACY = 0.01
# Below this share of right answers a network has not learned enough to doubt its labels.
_LEARNED = 0.6


class LabelNoise(DebugRule):
    """Many pictures are answered otherwise than labelled, with confidence: labels may be wrong.

    SageMaker has no such rule. In the last third of the training's recorded answers, if these are
    `samples`, it fires when more than `threshold` of all pictures are answered with another class
    at a confidence over `confidence`. It waits until 60 % of the answers are right: before, the
    network's confidence means nothing. Labels that are wrong at random keep a well calibrated
    network's confidence at their share of right ones: with more than a tenth wrong, ask with a
    lower `confidence`. Labels that have been learned by heart are no longer contradicted.
    """

    name: ClassVar[str] = "label_noise"
    needs: ClassVar[tuple[str, ...]] = ("labels", "predictions")

    confidence: float = Field(0.9, ge=0, lt=1, description="Confidence of an answer that counts.")
    threshold: float = Field(
        0.05, ge=0, le=1, description="Share of pictures that may be contradicted."
    )
    samples: int = Field(200, ge=1, description="Pictures before anything is judged.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        answers = last_answers(answers_in(record, "train"), 1 / 3)
        if len(answers) < self.samples:
            return []
        wrong = answers.labels != answers.predictions
        against = wrong & (answers.confidences > self.confidence)
        count = int(against.sum())
        if 1 - wrong.mean() < _LEARNED or not exceeds(count, len(answers), self.threshold):
            return []
        tally = tally_of(part_of(answers, against))
        pairs = pair_names(record, tally, np.arange(len(tally.rows))[:LISTED], "answered as")
        share = count / len(answers)
        return [
            self.finding(
                f"{share:.1%} of the last {len(answers):,} training pictures are answered "
                f"otherwise than labelled, with a confidence over {self.confidence:.0%}: mostly "
                f"{in_words(pairs)}.",
                "Look at these pictures and correct their labels; until then label_smoothing 0.1 "
                "keeps the network from learning wrong ones by heart.",
                step=int(answers.steps[-1]),
                layer=record.class_name(int(tally.rows[0])),
                cause="noise",
                measured=share,
                threshold=self.threshold,
                pairs=pairs,
                counts=tally.counts[:LISTED].tolist(),
                pictures=len(answers),
            )
        ]


class CalibrationDrift(DebugRule):
    """Confidences part from the share of right answers, while that share does not grow.

    SageMaker has no such rule. Compares the expected calibration error (Guo et al. 2017, 15 bins of
    equal width) of the last evaluation with the lowest of those before that were as accurate (to
    0.01), and fires when it has grown by more than `threshold`. Without evaluations the training's
    answers are taken in windows. Evaluations of less than `samples` pictures are not judged, for
    the error of few pictures is mostly chance.
    """

    name: ClassVar[str] = "calibration_drift"
    needs: ClassVar[tuple[str, ...]] = ("labels", "predictions")

    threshold: float = Field(
        0.05, ge=0, le=1, description="Growth of the calibration error that is let pass."
    )
    samples: int = Field(200, ge=1, description="Pictures in an evaluation, or in a window.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        parts = answers_of_evaluations(record)
        where = "evaluations" if parts else "training"
        judged = [
            _calibration(part)
            for part in parts or _windows(answers_in(record, "train"), self.samples)
            if len(part) >= self.samples
        ]
        if not judged:
            return []
        last = judged[-1]
        able = [one for one in judged[:-1] if one.accuracy >= last.accuracy - _SAME_ACCURACY]
        best = min(able, key=lambda one: one.error, default=last)
        if last.error - best.error <= self.threshold:
            return []
        too_sure = last.confidence > last.accuracy
        return [
            self.finding(
                f"In {where} the calibration error grew from {best.error:.3f} to {last.error:.3f} "
                f"while accuracy went from {best.accuracy:.1%} to {last.accuracy:.1%}: with a mean "
                f"confidence of {last.confidence:.1%} the network is too "
                + ("sure." if too_sure else "unsure."),
                "Train with label_smoothing 0.1 or stop earlier, and divide the logits by a "
                "temperature over 1 that is fitted on validation pictures."
                if too_sure
                else "Train with less label smoothing and mixup, and divide the logits by a "
                "temperature under 1 that is fitted on validation pictures.",
                step=last.step,
                measured=last.error - best.error,
                threshold=self.threshold,
                errors=[round(one.error, 4) for one in judged][-LISTED:],
                accuracies=[round(one.accuracy, 4) for one in judged][-LISTED:],
            )
        ]


class _Calibration(NamedTuple):
    """The expected calibration error, accuracy and mean confidence of some answers, the last of
    them recorded at `step`."""

    step: int
    error: float
    accuracy: float
    confidence: float


def _calibration(answers: Answers) -> _Calibration:
    right = (answers.labels == answers.predictions).astype(np.float64)
    bins = np.clip(answers.confidences * _BINS, 0, _BINS - 1).astype(np.int64)
    gaps = np.abs(np.bincount(bins, answers.confidences - right, _BINS))
    return _Calibration(
        int(answers.steps[-1]),
        float(gaps.sum() / len(right)),
        float(right.mean()),
        float(answers.confidences.mean()),
    )


def _windows(answers: Answers, least: int) -> list[Answers]:
    """At most ten equal parts of at least so many pictures."""
    count = min(len(answers) // least, 10)
    ends = np.linspace(0, len(answers), count + 1).astype(int) if count else np.zeros(0, int)
    return [part_of(answers, slice(begin, end)) for begin, end in zip(ends, ends[1:])]
