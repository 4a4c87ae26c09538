"""Gradients, initialisation and updates: each rule speaks of the sick training alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.gradients import (
    PoorWeightInitialization,
    VanishingGradient,
    WeightUpdateRatio,
)
from vizsla.findings import Finding

MakeRecord = Callable[..., TrainingRecord]
FALLING = [2.0 - 0.1 * step for step in range(12)]
FLAT = [1.386] * 12
STAYING = [2.0, 1.99] * 6


def stack(depth: int, activation: type[nn.Module], width: int = 16) -> nn.Sequential:
    torch.manual_seed(1)
    layers: list[nn.Module] = [nn.Linear(8, width), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 4))


def only(findings: object) -> Finding:
    (finding,) = findings  # type: ignore[misc]
    return finding


def gradients(size: float, **more: object) -> dict[str, dict[str, object]]:
    """A gradient (4, 4) of this mean absolute value beside a healthy one."""
    return {"gradient/a.weight": {"l1": 16 * size, **more}, "gradient/b.weight": {"l1": 1.6}}


@pytest.mark.parametrize(("size", "fires"), [(0.9e-7, True), (1.1e-7, False)])
def test_a_gradient_vanishes_below_the_threshold(
    make_record: MakeRecord, size: float, fires: bool
) -> None:
    record = make_record(tensors=gradients(size), losses=FALLING)
    found = list(VanishingGradient().judge(record))
    assert bool(found) == fires
    if fires:
        finding = only(found)
        assert finding.measured == pytest.approx(size, rel=1e-4)
        assert finding.evidence["layers"] == ["a.weight"]
        assert finding.where == "a.weight, step 11"
        assert "1 of 2" in finding.meaning


def test_a_gradient_that_begins_at_zero_is_waited_for(make_record: MakeRecord) -> None:
    rule = VanishingGradient()
    assert not [*rule.judge(make_record(tensors=gradients(0), losses=[2.0]))]
    grows = {"gradient/a.weight": {"l1": [0.0, 1.6, 1.6]}}
    assert not [*rule.judge(make_record(tensors=grows, losses=[2.0, 1.9, 1.8]))]
    assert [*rule.judge(make_record(tensors=gradients(0), losses=[2.0, 2.0]))]


def test_nothing_vanishes_in_what_is_broken_a_bias_or_learned(make_record: MakeRecord) -> None:
    rule = VanishingGradient()
    assert not [*rule.judge(make_record(tensors=gradients(0, nans=16.0), losses=FLAT))]
    bias = {"gradient/a.bias": {"l1": 0.0}}
    assert not [*rule.judge(make_record(tensors=bias, losses=FLAT))]
    for end, fires in ((0.09, False), (0.11, True)):  # a twentieth of the first loss
        record = make_record(tensors=gradients(1e-9), losses=[2.0] + [end] * 11)
        assert bool([*rule.judge(record)]) == fires
    assert not [*rule.judge(make_record(losses=FLAT))]


def test_small_weights_are_named_as_what_makes_a_gradient_vanish(make_record: MakeRecord) -> None:
    small = gradients(1e-9) | {"a.weight": {"std": 0.001}}
    finding = only(VanishingGradient().judge(make_record(tensors=small, losses=FLAT)))
    assert "standard deviation of 0.71, not 0.001" in finding.advice
    nothing = only(VanishingGradient().judge(make_record(tensors=gradients(0), losses=FLAT)))
    assert "detach()" in nothing.advice


def test_scales_that_began_at_zero_are_named_as_the_cause(make_record: MakeRecord) -> None:
    scale = {"bn.weight": {"l1": 0.0}}
    record = make_record(tensors=gradients(0) | scale, losses=FLAT, shape=(16,))
    assert "bn.weight" in only(VanishingGradient().judge(record)).advice
    assert "raise the learning rate" in only(VanishingGradient().judge(record)).advice
    moved = {"bn.weight": {"l1": [0.0, *[1.6] * 11]}}
    record = make_record(tensors=gradients(0) | moved, losses=FLAT, shape=(16,))
    assert "detach()" in only(VanishingGradient().judge(record)).advice


def test_too_large_steps_are_named_as_the_cause(make_record: MakeRecord) -> None:
    dead = {"l1": [16.0, *[0.0] * 11], "l2": [16.0, *[0.0] * 11]}
    tensors = {"a.weight": {"update": [5.0, *[0.0] * 11]}, "gradient/a.weight": dead}
    record = make_record(tensors=tensors, losses=[1.0, *[2.0] * 11], rates=[1.0] * 12)
    finding = only(VanishingGradient().judge(record))
    assert "after too large steps" in finding.advice
    assert "0.002 instead of 1" in finding.advice


def test_a_deep_stack_of_sigmoids_has_no_gradient(train_watched: MakeRecord) -> None:
    rule = VanishingGradient()
    finding = only(rule.judge(train_watched(stack(30, nn.Sigmoid), rule, steps=8)))
    assert finding.evidence["layer"].endswith(".weight")
    assert finding.measured is not None
    assert finding.measured < 1e-10
    assert not [*rule.judge(train_watched(stack(4, nn.ReLU), rule, steps=8))]


@pytest.mark.parametrize(
    ("variances", "losses", "fires"),
    [
        ((1.0, 10.2), FLAT, True),
        ((1.0, 9.8), STAYING, False),
        ((1.0, 10.2), [*FALLING[:5], *FALLING[:7]], False),  # noise may hide a fall
        ((1.0, 10.2), STAYING, True),
        ((1.0, 10.2), FALLING, False),
        ((1.0, 10.2), (), True),
        ((0.0, 1.0), (), True),
    ],
)
def test_variances_tell_of_a_poor_start_where_the_loss_does_not_fall(
    make_record: MakeRecord, variances: tuple[float, float], losses: list[float], fires: bool
) -> None:
    weights = {
        f"{name}.weight": {"std": [variance**0.5] * 12}
        for name, variance in zip("ab", variances, strict=True)
    }
    found = list(PoorWeightInitialization().judge(make_record(tensors=weights, losses=losses)))
    assert bool(found) == fires
    if fires:
        assert only(found).threshold == 10
        assert only(found).evidence["suggested_std"] == pytest.approx(0.707, abs=1e-3)


@pytest.mark.parametrize(("width", "fires"), [(0.0009, True), (0.0011, False)])
def test_narrow_gradients_tell_of_a_poor_start(
    make_record: MakeRecord, width: float, fires: bool
) -> None:
    narrow = {"gradient/a.weight": {"quantile_5": -width / 2, "quantile_95": width / 2}}
    losses = [2.0, 1.99] * 6
    found = list(PoorWeightInitialization().judge(make_record(tensors=narrow, losses=losses)))
    assert bool(found) == fires
    if fires:
        assert only(found).measured == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize(("swing", "fires"), [(0.0009, True), (0.0012, False)])
def test_a_loss_that_does_not_move_is_a_poor_start(
    make_record: MakeRecord, swing: float, fires: bool
) -> None:
    losses = [1.0, 1.0 + swing] * 6
    assert bool([*PoorWeightInitialization().judge(make_record(losses=losses))]) == fires
    assert not [*PoorWeightInitialization().judge(make_record(losses=losses[:9]))]
    later = make_record(losses=losses, steps=range(500, 512))  # goes on from a checkpoint
    assert not [*PoorWeightInitialization().judge(later)]


def test_weights_that_all_begin_at_zero_are_a_poor_start(train_watched: MakeRecord) -> None:
    rule = PoorWeightInitialization()
    zero = stack(3, nn.ReLU)
    for parameter in zero.parameters():
        nn.init.zeros_(parameter)
    finding = only(rule.judge(train_watched(zero, rule, steps=12)))
    assert "begin alike" in finding.meaning
    assert finding.evidence["suggested_std"] == pytest.approx(0.5)
    assert finding.measured is None
    assert not [*rule.judge(train_watched(stack(3, nn.ReLU), rule, steps=12))]


def test_weights_of_others_and_broken_losses_are_no_poor_start(make_record: MakeRecord) -> None:
    rule = PoorWeightInitialization()
    for weights, fires in (("none (random)", True), ("timm/resnet18.a1_in1k", False)):
        facts = {"model": {"weights": weights}}
        assert bool([*rule.judge(make_record(losses=FLAT, facts=facts))]) == fires
    for broken in (float("inf"), float("nan")):
        assert not [*rule.judge(make_record(losses=[*FLAT[:6], *[broken] * 6]))]


def test_a_warm_up_is_no_poor_start(make_record: MakeRecord) -> None:
    rule, rates = PoorWeightInitialization(), [at / 100 for at in range(1, 31)]
    assert not [*rule.judge(make_record(losses=[2.3] * 30, rates=rates))]
    assert [*rule.judge(make_record(losses=[2.3] * 50, rates=[*rates, *[0.3] * 20]))]
    fell = [2.3] * 30 + [2.2 - 0.1 * at for at in range(20)]
    assert not [*rule.judge(make_record(losses=fell, rates=[*rates, *[0.3] * 20]))]


def test_fan_in_and_fan_out_are_both_a_good_start(train_watched: MakeRecord) -> None:
    rule = PoorWeightInitialization()
    by_out = stack(3, nn.ReLU, width=200)  # 8 inputs: a fan-out of 200 makes weights 25 times less
    for at in (0, 2, 4):
        nn.init.kaiming_normal_(by_out[at].weight, mode="fan_out" if at == 0 else "fan_in")
    found = only(rule.judge(train_watched(by_out, rule, lr=0.0, steps=12, scale=0.0)))
    assert "vary" not in found.meaning  # the loss stays, for which the weights are not to blame


@pytest.mark.parametrize(("update", "fires"), [(10.2, True), (9.8, False)])
def test_an_update_is_too_large_above_its_threshold(
    make_record: MakeRecord, update: float, fires: bool
) -> None:
    record = make_record(tensors={"a.weight": {"update": [1e-3, update, 1e-3, 1e-3]}})
    found = list(WeightUpdateRatio().judge(record))
    assert bool(found) == fires
    if fires:
        assert only(found).where == "a.weight, step 1"
        assert only(found).measured == pytest.approx(10.2)
    assert not [*WeightUpdateRatio(num_steps=3).judge(record)]  # the mean of three is smaller


@pytest.mark.parametrize(("update", "fires"), [(0.9e-8, True), (1.1e-8, False)])
def test_an_update_is_too_small_below_its_threshold(
    make_record: MakeRecord, update: float, fires: bool
) -> None:
    tensors = {"a.weight": {"update": [update] * 4}, "b.weight": {}}
    found = list(WeightUpdateRatio().judge(make_record(tensors=tensors)))
    assert bool(found) == fires
    skipped = {"a.weight": {"update": [1e-3, 1e-3, 1e-3, 0.0]}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=skipped))]
    two_saves = {"a.weight": {"update": [0.0, 0.0]}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=two_saves))]


def test_updates_of_a_hundred_times_the_weights_are_an_error(make_record: MakeRecord) -> None:
    for update, severity in ((99.0, "warning"), (101.0, "error")):
        record = make_record(tensors={"a.weight": {"update": [20.0, update, 1e-3]}})
        found = only(WeightUpdateRatio().judge(record))
        assert found.severity == severity
        assert found.evidence["step"] == (1 if severity == "error" else 0)


def test_small_updates_without_gradients_are_told_by_their_rule(make_record: MakeRecord) -> None:
    small = {"a.weight": {"update": [1e-9] * 4}, "gradient/a.weight": {"l1": 1e-8}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=small))]
    assert [*WeightUpdateRatio().judge(make_record(tensors=small | {"gradient/a.weight": {}}))]
    after = {"a.weight": {"update": [5.0] + [1e-9] * 11}}
    ruined = make_record(tensors=after, losses=[1.0, *[2.0] * 11])
    assert not [*WeightUpdateRatio().judge(ruined)]


def test_updates_at_the_end_of_a_schedule_and_of_zeros_are_meant(make_record: MakeRecord) -> None:
    ends = {"a.weight": {"update": [1e-3] * 5 + [1e-9] * 4}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=ends, rates=[0.1] * 5 + [1e-6] * 4))]
    assert [*WeightUpdateRatio().judge(make_record(tensors=ends, rates=[0.1] * 9))]
    zeros = {"a.weight": {"update": [1e9, 1e-3, 1e-3], "l1": [0.0, 1.0, 1.0]}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=zeros))]
    learned = make_record(tensors={"a.weight": {"update": 0.0}}, losses=[2.0] + [0.09] * 6)
    assert not [*WeightUpdateRatio().judge(learned)]
    scale = {"norm.weight": {"update": [20.0] * 4}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=scale, shape=(4,)))]
    token = {"cls_token": {"update": [20.0] * 4}}
    assert not [*WeightUpdateRatio().judge(make_record(tensors=token, shape=(1, 1, 4)))]
    empty = {"a.weight": {"update": [0.0] * 4, "l1": 0.0}}  # which AllZero tells of
    assert not [*WeightUpdateRatio().judge(make_record(tensors=empty))]


def test_updates_are_of_the_real_optimiser(train_watched: MakeRecord) -> None:
    rule = WeightUpdateRatio()
    large = [*rule.judge(train_watched(stack(3, nn.ReLU), rule, lr=1e4, steps=6))]
    assert "too large" in large[0].meaning
    still = only(rule.judge(train_watched(stack(3, nn.ReLU), rule, lr=0.0, steps=6)))
    assert "too small" in still.meaning
    assert "3 of 3" in still.meaning
    assert not [*rule.judge(train_watched(stack(3, nn.ReLU), rule, steps=6))]
