"""What is captured and when, from what people type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.debugging.format import COLLECTIONS
from vizsla.debugging.plan import make_plan
from vizsla.errors import SettingError


def test_default_is_what_the_default_rules_need_every_fifty_steps() -> None:
    plan = make_plan()
    assert plan.wants("fc.weight", "weights")
    assert plan.wants("gradient/fc.weight", "gradients")
    assert not plan.wants("relu_output_0", "relu_output")
    early = [0, 1, 2, 5, 10, 20]
    assert [step for step in range(120) if plan.due("train", step)] == [*early, 50, 100]
    asked = make_plan(every=50)
    assert [step for step in range(120) if asked.due("train", step)] == [0, 50, 100]


def test_collections_and_patterns_stand_side_by_side() -> None:
    plan = make_plan("weights,gradient/layer[3,4].*,fc", needed=["relu_output"])
    assert plan.wants("anything", "weights")
    assert plan.wants("gradient/layer4.0.conv1.weight", "gradients")
    assert not plan.wants("gradient/layer1.0.conv1.weight", "gradients")
    assert plan.wants("fc.bias", "biases")
    assert plan.wants("layer1.relu_output_0", "relu_output")


def test_first_step_of_a_resumed_run_is_captured() -> None:
    plan = make_plan(every=50)
    assert plan.due("train", 123, first=123)
    assert not plan.due("train", 124, first=123)


def test_modes_have_their_own_steps() -> None:
    plan = make_plan(every="train=10;eval=5", steps="predict=3,4")
    assert plan.due("train", 20)
    assert plan.due("eval", 5)
    assert [step for step in range(10) if plan.due("predict", step)] == [3, 4]
    same = make_plan(every={"train": 10, "eval": 5}, steps={"predict": [3, 4]})
    assert same.schedules == plan.schedules


def test_range_keeps_its_distance_from_its_start() -> None:
    plan = make_plan(steps="5:20:5")
    assert [step for step in range(30) if plan.due("train", step)] == [5, 10, 15]
    assert make_plan(steps=range(5, 20, 5)).schedules == plan.schedules
    kept = make_plan(every=7, steps="0:15")
    assert [step for step in range(30) if kept.due("train", step)] == [0, 7, 14]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"capture": "gradient"}, "Did you mean gradients"),
        ({"capture": "weigths,losses"}, "Did you mean weights"),
        ({"capture": "conv("}, "regular expression"),
        ({"every": "0"}, "from 1 on"),
        ({"every": "often"}, "'often'"),
        ({"every": "test=3"}, "no mode 'test'"),
        ({"steps": "9:3"}, "empty range"),
        ({"steps": "a,b"}, "0:200"),
        ({"steps": ""}, "must be a range"),
        ({"steps": range(5, 5)}, "must be a range"),
        ({"whole": "gradint"}, "Did you mean gradients"),
    ],
)
def test_what_makes_no_sense_is_said(settings: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words.replace("(", r"\(")):
        make_plan(**settings)


@given(st.text(max_size=30), st.text(max_size=15), st.text(max_size=15))
def test_any_text_is_a_plan_or_a_sentence(capture: str, every: str, steps: str) -> None:
    try:
        plan = make_plan(capture, every, steps)
    except SettingError:
        return
    assert plan.collections <= set(COLLECTIONS)
