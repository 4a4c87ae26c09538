"""Tensors that break, are empty, vary too much, stand still or are another run's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.tensors import (
    AllZero,
    ExplodingTensor,
    SimilarAcrossRuns,
    TensorVariance,
    UnchangedTensor,
)
from vizsla.errors import RunError, SettingError

MakeRecord = Callable[..., TrainingRecord]
FLAT = [2.0, 1.9, 2.0, 1.9]
NAN, INFINITE = float("nan"), float("inf")


def network(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def moving(count: int = 4, **more: Any) -> dict[str, Any]:
    """A weight that changes from save to save."""
    return {"mean": list(np.linspace(0, 0.1, count)), **more}


@pytest.mark.parametrize(
    ("tensors", "losses", "only_nan", "fires"),
    [
        ({"a.weight": {"nans": [0, 0, 1, 1]}}, FLAT, False, True),
        ({"a.weight": {"infs": [0, 0, 1, 1]}}, FLAT, False, True),
        ({"a.weight": {"infs": [0, 0, 1, 1]}}, FLAT, True, False),
        ({"a.weight": {}}, [2.0, 2.0, NAN, NAN], True, True),
        ({"a.weight": {}}, [2.0, 2.0, INFINITE, 2.0], False, True),
        ({"a.weight": {}}, [2.0, 2.0, INFINITE, 2.0], True, False),
        ({"a.weight": {"max": 1e30}}, [2.0, 2.0, 1e30, 2.0], False, False),
    ],
)
def test_what_is_not_finite_explodes(
    make_record: MakeRecord, tensors: Any, losses: list[float], only_nan: bool, fires: bool
) -> None:
    record = make_record(tensors=tensors, losses=losses)
    found = list(ExplodingTensor(only_nan=only_nan).judge(record))
    passing = losses[-1] == losses[-1] and set(tensors["a.weight"]) == set()
    assert [one.severity for one in found] == ["info" if passing else "error"] * fires
    assert all(one.evidence["step"] == 2 for one in found)


def test_one_finding_names_where_it_began(make_record: MakeRecord) -> None:
    tensors = {"gradient/a.weight": {"nans": [0, 5]}, "Net_input_0": {"nans": [0, 1]},
               "a.weight": {"nans": [0, 0]}}  # fmt: skip
    (found,) = ExplodingTensor().judge(make_record(tensors=tensors, losses=[2.0, NAN]))
    assert found.evidence["layer"] == "Net_input_0"
    assert found.measured == 3
    assert "pictures" in found.advice


def test_a_gradient_that_a_scaler_skipped_is_a_hint(make_record: MakeRecord) -> None:
    skipped = {"gradient/a.weight": {"infs": [5, 0, 0]}, "a.weight": {}}
    (found,) = ExplodingTensor().judge(make_record(tensors=skipped, losses=FLAT[:3]))
    assert found.severity == "info"
    last = {"gradient/a.weight": {"infs": [0, 0, 5]}, "a.weight": {}}
    (found,) = ExplodingTensor().judge(make_record(tensors=last, losses=FLAT[:3]))
    assert found.severity == "error"


def test_a_loss_that_passes_hides_no_evaluation_that_broke(make_record: MakeRecord) -> None:
    ends = {3: NAN}
    record = make_record(losses=[2.0, NAN, 2.0, 2.0], eval_losses=ends)
    assert [one.severity for one in ExplodingTensor().judge(record)] == ["info", "error"]


def test_one_cause_is_one_finding(make_record: MakeRecord) -> None:
    gone = {"gradient/a.weight": {"zeros": [1.0] * 4, "l1": 0.0, "l2": 0.0},
            "a.weight": {"update": 0.0}}  # fmt: skip
    record = make_record(tensors=gone, losses=FLAT)
    assert not [*AllZero().judge(record), *UnchangedTensor().judge(record)]
    assert [*AllZero(collection="gradients").judge(record)]  # who asks is told
    assert [*UnchangedTensor(regex="a").judge(record)]
    empty = {"a.weight": {"zeros": [1.0] * 4, "l1": 0.0, "update": NAN}}
    record = make_record(tensors=empty, losses=FLAT)
    assert [*AllZero().judge(record)]
    assert not [*UnchangedTensor().judge(record)]
    ruined = {"b.weight": {"update": [5.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
              "a.weight": {"zeros": [1.0] * 6}}  # fmt: skip
    record = make_record(tensors=ruined, losses=[1.0, *[9.0] * 5])
    assert not [*AllZero().judge(record), *UnchangedTensor().judge(record)]


def test_negative_losses_have_not_converged(make_record: MakeRecord) -> None:
    still = {"a.weight": {"update": 0.0}}
    assert [*UnchangedTensor().judge(make_record(tensors=still, losses=[-2.0] * 6))]
    assert [*UnchangedTensor().judge(make_record(tensors=still, losses=[2.0] + [-2.0] * 5))]


def test_a_rule_looks_where_it_is_told_to(make_record: MakeRecord) -> None:
    broken = make_record(tensors={"a.weight": {"nans": 1.0}, "gradient/b.weight": {}}, losses=FLAT)
    assert not [*ExplodingTensor(collection="gradients").judge(broken)]
    assert not [*ExplodingTensor(regex="^b").judge(broken)]
    assert [*ExplodingTensor(regex="^a").judge(broken)]
    with pytest.raises(SettingError, match="gradients"):
        list(ExplodingTensor(collection="gradient").judge(broken))
    answered = make_record(losses=[NAN, NAN], mode="eval")
    (found,) = ExplodingTensor(collection="losses").judge(answered)
    assert "of eval" in found.meaning


def test_a_real_training_explodes(train_watched: MakeRecord) -> None:
    rule = ExplodingTensor()

    def spoilt(step: int, points: torch.Tensor) -> torch.Tensor:
        return points / 0 if step == 3 else points

    (found,) = rule.judge(train_watched(network(), rule, steps=6, prepare=spoilt))
    assert found.evidence["step"] == 3
    assert not [*rule.judge(train_watched(network(), rule, steps=6))]


@pytest.mark.parametrize(
    ("zeros", "threshold", "fires"),
    [
        ([0, 1.0, 1.0, 1.0], 100, True),
        ([0, 1.0, 1.0, 0.99], 100, False),
        ([1.0, 0, 0, 0], 100, False),
        ([1.0, 1.0], 100, False),
        ([0.9, 0.9, 0.9], 90, True),
        ([0.89, 0.89, 0.89], 90, False),
    ],
)
def test_a_tensor_is_all_zero_in_three_saves_in_a_row(
    make_record: MakeRecord, zeros: list[float], threshold: float, fires: bool
) -> None:
    record = make_record(tensors={"a.weight": {"zeros": zeros}, "b.weight": {}})
    found = list(AllZero(threshold=threshold).judge(record))
    assert [one.evidence["layer"] for one in found] == ["a.weight"] * fires


def test_biases_may_be_zero_and_so_may_what_is_learned(make_record: MakeRecord) -> None:
    empty = {"zeros": [1.0] * 6}
    assert not [*AllZero().judge(make_record(tensors={"a.bias": empty}))]
    assert [*AllZero(collection="biases").judge(make_record(tensors={"a.bias": empty}))]
    learned = make_record(tensors={"gradient/a.weight": empty}, losses=[2.0] + [1e-9] * 5)
    assert not [*AllZero().judge(learned)]


def test_a_real_network_of_zeros_has_zero_gradients(train_watched: MakeRecord) -> None:
    rule = AllZero()
    zeros = network()
    for parameter in zeros.parameters():
        nn.init.zeros_(parameter)
    (found,) = rule.judge(train_watched(zeros, rule, steps=5))
    assert found.measured == 100
    healthy = network()
    nn.init.zeros_(healthy[3].weight)  # the gradients below it are zero in the first step alone
    assert not [*rule.judge(train_watched(healthy, rule, steps=5))]


@pytest.mark.parametrize(
    ("std", "bounds", "sides"),
    [
        (2.0, {"max_threshold": 3.9}, ["above"]),
        (2.0, {"max_threshold": 4.1}, []),
        (0.1, {"min_threshold": 0.011}, ["below"]),
        (0.1, {"min_threshold": 0.009}, []),
        (0.1, {"min_threshold": 1.0, "max_threshold": 0.001}, ["above", "below"]),
        (0.0, {}, []),
    ],
)
def test_a_variance_outside_its_bounds(
    make_record: MakeRecord, std: float, bounds: dict[str, float], sides: list[str]
) -> None:
    record = make_record(tensors={"a.weight": {"std": [0.1, std, std]}})
    found = list(TensorVariance(**bounds).judge(record))
    assert len(found) == len(sides)
    for one, side in zip(found, sides, strict=True):
        assert side in one.meaning
        assert one.measured == pytest.approx(std**2)


def test_a_single_number_may_lack_variance(make_record: MakeRecord) -> None:
    record = make_record(tensors={"scale.weight": {"std": [0.0, 0.0]}}, shape=(1,))
    assert not [*TensorVariance(min_threshold=0.1).judge(record)]


def test_real_weights_that_begin_too_wide(train_watched: MakeRecord) -> None:
    rule = TensorVariance(max_threshold=10.0, collection="weights")
    wide = network()
    nn.init.normal_(wide[0].weight, std=5.0)
    (found,) = rule.judge(train_watched(wide, rule, steps=4))
    assert found.evidence["layer"] == "0.weight"
    assert not [*rule.judge(train_watched(network(), rule, steps=4))]


@pytest.mark.parametrize(
    ("change", "update", "fires"),
    [
        (0.0, 0.0, True),
        (0.9e-5, 0.0, True),
        (1.2e-5, 0.0, False),
        (0.0, 1e-12, False),
        (0.0, NAN, True),
    ],
)
def test_a_tensor_is_unchanged_within_the_tolerance(
    make_record: MakeRecord, change: float, update: float, fires: bool
) -> None:
    tensors = {"a.weight": {"max": [9.0, 1.0, 1.0, 1.0 + change], "update": update}}
    found = list(UnchangedTensor().judge(make_record(tensors=tensors)))
    assert bool(found) == fires
    assert not [*UnchangedTensor(num_steps=4).judge(make_record(tensors=tensors))]
    if fires:
        assert "from step 1 to 3" in found[0].meaning


def test_too_few_saves_biases_and_what_is_learned_are_let_be(make_record: MakeRecord) -> None:
    still = {"update": 0.0}
    rule = UnchangedTensor()
    assert not [*rule.judge(make_record(tensors={"a.weight": still}, losses=[2.0] * 2))]
    assert not [*rule.judge(make_record(tensors={"a.bias": still}, losses=[2.0] * 4))]
    assert not [*rule.judge(make_record(tensors={"a.weight": still}, losses=[2.0] + [1e-9] * 6))]
    assert [*rule.judge(make_record(tensors={"a.weight": still}, losses=[2.0] * 4))]


def test_real_weights_that_stand_still(train_watched: MakeRecord) -> None:
    rule = UnchangedTensor()
    (found,) = rule.judge(train_watched(network(), rule, lr=0.0, steps=5))
    assert found.evidence["layers"] == ["0.weight", "1.weight", "3.weight"]
    assert "learning rate is 0" in found.advice
    assert not [*rule.judge(train_watched(network(), rule, lr=1e-4, steps=5))]
    frozen = network()
    frozen[0].requires_grad_(False)  # frozen on purpose
    assert not [*rule.judge(train_watched(frozen, rule, steps=5))]


def test_runs_are_similar_when_every_save_agrees(make_record: MakeRecord) -> None:
    other = make_record(tensors={"a.weight": moving(), "b.weight": moving()})
    rule = SimilarAcrossRuns(other_runs=str(other.tensors.path))
    near = make_record(tensors={"a.weight": moving(max=0.300002), "b.weight": moving(max=0.3001)})
    (found,) = rule.judge(near)
    assert found.evidence["layers"] == ["a.weight"]
    assert found.measured == 0.5
    assert found.evidence["cause"] == str(other.tensors.path)


def test_runs_that_only_begin_alike_differ(make_record: MakeRecord) -> None:
    other = make_record(tensors={"a.weight": moving()})
    rule = SimilarAcrossRuns(other_runs=str(other.tensors.path))
    parted = make_record(tensors={"a.weight": {"mean": [0.0, 0.5, 0.6, 0.7]}})
    assert not [*rule.judge(parted)]
    one_save = make_record(tensors={"a.weight": moving()}, steps=[0])
    assert not [*rule.judge(one_save)]
    elsewhere = make_record(tensors={"c.weight": moving()})
    assert not [*rule.judge(elsewhere)]


def test_other_runs_are_typed_with_semicolons(make_record: MakeRecord) -> None:
    records = [make_record(tensors={"a.weight": moving()}) for _ in range(3)]
    paths = "; ".join(str(one.tensors.path) for one in records[:2])
    assert len([*SimilarAcrossRuns(other_runs=paths).judge(records[2])]) == 2


def test_another_run_that_is_not_there_is_an_error(make_record: MakeRecord) -> None:
    record = make_record(tensors={"a.weight": moving()})
    with pytest.raises(RunError, match="no run /nowhere"):
        list(SimilarAcrossRuns(other_runs="/nowhere").judge(record))
    with pytest.raises(RunError, match="no captured tensors"):
        list(SimilarAcrossRuns(other_runs=str(record.tensors.path.parent)).judge(record))
    words = "needs other_runs: write similar_across_runs:other_runs=RUN"
    with pytest.raises(SettingError, match=words):
        SimilarAcrossRuns()


def test_real_runs_of_one_seed_are_similar(train_watched: MakeRecord) -> None:
    first = train_watched(network(), AllZero(), steps=4)
    rule = SimilarAcrossRuns(other_runs=str(first.tensors.path))
    (found,) = rule.judge(train_watched(network(), rule, steps=4))
    assert found.measured == 1
    assert not [*rule.judge(train_watched(network(), rule, steps=4, lr=0.02))]
