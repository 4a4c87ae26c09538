"""The learning rate is a function of the step alone; every optimiser does what its name says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from vizsla.settings import OptimizerSettings, Recipe
from vizsla.training.optim import build_optimizer, learning_rate, peak_rate

PER_EPOCH, EPOCHS, PEAK = 10, 20, 0.5
STEPS = PER_EPOCH * EPOCHS


def rates(**settings: object) -> list[float]:
    chosen = OptimizerSettings(**settings)
    return [learning_rate(chosen, PEAK, step, PER_EPOCH, EPOCHS) for step in range(STEPS)]


def falls(values: list[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(values))


def rises(values: list[float]) -> bool:
    return falls(values[::-1])


def test_constant_stays_at_its_peak() -> None:
    assert set(rates(schedule="constant")) == {PEAK}


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_warm_up_rises_in_equal_parts_to_the_peak(schedule: str) -> None:
    warm = rates(schedule=schedule, warmup_epochs=2, step_epochs=1000)[: 2 * PER_EPOCH]
    assert warm == pytest.approx([PEAK * (step + 1) / 20 for step in range(20)])


def test_warm_up_may_be_a_part_of_an_epoch() -> None:
    values = rates(schedule="constant", warmup_epochs=0.5)
    assert values[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])


def test_cosine_falls_from_the_peak_to_nearly_nothing() -> None:
    values = rates(schedule="cosine")
    assert values[0] == PEAK
    assert falls(values)
    assert values[STEPS // 2] == pytest.approx(PEAK / 2)
    assert 0 < values[-1] < PEAK / 1000


def test_cosine_after_warm_up_starts_at_the_peak_and_falls() -> None:
    values = rates(schedule="cosine", warmup_epochs=2)
    assert max(values) == PEAK
    assert values[2 * PER_EPOCH] == PEAK
    assert falls(values[2 * PER_EPOCH :])


def test_onecycle_rises_over_thirty_percent_then_falls_to_a_ten_thousandth() -> None:
    values = rates(schedule="onecycle")
    top = values.index(max(values))
    assert top + 1 == 0.3 * STEPS
    assert values[top] == pytest.approx(PEAK)
    assert PEAK / 25 < values[0] < PEAK / 20
    assert rises(values[: top + 1])
    assert falls(values[top:])
    assert values[-1] == pytest.approx(PEAK / 1e4)


def test_onecycle_rises_over_the_warm_up_where_one_is_set() -> None:
    values = rates(schedule="onecycle", warmup_epochs=3)
    assert values.index(max(values)) == 3 * PER_EPOCH - 1


def test_step_drops_by_its_factor_every_so_many_epochs() -> None:
    values = rates(schedule="step", step_epochs=5, step_factor=0.2)
    drops = [step for step in range(1, STEPS) if values[step] != values[step - 1]]
    assert drops == [50, 100, 150]
    assert values[::50] == pytest.approx([PEAK * 0.2**n for n in range(4)])


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "step", "constant"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5])
def test_a_run_of_one_step_has_a_positive_rate(schedule: str, warmup_epochs: float) -> None:
    settings = OptimizerSettings(schedule=schedule, warmup_epochs=warmup_epochs)
    assert 0 < learning_rate(settings, PEAK, 0, per_epoch=1, epochs=1) <= PEAK


def test_the_default_peak_suits_the_optimizer_and_what_trains() -> None:
    def peak(**settings: object) -> float:
        return peak_rate(Recipe(**settings))

    assert peak(lr=0.123, optimizer="sgd") == 0.123
    assert peak(unfreeze="head") > peak(unfreeze="layer4") > peak(unfreeze="all")
    assert peak(unfreeze="last") == peak(unfreeze="2") == peak(unfreeze="layer4")
    assert peak(unfreeze="all", weights="none") > peak(unfreeze="all")
    for unfreeze in ("head", "last", "all"):
        adam, sgd = (peak(unfreeze=unfreeze, optimizer=name) for name in ("adamw", "sgd"))
        assert sgd > 10 * adam


class Small(nn.Module):
    """A layer with a norm, so that every kind of parameter is there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(inputs)).square().sum() + self.layer(inputs).sum()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "lamb"])
def test_every_optimizer_moves_every_parameter(name: str) -> None:
    module = Small()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = build_optimizer(module, OptimizerSettings(optimizer=name), 0.01)
    for _ in range(2):
        module(torch.randn(3, 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in module.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_biases_and_norms_do_not_decay() -> None:
    module = Small()
    groups = build_optimizer(module, OptimizerSettings(weight_decay=0.3), 0.01).param_groups
    decay = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    found = {name: decay[id(value)] for name, value in module.named_parameters()}
    assert found == {"layer.weight": 0.3, "layer.bias": 0, "norm.weight": 0, "norm.bias": 0}


def test_frozen_parameters_are_not_updated() -> None:
    module = Small()
    module.norm.requires_grad_(False)
    groups = build_optimizer(module, OptimizerSettings(), 0.01).param_groups
    held = {id(value) for group in groups for value in group["params"]}
    assert held == {id(value) for value in module.layer.parameters()}


def descend(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: int) -> list[float]:
    """Weights under a gradient that is always 1."""
    values = []
    for _ in range(steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        values.append(float(weight.detach().flatten()[0]))
    return values


def one_weight() -> nn.Module:
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    return module


def test_sgd_is_plain_momentum() -> None:
    module = one_weight()
    settings = OptimizerSettings(optimizer="sgd", momentum=0.5, weight_decay=0)
    values = descend(build_optimizer(module, settings, 1.0), module.weight, 3)
    assert values == pytest.approx([-1.0, -2.5, -4.25])  # velocities 1, 1.5, 1.75


def test_sgd_looks_ahead_with_nesterov() -> None:
    module = one_weight()
    settings = OptimizerSettings(optimizer="sgd", momentum=0.5, weight_decay=0, nesterov=True)
    values = descend(build_optimizer(module, settings, 1.0), module.weight, 3)
    assert values == pytest.approx([-1.5, -3.25, -5.125])


def test_epsilon_reaches_adam() -> None:
    module = one_weight()
    settings = OptimizerSettings(optimizer="adam", eps=1.0, weight_decay=0)
    assert descend(build_optimizer(module, settings, 1.0), module.weight, 1) == pytest.approx(
        [-0.5]
    )
