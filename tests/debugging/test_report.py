"""Sections of a report: what was found first, then what was recorded and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.recording import TensorUnavailable
from vizsla.debugging.report import lead_of, sections_of, sections_of_tensors
from vizsla.debugging.store import StepRecord, TensorWriter
from vizsla.findings import Finding
from vizsla.records import Section

Maker = Callable[..., TrainingRecord]

FINDINGS = [
    Finding("exploding_tensor", "error", "conv1.weight, step 3", "It is NaN.", "Lower the rate."),
    Finding("dead_relu", "warning", "act1", "67 % are dead.", "Wait.", 0.67, 0.5),
    Finding("loss_not_decreasing", "warning", "training", "It stays.", "Look.", 1e-9, 0.1),
]


def full_record(make_record: Maker) -> TrainingRecord:
    return make_record(
        losses=[2.0, 1.5, 1.0],
        eval_losses={1: 1.7},
        tensors={
            "conv1.weight": {"update": np.full(3, 1e-3)},
            "gradient/conv1.weight": {"l2": [1.0, 2.0, 3.0]},
        },
        units={"act1_relu_output_0": np.full((3, 4), 0.5)},
    )


def test_every_recorded_thing_has_its_section(make_record: Maker) -> None:
    sections = sections_of(full_record(make_record).tensors, FINDINGS)
    assert [one.title for one in sections] == [
        "Debugger findings", "Losses", "Gradients", "Updates", "Dead ReLUs", "Weights",
        "Spread of gradients", "Recorded",
    ]  # fmt: skip
    assert all(one.figure for one in sections[1:-1] if one.title != "Dead ReLUs")


def test_what_was_not_recorded_has_no_section(make_record: Maker) -> None:
    sections = sections_of(make_record(losses=[1.0, 0.5]).tensors, [])
    assert [one.title for one in sections] == ["Debugger findings", "Losses", "Recorded"]
    assert sections[0].text == "There are none."
    assert not sections[0].rows


def test_findings_are_a_note_each_with_their_evidence_worst_first(make_record: Maker) -> None:
    found = sections_of(full_record(make_record).tensors, [*FINDINGS[1:], FINDINGS[0]])[0]
    assert [(note.tone, note.head) for note in found.notes] == [
        ("error", "exploding_tensor · conv1.weight, step 3"),
        ("warning", "dead_relu · act1 · measured 0.67 (threshold 0.5)"),
        ("warning", "loss_not_decreasing · training · measured 1e-09 (threshold 0.1)"),
    ]
    assert found.notes[1].text == "67 % are dead.\nWait."


def test_lead_counts_what_was_recorded_and_found(make_record: Maker) -> None:
    tensors = full_record(make_record).tensors
    assert lead_of(tensors, []) == (
        "Losses of 3 steps, 3 tensors at 3 of them and 1 evaluation were recorded. There are no "
        "findings."
    )
    remark = Finding("some", "info", "here", "It is so.", "Leave it.")
    assert lead_of(tensors, [remark, *FINDINGS[::-1]]).endswith(
        "Rules found 1 error, 2 warnings and 1 info: It is NaN."
    )


def test_tensors_of_a_single_step_say_how_to_capture_more(make_record: Maker) -> None:
    tensors = make_record(losses=[2.0], tensors={"conv1.weight": {"update": [1e-3]}}).tensors
    writer = TensorWriter(tensors.path, 1, {})
    writer.add(StepRecord("train", 1, losses={"CrossEntropyLoss_output_0": 1.0}))
    writer.flush()
    tensors.refresh()
    told = "Captured at one step; --capture-every 1 captures each."
    lead = lead_of(tensors, [])
    assert lead.startswith("Losses of 2 steps and 1 tensor at 1 of them were recorded. " + told)
    texts = {one.title: one.text for one in sections_of_tensors(tensors, "conv1|Loss")}
    assert {title for title, text in texts.items() if told in text} == {
        "Means", "Norms", "Histograms",
    }  # fmt: skip


def test_no_dead_relu_is_said_instead_of_drawn(make_record: Maker) -> None:
    def section(active: float) -> Section:
        units = {"act1_relu_output_0": np.full((3, 4), active)}
        sections = sections_of(make_record(units=units).tensors, [])
        return next(one for one in sections if one.title == "Dead ReLUs")

    assert section(0.5).text.startswith("No ReLU is dead")
    assert section(0.5).figure is None
    assert section(0.0).figure is not None


def test_recorded_collections_are_listed_with_their_number(make_record: Maker) -> None:
    table = sections_of(full_record(make_record).tensors, [])[-1]
    assert [row[:3] for row in table.rows] == [
        ("losses", "1", "CrossEntropyLoss_output_0"),
        ("weights", "1", "conv1.weight"),
        ("gradients", "1", "gradient/conv1.weight"),
        ("relu_output", "1", "act1_relu_output_0"),
    ]


def test_files_that_are_gone_are_told_and_leave_a_report(make_record: Maker) -> None:
    record = full_record(make_record)
    for file in (record.tensors.path / "tensors").iterdir():
        file.unlink()
    sections = sections_of(record.tensors, [])
    assert [one.title for one in sections] == ["Debugger findings", "Losses", "Recorded"]
    for text in (sections[-1].text, lead_of(record.tensors, [])):
        assert "missing or damaged" in text
    assert "missing or damaged" not in lead_of(full_record(make_record).tensors, [])


def test_sections_of_tensors_show_pictures_and_shapes(make_record: Maker) -> None:
    tensors = full_record(make_record).tensors
    sections = sections_of_tensors(tensors, r"gradient/.*conv1\.weight")
    assert [one.title for one in sections] == ["Means", "Norms", "Histograms", "Tensors"]
    assert sections[-1].rows == (("gradient/conv1.weight", "gradients", "4 × 4"),)
    with pytest.raises(TensorUnavailable, match="no tensor to draw"):
        sections_of_tensors(tensors, "nothing")
