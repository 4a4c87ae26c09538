"""Pictures that go in unnormalised are noticed, with what would normalise them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.inputs import CheckInputImages

RecordMaker = Callable[..., TrainingRecord]
PICTURES = (32, 3, 24, 24)


@pytest.mark.parametrize(("mean", "fires"), [(0.19, False), (0.21, True), (-0.21, True)])
def test_the_mean_is_a_threshold(make_record: RecordMaker, mean: float, fires: bool) -> None:
    record = make_record(tensors={"Net_input_0": {"mean": [mean] * 16}}, shape=PICTURES)
    assert bool(list(CheckInputImages().judge(record))) == fires


@pytest.mark.parametrize(("steps", "fires"), [(9, False), (10, True)])
def test_the_number_of_pictures_is_a_threshold(
    make_record: RecordMaker, steps: int, fires: bool
) -> None:
    record = make_record(tensors={"Net_input_0": {"mean": [0.5] * steps}}, shape=(50, 3, 8, 8))
    assert bool(list(CheckInputImages().judge(record))) == fires


@pytest.mark.parametrize(("last", "fires"), [(100, True), (99, False)])
def test_pictures_of_steps_that_were_not_recorded_count(
    make_record: RecordMaker, last: int, fires: bool
) -> None:
    tensors = {"Net_input_0": {"mean": [0.5, 0.5, 0.5]}}
    record = make_record(tensors=tensors, shape=(5, 3, 8, 8), steps=[1, 50, last])
    assert bool(list(CheckInputImages().judge(record))) == fires


@pytest.mark.parametrize(("mean", "words"), [(0.5, "brighter"), (-0.5, "darker")])
def test_what_vizsla_normalises_is_a_hint_without_numbers_to_normalise_by(
    make_record: RecordMaker, mean: float, words: str
) -> None:
    facts = {"model": {"preprocessing": {"mean": [0.5, 0.5, 0.5]}}}
    tensors = {"Net_input_0": {"mean": [mean] * 20}}
    (finding,) = CheckInputImages().judge(make_record(tensors=tensors, shape=PICTURES, facts=facts))
    assert finding.severity == "info"
    assert words in finding.meaning
    assert "the normalisation stays" in finding.advice
    assert "subtract" not in finding.advice


def test_the_advice_names_the_measured_values(make_record: RecordMaker) -> None:
    bytes_ = {"mean": [110.0, 130.0] * 10, "std": 50.0, "min": 0.0, "max": 255.0}
    (finding,) = CheckInputImages().judge(
        make_record(tensors={"Net_input_0": bytes_}, shape=PICTURES)
    )
    assert "subtract 120 and divide by 51" in finding.advice  # the means differ by 10 as well
    assert "(of values divided by 255 first: 0.471 and 0.2)" in finding.advice
    assert finding.evidence["layer"] == "Net_input_0"


@pytest.mark.parametrize("shape", [(600,), (600, 3), (600, 16, 8, 8), (600, 3, 8)])
def test_what_is_no_picture_is_not_judged(make_record: RecordMaker, shape: tuple[int, ...]) -> None:
    record = make_record(tensors={"Net_input_0": {"mean": [0.5]}}, shape=shape)
    assert not CheckInputImages().judge(record)
    assert not CheckInputImages().judge(make_record())


def test_of_several_inputs_the_worst_is_told(make_record: RecordMaker) -> None:
    tensors = {f"Net_input_{at}": {"mean": [mean] * 20} for at, mean in enumerate((0.3, -0.9, 0.0))}
    (finding,) = CheckInputImages().judge(make_record(tensors=tensors, shape=PICTURES))
    assert finding.evidence["layer"] == "Net_input_1"
    assert finding.evidence["inputs"] == ["Net_input_0", "Net_input_1"]


def test_values_that_are_not_finite_are_another_rules(make_record: RecordMaker) -> None:
    nan = {"Net_input_0": {"mean": [float("nan")] * 20}}
    assert not CheckInputImages().judge(make_record(tensors=nan, shape=PICTURES))
