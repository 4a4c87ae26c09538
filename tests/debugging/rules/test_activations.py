"""Dead ReLUs, saturated units, and batch normalisation that answers differently than it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vizsla.debugging.format import EVAL_LOSS
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.activations import BatchNormMismatch, DeadRelu, SaturatedActivation
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors
from vizsla.errors import SettingError

MakeRecord = Callable[..., TrainingRecord]
LAYER = "act.relu_output_0"


def network(between: nn.Module) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 20), between, nn.Linear(20, 4))


def shares(first: float, count: int, rest: float, steps: int = 4) -> np.ndarray:
    """Ten units of which `count` have one share and the others another, at each step."""
    return np.tile([first] * count + [rest] * (10 - count), (steps, 1))


@pytest.mark.parametrize(
    ("active", "count", "fires"),
    [(0.009, 6, True), (0.011, 6, False), (0.009, 5, False), (0.0, 10, True)],
)
def test_more_than_half_of_a_layer_is_dead(
    make_record: MakeRecord, active: float, count: int, fires: bool
) -> None:
    healthy = shares(0.5, 5, 0.4)
    record = make_record(units={LAYER: shares(active, count, 0.5), "b.relu_output_0": healthy})
    found = list(DeadRelu().judge(record))
    assert bool(found) == fires
    if fires:
        assert found[0].measured == pytest.approx(count * 10)
        assert found[0].evidence["layers"] == [LAYER]
        assert "1 of 2 layers" in found[0].meaning


def test_dead_is_meant_of_the_last_steps(make_record: MakeRecord) -> None:
    early, late = shares(0.0, 10, 0, 5), shares(0.5, 10, 0, 10)
    assert not [*DeadRelu().judge(make_record(units={LAYER: np.vstack([early, late])}))]
    assert [*DeadRelu().judge(make_record(units={LAYER: np.vstack([late, early, early])}))]
    assert not [*DeadRelu().judge(make_record(units={LAYER: early[:2]}))]
    assert not [*DeadRelu().judge(make_record(losses=[1.0] * 5))]


def test_biases_far_below_zero_kill_relus(train_watched: MakeRecord) -> None:
    rule = DeadRelu()
    dead = network(nn.ReLU())
    nn.init.constant_(dead[0].bias, -50.0)
    (found,) = rule.judge(train_watched(dead, rule, steps=5))
    assert found.measured == 100
    assert found.evidence["layer"] == "1_output_0"
    assert not [*rule.judge(train_watched(network(nn.ReLU()), rule, steps=5))]


@pytest.mark.parametrize("kind", ["tanh", "sigmoid"])
@pytest.mark.parametrize(
    ("flat", "count", "fires"), [(0.011, 6, True), (0.009, 6, False), (0.011, 5, False)]
)
def test_more_than_half_of_a_layer_is_saturated(
    make_record: MakeRecord, kind: str, flat: float, count: int, fires: bool
) -> None:
    record = make_record(units={f"act.{kind}_input_0": shares(flat, count, 0.0)})
    found = list(SaturatedActivation().judge(record))
    assert [one.measured for one in found] == [pytest.approx(60)] * fires


def test_other_bounds_than_those_captured_are_refused(make_record: MakeRecord) -> None:
    record = make_record(units={"act.tanh_input_0": shares(0.0, 5, 0.0)})
    with pytest.raises(SettingError, match="Capture again"):
        list(SaturatedActivation(threshold_tanh_max=5.0).judge(record))
    assert not [*SaturatedActivation(threshold_sigmoid_max=5.0).judge(record)]  # has no sigmoid
    with pytest.raises(SettingError, match="threshold_tanh_min must be below"):
        SaturatedActivation(threshold_tanh_min=10.0)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.Sigmoid])
def test_weights_far_too_large_saturate(train_watched: MakeRecord, kind: type[nn.Module]) -> None:
    rule = SaturatedActivation()
    wide = network(kind())
    nn.init.normal_(wide[0].weight, std=50.0)
    (found,) = rule.judge(train_watched(wide, rule, steps=5))
    assert found.evidence["layer"] == "1_input_0"
    assert not [*rule.judge(train_watched(network(kind()), rule, steps=5))]


def test_a_rules_own_bounds_are_captured(train_watched: MakeRecord) -> None:
    rule = SaturatedActivation(threshold_tanh_min=-0.1, threshold_tanh_max=0.1)
    assert [*rule.judge(train_watched(network(nn.Tanh()), rule, steps=4))]


def mismatched(
    folder: Path, train: Sequence[float], evaluated: Sequence[float], first: int = 50
) -> TrainingRecord:
    writer = TensorWriter(folder, first, {})
    for at, (mine, other) in enumerate(zip(train, evaluated, strict=True)):
        writer.add(StepRecord("train", first + at, losses={"loss": mine, EVAL_LOSS: other}))
    writer.flush()
    return TrainingRecord(Tensors(folder))


@pytest.mark.parametrize(
    ("train", "evaluated", "fires"),
    [
        (1.0, 2.1, True),
        (1.0, 1.9, False),
        (1.0, 0.49, True),
        (1.0, 0.51, False),
        (1.0, float("nan"), True),
        (1.0, float("inf"), True),
        (float("nan"), 1.0, False),
    ],
)
def test_losses_of_the_two_modes_differ_by_a_factor(
    tmp_path: Path, train: float, evaluated: float, fires: bool
) -> None:
    record = mismatched(tmp_path, [train] * 4, [evaluated] * 4)
    found = list(BatchNormMismatch().judge(record))
    assert bool(found) == fires
    if fires and np.isfinite(evaluated):
        assert found[0].measured == pytest.approx(max(evaluated, 1 / evaluated))
        assert found[0].severity == "warning"
    elif fires:
        assert (found[0].measured, found[0].severity) == (None, "error")


def test_steps_that_settle_small_losses_and_single_steps_do_not_count(tmp_path: Path) -> None:
    rule = BatchNormMismatch()
    assert not [*rule.judge(mismatched(tmp_path / "a", [1.0] * 4, [3.0] * 4, first=46))]
    assert [*rule.judge(mismatched(tmp_path / "b", [1.0] * 7, [3.0] * 7, first=46))]
    assert not [*rule.judge(mismatched(tmp_path / "g", [1.0] + [0.03] * 6, [0.12] * 7))]
    assert [*rule.judge(mismatched(tmp_path / "h", [1.0] + [0.03] * 6, [0.14] * 7))]
    assert not [*rule.judge(mismatched(tmp_path / "c", [1.0] + [0.01] * 6, [0.05] * 7))]
    assert not [*rule.judge(mismatched(tmp_path / "d", [1.0] * 7, [1.0] * 5 + [9.0] * 2))]
    assert [*rule.judge(mismatched(tmp_path / "e", [1.0] * 7, [1.0] * 4 + [9.0] * 3))]
    assert [*rule.judge(mismatched(tmp_path / "f", [1.0] * 7, [9.0] * 6 + [1.0]))]


def test_batch_norm_without_momentum_answers_otherwise(train_watched: MakeRecord) -> None:
    rule = BatchNormMismatch(start_step=30)

    def normed(momentum: float) -> nn.Sequential:
        torch.manual_seed(1)
        norm = nn.BatchNorm1d(20, momentum=momentum)
        return nn.Sequential(nn.Linear(8, 20), norm, nn.ReLU(), nn.Linear(20, 4))

    sick = train_watched(normed(0.0), rule, steps=40, scale=20.0, shift=30.0)
    (found,) = rule.judge(sick)
    assert "update_bn" in found.advice
    assert not [*rule.judge(train_watched(normed(0.1), rule, steps=40, scale=20.0, shift=30.0))]
