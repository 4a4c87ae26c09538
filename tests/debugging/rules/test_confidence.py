"""Confident contradiction of labels, and confidence that parts from the truth, are noticed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.confidence import CalibrationDrift, LabelNoise
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors

RecordMaker = Callable[..., TrainingRecord]
Batch = tuple[list[int], list[int], list[float]]


def batch(size: int, wrong: int, confidence: float = 0.95, doubt: float | None = None) -> Batch:
    """Answers of two classes, so many of them wrong, those with the confidence `doubt`."""
    labels = np.arange(size) % 2
    predictions = labels.copy()
    predictions[:wrong] = 1 - predictions[:wrong]
    confidences = np.full(size, confidence)
    confidences[:wrong] = confidence if doubt is None else doubt
    return labels.tolist(), predictions.tolist(), confidences.tolist()


class TestLabelNoise:
    # Of 1,000 pictures in the last third two standard deviations are 14.
    @pytest.mark.parametrize(("wrong", "fires"), [(6, False), (7, True)])
    def test_the_share_is_a_threshold_beyond_chance(
        self, make_record: RecordMaker, wrong: int, fires: bool
    ) -> None:
        record = make_record(answers=[batch(100, 0)] * 20 + [batch(100, wrong)] * 10)
        findings = list(LabelNoise().judge(record))
        assert bool(findings) == fires
        if fires:
            assert findings[0].measured == pytest.approx(0.07)
            assert findings[0].evidence["pairs"][0] == "class 0 answered as class 1"
            assert findings[0].evidence["counts"] == [40, 30]

    @pytest.mark.parametrize(("doubt", "fires"), [(0.89, False), (0.91, True)])
    def test_the_confidence_is_a_threshold(
        self, make_record: RecordMaker, doubt: float, fires: bool
    ) -> None:
        record = make_record(answers=[batch(100, 10, doubt=doubt)] * 30)
        assert bool(list(LabelNoise().judge(record))) == fires

    def test_what_is_wrong_early_is_only_not_learned_yet(self, make_record: RecordMaker) -> None:
        learned = [batch(100, 20)] * 20 + [batch(100, 1)] * 10
        assert not LabelNoise().judge(make_record(answers=learned))
        poor = [batch(100, 45)] * 30
        assert not LabelNoise().judge(make_record(answers=poor))

    def test_few_pictures_tell_nothing(self, make_record: RecordMaker) -> None:
        record = make_record(answers=[batch(19, 3)] * 30)
        assert not LabelNoise().judge(record)
        assert LabelNoise(samples=190).judge(record)
        assert not LabelNoise().judge(make_record())

    def test_answers_of_a_broken_network_are_none(self, make_record: RecordMaker) -> None:
        nan = batch(100, 50, float("nan"))
        assert not LabelNoise().judge(make_record(answers=[nan] * 30))
        both = make_record(answers=[batch(100, 10), nan] * 15)
        assert LabelNoise().judge(both)
        assert not CalibrationDrift().judge(make_record(answers=[nan] * 30))
        assert not CalibrationDrift().judge(make_record(answers=[batch(200, 40, 0.8), nan, nan]))


class TestCalibrationDrift:
    @pytest.mark.parametrize(("confidence", "fires"), [(0.84, False), (0.86, True)])
    def test_growth_is_a_threshold(
        self, make_record: RecordMaker, confidence: float, fires: bool
    ) -> None:
        answers = [batch(200, 40, 0.8)] * 5 + [batch(200, 40, confidence)]
        findings = list(CalibrationDrift().judge(make_record(answers=answers)))
        assert bool(findings) == fires
        if fires:
            assert findings[0].measured == pytest.approx(0.06)
            assert "label_smoothing 0.1" in findings[0].advice
            assert "too sure" in findings[0].meaning

    def test_a_network_that_doubts_too_much_gets_other_advice(
        self, make_record: RecordMaker
    ) -> None:
        answers = [batch(200, 40, 0.8), batch(200, 40, 0.6)]
        (finding,) = CalibrationDrift().judge(make_record(answers=answers))
        assert "too unsure" in finding.meaning
        assert "less label smoothing" in finding.advice

    def test_an_error_that_grows_with_accuracy_is_its_price(self, make_record: RecordMaker) -> None:
        answers = [batch(200, 100, 0.5), batch(200, 40, 0.9)]
        assert not CalibrationDrift().judge(make_record(answers=answers))
        # But what was better once, with confidences that were right, has been lost.
        answers = [batch(200, 20, 0.9), *answers]
        assert not CalibrationDrift(threshold=0.2).judge(make_record(answers=answers))
        assert CalibrationDrift().judge(make_record(answers=answers))

    def test_few_pictures_tell_nothing(self, make_record: RecordMaker) -> None:
        answers = [batch(100, 20, 0.8), batch(100, 20, 0.95)]
        assert not CalibrationDrift().judge(make_record(answers=answers))
        assert CalibrationDrift(samples=100).judge(make_record(answers=answers))
        assert not CalibrationDrift().judge(make_record())

    @pytest.mark.parametrize(("size", "fires"), [(99, False), (100, True)])
    def test_evaluations_are_judged_one_by_one(
        self, make_record: RecordMaker, size: int, fires: bool
    ) -> None:
        made = make_record()
        writer = TensorWriter(made.tensors.path, 0, {})
        for step, confidence in enumerate([0.8, 0.8, 0.95]):
            writer.add(StepRecord("train", step, losses={"loss": 1.0}))
            for at in range(2):  # two batches to each evaluation
                record = StepRecord("eval", 2 * step + at, losses={"loss": 1.0})
                answers = batch(size, size // 5, confidence)
                record.labels, record.predictions, record.confidences = answers
                writer.add(record)
        writer.flush()
        record = TrainingRecord(Tensors(made.tensors.path))
        findings = list(CalibrationDrift().judge(record))
        assert bool(findings) == fires
        if fires:
            assert findings[0].evidence["accuracies"] == [0.8, 0.8, 0.8]
