"""The loss rules fire on trainings that are sick on purpose, and not on their healthy twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.losses import LossNotDecreasing, Overfit, Overtraining
from vizsla.errors import SettingError
from vizsla.findings import Finding
from vizsla.records import EpochRecord, SplitMetrics

RecordMaker = Callable[..., TrainingRecord]


def noisy(values: Any, share: float, seed: int = 0) -> list[float]:
    """Losses of single batches, each off by a share."""
    values = np.asarray(values, float)
    return list(values * (1 + share * np.random.default_rng(seed).standard_normal(values.shape)))


def evaluated(make: RecordMaker, train: list[float], valid: list[float]) -> TrainingRecord:
    """A record of ten training steps for each evaluation."""
    ends = {10 * at + 9: loss for at, loss in enumerate(valid)}
    return make(losses=list(np.repeat(train, 10)), eval_losses=ends)


def only(findings: Any) -> Finding:
    (finding,) = findings
    return finding  # type: ignore[no-any-return]


class TestLossNotDecreasing:
    @pytest.mark.parametrize("seed", range(5))
    def test_a_noisy_loss_that_stays_where_it_is_is_reported(
        self, make_record: RecordMaker, seed: int
    ) -> None:
        record = make_record(losses=noisy([2.3] * 400, 0.1, seed), rates=[1e-5] * 400)
        finding = only(LossNotDecreasing().judge(record))
        assert "has not fallen in 400 recorded steps" in finding.meaning
        assert "0.0001" in finding.advice  # ten times the rate
        assert finding.severity == "warning"

    def test_advice_goes_by_the_updates_where_they_are_known(
        self, make_record: RecordMaker
    ) -> None:
        flat = {"losses": noisy([2.3] * 60, 0.01), "rates": [0.01] * 60}
        slow = {"a.weight": {"update": [1e-5] * 60}, "gradient/a.weight": {}}
        finding = only(LossNotDecreasing().judge(make_record(tensors=slow, **flat)))
        assert "Try a learning rate of 1," in finding.advice
        fine = {"a.weight": {"update": [2e-3] * 60}, "gradient/a.weight": {}}
        finding = only(LossNotDecreasing().judge(make_record(tensors=fine, **flat)))
        assert "not too low" in finding.advice
        assert "Try" not in finding.advice

    @pytest.mark.parametrize(("size", "words"), [(0.0, "are zero"), (1e-8, "are next to zero")])
    def test_no_rate_is_suggested_where_there_are_no_gradients(
        self, make_record: RecordMaker, size: float, words: str
    ) -> None:
        gone = {"a.weight": {}, "gradient/a.weight": {"l1": size, "l2": size}}
        record = make_record(tensors=gone, losses=[2.3] * 40, rates=[0.01] * 40)
        assert words in only(LossNotDecreasing().judge(record)).advice

    def test_a_tiny_rate_is_not_made_ten_times_as_large(self, make_record: RecordMaker) -> None:
        record = make_record(losses=[2.3] * 40, rates=[1e-12] * 40)
        assert "learning rate of 0.001" in only(LossNotDecreasing().judge(record)).advice

    def test_losses_below_zero_are_judged_like_others(self, make_record: RecordMaker) -> None:
        assert LossNotDecreasing().judge(make_record(losses=[-2.3] * 40))
        assert not LossNotDecreasing().judge(make_record(losses=list(np.linspace(-1, -2, 40))))

    def test_modes_have_the_names_of_old(self) -> None:
        modes = {"TRAIN": "train", "Eval": "eval", "GLOBAL": "train", "global": "train"}
        assert {given: LossNotDecreasing(mode=given).mode for given in modes} == modes
        with pytest.raises(SettingError, match="mode"):
            LossNotDecreasing(mode="predict")

    def test_a_learning_rate_of_0_is_named_as_the_cause(self, make_record: RecordMaker) -> None:
        finding = only(LossNotDecreasing().judge(make_record(losses=[2.3] * 30, rates=[0.0] * 30)))
        assert finding.severity == "error"
        assert "The learning rate is 0" in finding.advice

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("steps", [40, 300, 3000])
    def test_a_noisy_loss_that_falls_is_well_also_once_it_has_converged(
        self, make_record: RecordMaker, steps: int, seed: int
    ) -> None:
        fall = 0.4 + 2 * np.exp(-np.arange(steps) / 20)
        assert not LossNotDecreasing().judge(make_record(losses=noisy(fall, 0.15, seed)))

    @pytest.mark.parametrize("seed", range(5))
    def test_a_fall_at_once_shows_long_after(self, make_record: RecordMaker, seed: int) -> None:
        losses = noisy([2.3, 1.9, 1.5, 1.2, *[1.0] * 3000], 0.05, seed)
        assert not LossNotDecreasing().judge(make_record(losses=losses))

    @pytest.mark.parametrize("seed", range(5))
    def test_a_slow_fall_under_much_noise_is_given_time(
        self, make_record: RecordMaker, seed: int
    ) -> None:
        slow = noisy(np.linspace(2.3, 2.2, 60), 0.2, seed)
        assert not LossNotDecreasing().judge(make_record(losses=slow))

    def test_a_slow_fall_shows_over_many_steps(self, make_record: RecordMaker) -> None:
        slow = noisy(np.linspace(4.9, 4.7, 400), 0.03)
        assert not LossNotDecreasing().judge(make_record(losses=slow))

    @pytest.mark.parametrize(("percent", "fires"), [(0.09, True), (0.11, False)])
    def test_the_least_fall_is_a_threshold(
        self, make_record: RecordMaker, percent: float, fires: bool
    ) -> None:
        losses = [1.0] * 15 + [1 - percent / 100] * 15
        findings = list(LossNotDecreasing().judge(make_record(losses=losses)))
        assert bool(findings) == fires

    @pytest.mark.parametrize(("end", "fires"), [(1.04, False), (1.06, True)])
    def test_the_largest_rise_is_a_threshold(
        self, make_record: RecordMaker, end: float, fires: bool
    ) -> None:
        record = make_record(losses=[2.0] * 10 + [1.0] * 20 + [end] * 10, rates=[0.01] * 40)
        findings = list(LossNotDecreasing().judge(record))
        assert bool(findings) == fires
        if fires:
            assert findings[0].measured == pytest.approx(6)
            assert findings[0].evidence["best_step"] == 10
            assert "0.001" in findings[0].advice
            assert findings[0].severity == "warning"

    def test_a_rise_beyond_the_beginning_is_an_error(self, make_record: RecordMaker) -> None:
        losses = [2.0 * 1.2**step for step in range(40)]
        finding = only(LossNotDecreasing().judge(make_record(losses=losses)))
        assert finding.severity == "error"
        assert "diverges" in finding.meaning

    def test_a_rise_to_less_than_the_beginning_is_no_divergence(
        self, make_record: RecordMaker
    ) -> None:
        losses = [1.4, 1.2, 0.6, *[0.05] * 7, *[0.01] * 10, *[0.13] * 10]
        finding = only(LossNotDecreasing().judge(make_record(losses=losses)))
        assert finding.severity == "warning"

    def test_one_odd_batch_is_no_rise(self, make_record: RecordMaker) -> None:
        losses = noisy(np.linspace(2, 0.5, 60), 0.02)
        losses[-3] = 40.0
        assert not LossNotDecreasing().judge(make_record(losses=losses))

    def test_what_cannot_be_told_is_not(self, make_record: RecordMaker) -> None:
        flat = {"losses": [2.3] * 29}
        assert not LossNotDecreasing().judge(make_record())
        assert not LossNotDecreasing().judge(make_record(**flat))
        assert LossNotDecreasing(num_steps=9).judge(make_record(**flat))

    def test_a_loss_at_0_need_not_fall_and_nan_is_another_rules(
        self, make_record: RecordMaker
    ) -> None:
        assert not LossNotDecreasing().judge(make_record(losses=[0.005] * 50))
        assert not LossNotDecreasing().judge(make_record(losses=[float("nan")] * 50))

    def test_a_warm_up_may_take_its_time(self, make_record: RecordMaker) -> None:
        warming = {"losses": [2.3] * 50, "rates": np.linspace(0, 1e-3, 50)}
        assert not LossNotDecreasing().judge(make_record(**warming))
        assert LossNotDecreasing().judge(make_record(losses=[2.3] * 50, rates=[1e-3] * 50))

    def test_without_its_beginning_a_plateau_is_no_fault(self, make_record: RecordMaker) -> None:
        late = make_record(steps=range(900, 960), losses=[0.7] * 60)
        assert not LossNotDecreasing().judge(late)
        every_tenth = make_record(steps=range(0, 600, 10), losses=[0.7] * 60)
        assert LossNotDecreasing().judge(every_tenth)

    def test_evaluations_can_be_judged_instead(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, list(np.linspace(2, 1, 6)), [2.3] * 6)
        assert not LossNotDecreasing(num_steps=2).judge(record)
        assert LossNotDecreasing(num_steps=2, mode="eval").judge(record)


class TestOverfit:
    def test_a_gap_is_a_hint_while_validation_improves(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [2.0, 1.0, 0.5], [2.0, 1.2, 0.8])
        finding = only(Overfit().judge(record))
        assert finding.severity == "info"
        assert finding.measured == pytest.approx(0.6)

    def test_a_gap_is_a_warning_once_validation_gets_worse(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [2.0, 1.0, 0.5, 0.3], [2.0, 1.0, 1.2, 1.3])
        finding = only(Overfit().judge(record))
        assert finding.severity == "warning"
        assert "Stop at step 19" in finding.advice
        assert "dropout 0.2, weight decay 0.05" in finding.advice

    def test_one_worse_evaluation_is_no_worsening(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [2.0, 1.0, 0.5], [2.0, 1.0, 1.2])
        assert only(Overfit().judge(record)).severity == "info"

    def test_a_ripple_around_the_best_is_no_worsening(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [2.0, 1.0, 0.5, 0.5], [2.0, 1.0, 1.01, 1.02])
        assert only(Overfit().judge(record)).severity == "info"

    def test_the_advice_goes_on_from_the_runs_recipe_and_names_the_epoch(
        self, make_record: RecordMaker
    ) -> None:
        made = evaluated(make_record, [2.0, 1.0, 0.5, 0.3], [2.0, 1.0, 1.2, 1.3])
        figures = SplitMetrics(1.0, 0.5, 0.9, 0.5, 100)
        epochs = [
            EpochRecord(at, 10 * at, 1e-3, figures, figures, 1.0, 1.0, 0.0, 100.0)
            for at in (1, 2, 3, 4)
        ]
        recipe = {"recipe": {"drop_rate": 0.2, "weight_decay": 0.1}}
        finding = only(Overfit().judge(TrainingRecord(made.tensors, epochs, recipe)))
        assert "dropout 0.4, weight decay 0.2" in finding.advice
        assert "step 19 (epoch 2)" in finding.advice

    @pytest.mark.parametrize(("valid", "fires"), [(1.09, False), (1.11, True)])
    def test_the_ratio_is_a_threshold(
        self, make_record: RecordMaker, valid: float, fires: bool
    ) -> None:
        assert bool(list(Overfit().judge(evaluated(make_record, [1.0], [valid])))) == fires

    def test_patience_asks_for_evaluations_in_a_row(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [1.0, 1.0, 1.0], [1.5, 1.0, 1.5])
        assert Overfit(patience=1).judge(record)
        assert not Overfit(patience=2).judge(record)
        assert not Overfit(patience=4).judge(record)

    def test_evaluations_before_the_start_do_not_count(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [1.0, 1.0], [1.5, 1.5])
        assert Overfit(start_step=10, patience=1).judge(record)
        assert not Overfit(start_step=10, patience=2).judge(record)
        assert not Overfit(start_step=20).judge(record)

    @pytest.mark.parametrize(
        ("train", "valid", "diverges"),
        [
            ([1.2, 1.47], [1.2, 5.2e4], True),
            ([1.2, 0.1], [1.2, 13.0], True),
            ([1.2, 0.1], [1.2, 3.0], False),  # learned by heart
            ([1.2, 1.0], [1.2, float("inf")], True),
            ([1.2, 1.0], [1.2, float("nan")], True),
        ],
    )
    def test_a_validation_loss_out_of_proportion_is_not_learned_by_heart(
        self, make_record: RecordMaker, train: list[float], valid: list[float], diverges: bool
    ) -> None:
        finding = only(Overfit().judge(evaluated(make_record, train, valid)))
        assert ("diverges from training" in finding.meaning) == diverges
        assert ("knows its training pictures" in finding.meaning) != diverges
        assert finding.severity == ("warning" if diverges else "info")

    def test_losses_below_zero_get_worse_like_others(self, make_record: RecordMaker) -> None:
        train, ripple = [-1.0, -2.0, -3.0, -3.0], [-1.0, -2.0, -1.99, -1.99]
        assert only(Overfit().judge(evaluated(make_record, train, ripple))).severity == "info"

    def test_a_gap_of_next_to_nothing_is_none(self, make_record: RecordMaker) -> None:
        assert not Overfit().judge(evaluated(make_record, [0.001], [0.005]))
        assert not Overfit().judge(make_record(losses=[1.0] * 10))


class TestOvertraining:
    @pytest.mark.parametrize(("after", "fires"), [(9, False), (10, True)])
    def test_the_patience_for_validation_is_a_threshold(
        self, make_record: RecordMaker, after: int, fires: bool
    ) -> None:
        train = list(np.linspace(2, 0.2, after + 3))
        record = evaluated(make_record, train, [2.0, 1.5, 1.0, *[1.2] * after])
        findings = list(Overtraining().judge(record))
        assert bool(findings) == fires
        if fires:
            assert findings[0].severity == "warning"
            assert "step 29" in findings[0].advice

    @pytest.mark.parametrize(("after", "fires"), [(4, False), (5, True)])
    def test_both_losses_at_rest_are_a_hint_after_the_patience_for_training(
        self, make_record: RecordMaker, after: int, fires: bool
    ) -> None:
        at_rest = [2.0, 1.5, 1.0, *[1.0] * after]
        findings = list(Overtraining().judge(evaluated(make_record, at_rest, at_rest)))
        assert bool(findings) == fires
        if fires:
            assert findings[0].severity == "info"
            assert findings[0].threshold == 5

    def test_a_better_loss_is_better_by_delta(self, make_record: RecordMaker) -> None:
        slow = [2.0, *(1.0 - 0.004 * np.arange(12))]
        record = evaluated(make_record, slow, slow)
        assert not Overtraining().judge(record)  # a new best by 0.01 every third evaluation
        finding = only(Overtraining(delta=0.1).judge(record))
        assert finding.severity == "info"
        assert "the present weights are the best" in finding.advice
        assert "keep the weights of" not in finding.advice
        assert not Overtraining(delta=0.001).judge(record)

    def test_the_lowest_loss_is_the_one_to_keep(self, make_record: RecordMaker) -> None:
        valid = [2.0, 1.0, 0.995, 0.992, *[1.05] * 10]
        record = evaluated(make_record, list(np.linspace(2, 0.2, len(valid))), valid)
        finding = only(Overtraining().judge(record))
        assert "keep the weights of step 39" in finding.advice
        assert finding.evidence["best_valid_loss"] == pytest.approx(0.992)

    def test_losses_of_nothing_and_a_training_that_never_learned_are_left_alone(
        self, make_record: RecordMaker
    ) -> None:
        learned = [1.0, *[0.005] * 12]
        assert not Overtraining().judge(evaluated(make_record, learned, learned))
        stuck = [1.4] * 13
        assert not Overtraining().judge(evaluated(make_record, stuck, stuck))
        below_zero = [1.0, *[-2.0] * 12]
        assert Overtraining().judge(evaluated(make_record, below_zero, below_zero))

    def test_validation_that_still_improves_is_well(self, make_record: RecordMaker) -> None:
        record = evaluated(make_record, [1.0] * 8, list(np.linspace(2, 1, 8)))
        assert not Overtraining().judge(record)
        assert not Overtraining().judge(make_record(losses=[1.0] * 100))
