"""Rare and confused classes are named; what chance explains is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.answers import ClassImbalance, Confusion
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors

RecordMaker = Callable[..., TrainingRecord]
Batch = tuple[list[int], list[int], list[float]]
DOGS = {"data": {"classes": ["001.Affenpinscher", "002.Beagle", "003.Collie", "004.Dhole"]}}


def batches(pairs: Mapping[tuple[int, int], int], size: int = 50) -> list[Batch]:
    """Batches of (label, answer) pairs, each so many times, mixed."""
    both = np.repeat(list(pairs), list(pairs.values()), axis=0)
    np.random.default_rng(0).shuffle(both)
    parts = np.array_split(both, max(len(both) // size, 1))
    return [(p[:, 0].tolist(), p[:, 1].tolist(), [0.8] * len(p)) for p in parts]


def right(*counts: int) -> dict[tuple[int, int], int]:
    """All answers right, so many of each class."""
    return {(label, label): count for label, count in enumerate(counts) if count}


def evaluated(made: TrainingRecord, *evaluations: list[Batch]) -> TrainingRecord:
    """The record with a training step and an evaluation after it for each list of batches."""
    writer, count = TensorWriter(made.tensors.path, 0, {}), iter(range(1000))
    for step, answers in enumerate(evaluations):
        writer.add(StepRecord("train", step, losses={"loss": 1.0}))
        for facts in answers:
            record = StepRecord("eval", next(count), losses={"loss": 1.0})
            record.labels, record.predictions, record.confidences = facts
            writer.add(record)
    writer.flush()
    return TrainingRecord(Tensors(made.tensors.path))


class TestClassImbalance:
    @pytest.mark.parametrize(("rare", "fires"), [(110, False), (90, True)])
    def test_the_ratio_is_a_threshold(
        self, make_record: RecordMaker, rare: int, fires: bool
    ) -> None:
        record = make_record(answers=batches(right(1000, 500, rare, 500)), facts=DOGS)
        findings = list(ClassImbalance().judge(record))
        assert bool(findings) == fires
        if fires:
            assert findings[0].evidence["layer"] == "003.Collie"
            assert findings[0].measured == pytest.approx(1000 / 90)
            assert "by 5.8" in findings[0].advice  # 522 labels a class on average

    def test_a_class_that_never_occurs_is_named(self, make_record: RecordMaker) -> None:
        record = make_record(answers=batches(right(200, 200, 200)), facts=DOGS)
        (finding,) = ClassImbalance().judge(record)
        assert "004.Dhole never occurred in 600 training labels" in finding.meaning
        unknown = make_record(answers=batches(right(200, 0, 200, 200)))
        assert not ClassImbalance().judge(unknown)  # nobody said that there is a class 1

    def test_few_labels_tell_nothing(self, make_record: RecordMaker) -> None:
        assert not ClassImbalance().judge(make_record())
        few = make_record(answers=batches(right(300, 180, 19)), facts=DOGS)
        assert not ClassImbalance().judge(few)
        assert len(list(ClassImbalance(samples=499).judge(few))) == 2
        fewer = make_record(answers=batches(right(90, 90, 9)), facts=DOGS)
        assert not ClassImbalance(samples=100).judge(fewer)
        # Of 133 classes in 700 labels some occur ten times as often as others by chance.
        labels = np.random.default_rng(0).integers(0, 133, 700)
        drawn = {(int(label), int(label)): int((labels == label).sum()) for label in labels}
        assert np.bincount(labels).max() > 10 * np.bincount(labels).min()
        assert not ClassImbalance().judge(make_record(answers=batches(drawn)))

    def test_labels_that_the_loss_ignores_are_no_class(self, make_record: RecordMaker) -> None:
        record = make_record(answers=batches(right(400, 400) | {(-100, 0): 400}))
        assert not ClassImbalance().judge(record)

    def test_a_run_that_balances_its_classes_is_well(self, make_record: RecordMaker) -> None:
        answers = batches(right(1000, 500, 50))
        weighed = {"recipe": {"class_balance": "loss"}}
        assert ClassImbalance().judge(make_record(answers=answers))
        assert not ClassImbalance().judge(make_record(answers=answers, facts=weighed))

    # 32 of 16 classes: chance draws 14.
    @pytest.mark.parametrize(("grouped", "fires"), [(1, True), (2, True), (4, False), (16, False)])
    def test_batches_of_few_classes_are_not_shuffled(
        self, make_record: RecordMaker, grouped: int, fires: bool
    ) -> None:
        labels = [[(step * grouped + at % grouped) % 16 for at in range(32)] for step in range(32)]
        record = make_record(answers=[(batch, batch, [0.8] * 32) for batch in labels])
        assert bool(ClassImbalance().judge(record)) == fires

    def test_batches_of_one_picture_cannot_be_mixed(self, make_record: RecordMaker) -> None:
        record = make_record(answers=batches(right(300, 300), size=1))
        assert not ClassImbalance().judge(record)

    @pytest.mark.parametrize(("wrong", "fires"), [(260, False), (320, True)])
    def test_the_share_of_mispredictions_is_a_threshold(
        self, make_record: RecordMaker, wrong: int, fires: bool
    ) -> None:
        pairs = {(0, 0): 400, (1, 1): 400, (2, 2): 400 - wrong, (2, 1): wrong}
        findings = list(ClassImbalance().judge(make_record(answers=batches(pairs), facts={})))
        assert bool(findings) == fires
        if fires:
            assert "mostly as class 1" in findings[0].meaning
            assert findings[0].measured == pytest.approx(0.8, abs=0.05)

    def test_before_anything_is_learned_no_class_is_to_blame(
        self, make_record: RecordMaker
    ) -> None:
        all_one = {(label, 0): 300 for label in range(4)}
        assert not ClassImbalance().judge(make_record(answers=batches(all_one), facts=DOGS))

    def test_two_classes_of_which_one_is_always_answered_blame_none(
        self, make_record: RecordMaker
    ) -> None:
        record = make_record(answers=batches({(0, 0): 300, (1, 0): 300}))
        assert not ClassImbalance().judge(record)

    def test_answers_that_are_no_number_blame_no_class(self, make_record: RecordMaker) -> None:
        pairs = {(0, 0): 400, (1, 1): 400, (2, 2): 40, (2, 1): 360}
        answers = [(one, two, [float("nan")] * len(one)) for one, two, _ in batches(pairs)]
        assert not ClassImbalance().judge(make_record(answers=answers))
        assert not Confusion().judge(make_record(answers=answers))


class TestConfusion:
    def test_before_anything_is_learned_there_is_one_hint(self, make_record: RecordMaker) -> None:
        for pairs in (
            {(label, 0): 100 for label in range(4)},
            {(label, answer): 30 for label in range(4) for answer in range(4)},
        ):
            record = make_record(answers=batches(pairs), mode="eval", facts=DOGS)
            (finding,) = Confusion().judge(record)
            assert finding.severity == "info"
            assert "25% are answered rightly, which is chance" in finding.meaning
            assert "Add pictures" not in finding.advice

    def test_classes_below_their_recall_are_one_finding(self, make_record: RecordMaker) -> None:
        scattered = {(0, 0): 70, (0, 1): 10, (0, 2): 10, (0, 3): 10}
        pairs = right(0, 100, 100, 80) | scattered | {(3, 1): 10, (3, 2): 10}
        record = make_record(answers=batches(pairs), mode="eval", facts=DOGS)
        (finding,) = Confusion().judge(record)
        assert "Of 001.Affenpinscher only 70% are answered rightly" in finding.meaning
        assert finding.evidence["classes"] == ["001.Affenpinscher", "004.Dhole"]
        assert finding.evidence["recalls"] == [0.7, 0.8]

    def test_pairs_that_are_confused_are_another(self, make_record: RecordMaker) -> None:
        pairs = right(100, 95, 50) | {(2, 1): 50, (1, 2): 5}
        record = make_record(answers=batches(pairs), mode="eval", facts=DOGS)
        _, finding = Confusion().judge(record)
        assert "50% of one class are taken for another: 003.Collie as 002.Beagle" in finding.meaning
        assert finding.evidence["pairs"] == ["003.Collie as 002.Beagle"]

    # 400 labels: two standard deviations of a share of 0.1 are 12 labels.
    @pytest.mark.parametrize(("wrong", "fires"), [(51, False), (53, True)])
    def test_both_thresholds_leave_room_for_chance(
        self, make_record: RecordMaker, wrong: int, fires: bool
    ) -> None:
        pairs = right(400, 400 - wrong) | {(1, 0): wrong}
        record = make_record(answers=batches(pairs), mode="eval")
        assert len(list(Confusion().judge(record))) == (2 if fires else 0)
        assert len(list(Confusion(min_diag=0.8).judge(record))) == (1 if fires else 0)
        assert not Confusion(min_diag=0.8, max_off_diag=0.2).judge(record)

    def test_classes_with_few_labels_are_not_judged(self, make_record: RecordMaker) -> None:
        record = make_record(answers=batches(right(100) | {(1, 0): 19}), mode="eval")
        assert not Confusion().judge(record)
        assert Confusion(samples=19).judge(record)
        assert not Confusion().judge(make_record())

    def test_of_several_evaluations_the_last_is_judged(self, make_record: RecordMaker) -> None:
        bad, good = batches({(0, 1): 200, (1, 0): 200}), batches(right(200, 200))
        assert not Confusion().judge(evaluated(make_record(), bad, good))
        recalls, _ = Confusion().judge(evaluated(make_record(), good, bad))
        assert recalls.evidence["step"] == 1
        assert recalls.measured == 0

    def test_without_evaluations_the_end_of_training_is_judged(
        self, make_record: RecordMaker
    ) -> None:
        bad, good = batches({(0, 1): 300, (1, 0): 300}), batches(right(100, 100))
        assert not Confusion().judge(make_record(answers=bad + good))
        findings = list(Confusion().judge(make_record(answers=good + bad)))
        assert findings[0].evidence["step"] == 15

    def test_answers_outside_of_the_classes_are_left_out(self, make_record: RecordMaker) -> None:
        record = make_record(answers=batches(right(100, 100) | {(2, 0): 100}), mode="eval")
        assert Confusion().judge(record)
        assert not Confusion(category_no=2).judge(record)

    def test_a_vocabulary_of_classes_needs_no_matrix(self, make_record: RecordMaker) -> None:
        record = make_record(answers=batches({(0, 60_000): 100, (60_000, 0): 5}), mode="eval")
        assert len(list(Confusion().judge(record))) == 2
