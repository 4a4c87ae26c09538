"""A resume that lost something is noticed, and so is silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.continuity import DivergedFromCheckpoint, StalledTraining
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.debugging.tensors import Tensors

RecordMaker = Callable[..., TrainingRecord]
LOSS = "CrossEntropyLoss_output_0"


def resumed(
    made: TrainingRecord, *sessions: tuple[int, Any], also: dict[str, float] | None = None
) -> TrainingRecord:
    """The record with more sessions: each its first step and its losses from there."""
    for first_step, values in sessions:
        writer = TensorWriter(made.tensors.path, first_step, {})
        for at, loss in enumerate(values):
            losses = {LOSS: float(loss), **(also or {})}
            writer.add(StepRecord("train", first_step + at, losses=losses))
        writer.flush()
    return TrainingRecord(Tensors(made.tensors.path))


def falling(begin: int, end: int) -> Any:
    """A loss with noise that is the same whenever a step is computed."""
    noise = np.random.default_rng(0).standard_normal(1000)
    return (0.5 + 2 * np.exp(-np.arange(1000) / 20) + 0.05 * noise)[begin:end]


class TestDivergedFromCheckpoint:
    def test_a_training_that_goes_on_as_it_was_is_well(self, make_record: RecordMaker) -> None:
        made = make_record(losses=falling(0, 60))
        assert not DivergedFromCheckpoint().judge(made)
        record = resumed(made, (40, falling(40, 80)), (70, falling(70, 100)))
        assert not DivergedFromCheckpoint().judge(record)

    def test_one_that_begins_anew_is_an_error(self, make_record: RecordMaker) -> None:
        record = resumed(make_record(losses=falling(0, 60)), (50, falling(0, 30)))
        (finding,) = DivergedFromCheckpoint().judge(record)
        assert finding.severity == "error"
        assert finding.evidence["repeated_steps"] == 10
        assert finding.where == "step 50"
        assert "load_state_dict" in finding.advice

    @pytest.mark.parametrize("overlap", [True, False])
    def test_one_that_jumps_is_a_warning(self, make_record: RecordMaker, overlap: bool) -> None:
        made = make_record(losses=falling(0, 70 if overlap else 60))
        (finding,) = DivergedFromCheckpoint().judge(resumed(made, (60, falling(60, 80) + 0.4)))
        assert finding.severity == "warning"
        assert finding.evidence["repeated_steps"] == (10 if overlap else 0)
        assert "optimiser" in finding.advice

    @pytest.mark.parametrize(("factor", "fires"), [(1.09, False), (1.11, True), (0.88, True)])
    def test_the_tolerance_is_a_threshold_of_repeated_steps(
        self, make_record: RecordMaker, factor: float, fires: bool
    ) -> None:
        record = resumed(make_record(losses=[1.0] * 40), (30, [factor] * 10))
        assert bool(list(DivergedFromCheckpoint().judge(record))) == fires
        assert not list(DivergedFromCheckpoint(tolerance=0.2).judge(record))

    @pytest.mark.parametrize(("factor", "fires"), [(1.09, False), (1.11, True), (0.5, False)])
    def test_and_other_steps_may_be_easier(
        self, make_record: RecordMaker, factor: float, fires: bool
    ) -> None:
        record = resumed(make_record(losses=[1.0] * 30), (30, [factor] * 10))
        assert bool(list(DivergedFromCheckpoint().judge(record))) == fires

    @pytest.mark.parametrize("seed", range(5))
    def test_other_batches_after_a_resume_are_chance(
        self, make_record: RecordMaker, seed: int
    ) -> None:
        losses = 1 + 0.3 * np.random.default_rng(seed).standard_normal(100)
        record = resumed(make_record(losses=losses[:60]), (50, losses[60:]))
        assert not list(DivergedFromCheckpoint().judge(record))

    def test_of_several_losses_the_one_that_is_trained_on_is_compared(
        self, make_record: RecordMaker
    ) -> None:
        other = resumed(make_record(), (0, [1.0] * 40), also={"eval_mode_loss": 0.1})
        record = resumed(other, (30, [1.0] * 20), also={"eval_mode_loss": 0.9})
        assert not list(DivergedFromCheckpoint().judge(record))

    def test_a_resume_that_was_itself_computed_again_is_forgotten(
        self, make_record: RecordMaker
    ) -> None:
        bad = resumed(make_record(losses=[1.0] * 40), (38, [9.0] * 2))
        assert list(DivergedFromCheckpoint().judge(bad))
        again = resumed(make_record(losses=[1.0] * 40), (41, [9.0] * 5), (30, [1.0] * 20))
        assert not list(DivergedFromCheckpoint().judge(again))

    def test_several_resumes_are_one_finding(self, make_record: RecordMaker) -> None:
        made = make_record(losses=[1.0] * 40)
        record = resumed(made, (30, [1.5] * 20), (50, [3.0] * 10))
        (finding,) = DivergedFromCheckpoint().judge(record)
        assert finding.evidence["resumes"] == [30, 50]
        assert finding.where == "step 50"
        assert "step 30" in finding.meaning


class TestStalledTraining:
    @pytest.mark.parametrize(("seconds", "fires"), [(1800.0, False), (1801.0, True)])
    def test_silence_is_reported_from_the_threshold(
        self, make_record: RecordMaker, seconds: float, fires: bool
    ) -> None:
        record = make_record(losses=[1.0] * 5, seconds_silent=seconds)
        findings = list(StalledTraining().judge(record))
        assert bool(findings) == fires
        if fires:
            assert findings[0].evidence["step"] == 4
            assert "py-spy dump --pid" in findings[0].advice

    @pytest.mark.parametrize(
        ("seconds", "words"), [(1.0, "1 second"), (12.3, "12 seconds"), (180.0, "3 minutes")]
    )
    def test_silence_is_told_in_a_fitting_unit(
        self, make_record: RecordMaker, seconds: float, words: str
    ) -> None:
        record = make_record(losses=[1.0], seconds_silent=seconds)
        (finding,) = StalledTraining(threshold=0.5).judge(record)
        assert f"for {words}:" in finding.meaning

    def test_a_run_that_is_over_does_not_stall(self, make_record: RecordMaker) -> None:
        assert not StalledTraining(threshold=1).judge(make_record(losses=[1.0]))

    def test_whether_it_ends_the_run_is_a_setting(self) -> None:
        assert not StalledTraining().stop
        assert StalledTraining(stop="true").stop
