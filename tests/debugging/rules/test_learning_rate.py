"""A learning rate that is too high or too low is named, with one that would do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.learning_rate import LearningRateTooHigh, LearningRateTooLow

MakeRecord = Callable[..., TrainingRecord]
HIGH, LOW = LearningRateTooHigh(), LearningRateTooLow()
FALLING = [2.0 * 0.9**step for step in range(24)]
RISING = [2.0 + 0.1 * step for step in range(24)]
FLAT = [2.0, 1.98] * 12


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                         nn.Linear(16, 4))  # fmt: skip


def updating(update: float, count: int = 24) -> dict[str, dict[str, object]]:
    return {"a.weight": {"update": [update] * count}, "gradient/a.weight": {}}


@pytest.mark.parametrize(
    ("update", "losses", "fires"),
    [
        (0.031, RISING, True),
        (0.029, RISING, False),
        (0.031, FALLING, False),
        (0.031, FLAT, False),
        (0.031, [2.0, 0.5] * 3 + [1.8, 2.3] * 9, True),
        (0.031, [2.0, 9.0] + [2.0] * 22, True),
        (0.031, [2.0, 9.0] + FALLING[2:], False),
        (0.031, [2.0, *([0.5, 3.5] * 12)][:24], True),
        (0.031, [2.0] + [0.1] * 17 + [0.65] * 6, False),
        (0.031, [2.0] + [0.1] * 17 + [0.75] * 6, True),
        (0.031, [2.0] * 20 + [float("nan")] * 4, True),
        (0.029, [2.0] * 20 + [float("nan")] * 4, False),
        (0.031, RISING[:5], False),
    ],
)
def test_a_rate_is_too_high_where_steps_are_large_and_the_loss_suffers(
    make_record: MakeRecord, update: float, losses: list[float], fires: bool
) -> None:
    tensors = updating(update, len(losses))
    record = make_record(tensors=tensors, losses=losses, rates=[0.5] * len(losses))
    found = list(HIGH.judge(record))
    assert bool(found) == fires
    if fires:
        assert found[0].evidence["suggested_lr"] == 0.16  # 0.5 / 3.1, in two digits
        assert "0.16 instead of 0.5" in found[0].advice
        assert found[0].severity == ("error" if losses[-1] != losses[-1] else "warning")


def test_a_rate_that_is_not_known_is_divided(make_record: MakeRecord) -> None:
    (found,) = HIGH.judge(make_record(tensors=updating(0.1), losses=RISING))
    assert "the loss rose from 2 to" in found.meaning
    assert "Divide the learning rate by about 10," in found.advice
    assert "suggested_lr" not in found.evidence


def test_only_what_was_before_the_loss_broke_counts(make_record: MakeRecord) -> None:
    losses = [2.0, 2.0, float("inf"), float("nan")]
    late = {"a.weight": {"update": [1e-3, 1e-3, 1e-3, 5.0]}}
    assert not [*HIGH.judge(make_record(tensors=late, losses=losses, rates=[0.1] * 4))]


@pytest.mark.parametrize(
    ("update", "losses", "fires"),
    [
        (0.9e-5, FLAT, True),
        (1.1e-5, FLAT, False),
        (0.9e-5, FALLING, False),
        (0.9e-5, [2.0] * 12 + [1.92] * 12, True),
        (0.9e-5, [2.0] * 12 + [1.88] * 12, False),
        (0.9e-5, FLAT[:9], False),
        (0.9e-5, [1e-5] * 24, False),
        (0.9e-5, [2.0] * 23 + [float("nan")], False),
    ],
)
def test_a_rate_is_too_low_where_steps_are_small_and_the_loss_stays(
    make_record: MakeRecord, update: float, losses: list[float], fires: bool
) -> None:
    count = len(losses)
    record = make_record(tensors=updating(update, count), losses=losses, rates=[1e-6] * count)
    found = list(LOW.judge(record))
    assert bool(found) == fires
    if fires:
        # 1e-6 * 1e-3 / 9e-6 is 110 times the rate, of which 100 are suggested in one go.
        assert found[0].evidence["suggested_lr"] == 1e-4
        assert found[0].measured == pytest.approx(0.9e-5)


def test_small_steps_of_a_schedule_or_of_vanishing_gradients_are_no_low_rate(
    make_record: MakeRecord,
) -> None:
    warm = {"a.weight": {"update": [1e-9] * 15 + [1e-3] * 9}}
    rates = [1e-9] * 15 + [1e-3] * 9
    assert not [*LOW.judge(make_record(tensors=warm, losses=FLAT, rates=rates))]
    some = updating(1e-9) | {"gradient/b.weight": {"l1": 1e-8}, "b.weight": {"update": 0.0}}
    (found,) = LOW.judge(make_record(tensors=some, losses=FLAT, rates=[1e-6] * 24))
    assert found.measured == pytest.approx(1e-9)  # of those that have a gradient
    vanished = updating(1e-9) | {"gradient/a.weight": {"l1": 1e-8}}
    assert not [*LOW.judge(make_record(tensors=vanished, losses=FLAT, rates=[0.1] * 24))]


@pytest.mark.parametrize("lr", [30.0, 1e3])
def test_a_real_training_at_a_rate_far_too_high(train_watched: MakeRecord, lr: float) -> None:
    sick = train_watched(network(), HIGH, lr=lr, steps=40)
    (found,) = HIGH.judge(sick)
    better = found.evidence["suggested_lr"]
    assert better < lr / 30
    assert not [*LOW.judge(sick)]
    cured = train_watched(network(), HIGH, lr=better, steps=40)
    assert not [*HIGH.judge(cured)]
    losses = cured.tensors.losses("train").values
    assert losses[-5:].mean() < losses[0]


@pytest.mark.parametrize("lr", [1e-6, 0.0])
def test_a_real_training_at_a_rate_far_too_low(train_watched: MakeRecord, lr: float) -> None:
    sick = train_watched(network(), LOW, lr=lr, steps=40)
    (found,) = LOW.judge(sick)
    assert not [*HIGH.judge(sick)]
    for _ in range(3):  # a hundred times at most in one go
        cured = train_watched(network(), LOW, lr=found.evidence["suggested_lr"], steps=40)
        found = next(iter(LOW.judge(cured)), found)
    assert not [*LOW.judge(cured)]


def test_a_healthy_training_has_a_good_rate(train_watched: MakeRecord) -> None:
    healthy = train_watched(network(), LOW, steps=40)
    assert not [*HIGH.judge(healthy), *LOW.judge(healthy)]


def test_layers_without_gradient_and_the_median_hide_no_large_step(make_record: MakeRecord) -> None:
    decayed = {f"{name}.weight": {"update": 0.5} for name in "abcd"}
    no_gradient = {f"gradient/{name}.weight": {"l1": 0.0, "l2": 0.0} for name in "abcd"}
    head = {"fc.weight": {"update": 956.0}, "gradient/fc.weight": {}}
    tensors = decayed | no_gradient | head
    (found,) = HIGH.judge(make_record(tensors=tensors, losses=RISING, rates=[50.0] * 24))
    assert found.measured == pytest.approx(956)
    assert found.evidence["suggested_lr"] == pytest.approx(5.2e-4)
    assert found.severity == "error"  # more than a hundred times the weights
    half = {f"{name}.weight": {"update": 1.0 if name in "ab" else 1e-3} for name in "abcde"}
    assert [*HIGH.judge(make_record(tensors=half, losses=RISING))]


def test_a_rate_that_is_too_high_is_at_least_halved_and_told_in_few_digits(
    make_record: MakeRecord,
) -> None:
    rule = LearningRateTooHigh(target_update=0.03)
    record = make_record(tensors=updating(0.031), losses=RISING, rates=[0.490124] * 24)
    (found,) = rule.judge(record)
    assert found.evidence["suggested_lr"] == pytest.approx(0.245, abs=1e-3)
    assert "instead of 0.49," in found.advice


def test_what_a_ruined_network_does_says_nothing_of_the_rate(make_record: MakeRecord) -> None:
    tensors = {"a.weight": {"update": [3.0, *[1e9] * 11]}}
    losses = [1.0, *[1e6] * 11]
    (found,) = HIGH.judge(make_record(tensors=tensors, losses=losses, rates=[30.0] * 12))
    assert found.evidence["suggested_lr"] == pytest.approx(0.1)
    assert found.evidence["step"] == 0


def test_a_single_odd_batch_at_the_end_is_no_rise(make_record: MakeRecord) -> None:
    losses = [*FALLING[:22], 40.0, 0.2]
    assert not [*HIGH.judge(make_record(tensors=updating(0.1), losses=losses))]


@pytest.mark.parametrize(("end", "severity"), [(19.0, "warning"), (21.0, "error")])
def test_a_loss_of_ten_times_its_beginning_is_an_error(
    make_record: MakeRecord, end: float, severity: str
) -> None:
    losses = [2.0] * 12 + [end] * 12
    (found,) = HIGH.judge(make_record(tensors=updating(0.05), losses=losses))
    assert found.severity == severity


def test_losses_below_zero_are_judged_like_others(make_record: MakeRecord) -> None:
    for losses, fires in (([-2.0, *[-5.0] * 12, *[-1.0] * 11], True), ([-2.0] * 24, False)):
        record = make_record(tensors=updating(0.031), losses=losses)
        assert bool([*HIGH.judge(record)]) == fires
    for losses, fires in (([-2.0, -1.98] * 12, True), ([-2.0 - at for at in range(24)], False)):
        record = make_record(tensors=updating(0.9e-5), losses=losses, rates=[1e-6] * 24)
        assert bool([*LOW.judge(record)]) == fires


def test_each_small_step_belongs_to_its_own_rate(make_record: MakeRecord) -> None:
    rates = [1e-3 * (1 - at / 24) for at in range(24)]
    shrinking = {"a.weight": {"update": [rate * 5e-3 for rate in rates]}}
    (found,) = LOW.judge(make_record(tensors=shrinking, losses=FLAT, rates=rates))
    assert found.evidence["learning_rate"] == 1e-3  # its highest
    assert found.evidence["suggested_lr"] == 0.1  # a hundred times that, where 0.2 was measured
    assert "0.1 instead of 0.001." in found.advice


def test_a_rate_of_next_to_nothing_tells_nothing_of_a_better_one(make_record: MakeRecord) -> None:
    record = make_record(tensors=updating(1e-14), losses=FLAT, rates=[1e-12] * 24)
    (found,) = LOW.judge(record)
    assert found.evidence["suggested_lr"] > 1e-6


def test_layers_that_are_only_decayed_do_not_make_a_rate_too_low(make_record: MakeRecord) -> None:
    still = {f"{name}.weight": {"update": 1e-9} for name in "abc"}
    gradients = {f"gradient/{name}.weight": {"l1": 0.0, "l2": 0.0} for name in "abc"}
    moving = {"fc.weight": {"update": 1e-3}, "gradient/fc.weight": {}}
    tensors = still | gradients | moving
    assert not [*LOW.judge(make_record(tensors=tensors, losses=FLAT, rates=[0.1] * 24))]
