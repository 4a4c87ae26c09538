"""Metrics in NumPy against torchmetrics and torch, on whatever predictions there may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vizsla import torchvision_compat as _torchvision_compat  # noqa: F401  (before torchmetrics)
from vizsla.metrics import MetricSums, log_softmax, macro_f1, per_class
from vizsla.records import ClassLabel

# isort: split
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

LABELS = (
    ClassLabel.from_folder("001.Affenpinscher"),
    ClassLabel.from_folder("002.Akita"),
    ClassLabel.from_folder("mongrel"),
)


def _answers(seed: int, pictures: int, classes: int, labelled: int) -> tuple[NDArray, NDArray]:
    """Log-probabilities and labels; only the first `labelled` classes occur as labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, labelled, pictures)
    logits = generator.normal(size=(pictures, classes))
    logits[np.arange(pictures), labels] += 1.0
    return log_softmax(logits), labels


def _sums(answers: NDArray, labels: NDArray, batch: int = 7) -> MetricSums:
    sums = MetricSums(answers.shape[1])
    for start in range(0, len(labels), batch):
        sums.add(answers[start : start + batch], labels[start : start + batch])
    return sums


@given(
    seed=st.integers(0, 2**32 - 1),
    pictures=st.integers(1, 60),
    classes=st.integers(6, 12),
    labelled=st.integers(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_figures_are_those_of_torchmetrics(
    seed: int, pictures: int, classes: int, labelled: int
) -> None:
    answers, labels = _answers(seed, pictures, classes, labelled)
    summary = _sums(answers, labels).summary()
    guesses, truth = torch.from_numpy(answers), torch.from_numpy(labels)
    assert summary.pictures == pictures
    for ours, theirs in (
        (summary.accuracy, multiclass_accuracy(guesses, truth, classes, average="micro")),
        (summary.top5_accuracy, multiclass_accuracy(guesses, truth, classes, "micro", top_k=5)),
        (summary.macro_f1, multiclass_f1_score(guesses, truth, classes, average="macro")),
        (summary.loss, torch.nn.functional.nll_loss(guesses, truth)),
    ):
        assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_confusion_matrix_is_that_of_torchmetrics() -> None:
    answers, labels = _answers(1, pictures=80, classes=9, labelled=6)
    theirs = multiclass_confusion_matrix(torch.from_numpy(answers), torch.from_numpy(labels), 9)
    assert np.array_equal(_sums(answers, labels).confusion, theirs.numpy())


def test_figures_of_classes_are_those_of_torchmetrics() -> None:
    answers, labels = _answers(2, pictures=50, classes=3, labelled=2)
    rows = per_class(_sums(answers, labels).confusion, LABELS)
    guesses, truth = torch.from_numpy(answers), torch.from_numpy(labels)
    for name, measure in (
        ("precision", multiclass_precision),
        ("recall", multiclass_recall),
        ("f1", multiclass_f1_score),
    ):
        theirs = measure(guesses, truth, 3, average="none")
        assert [row[name] for row in rows] == pytest.approx(theirs.tolist(), abs=1e-6)
    assert [row["pictures"] for row in rows] == np.bincount(labels, minlength=3).tolist()
    assert [(row["label"], row["class_name"]) for row in rows] == [
        ("001", "Affenpinscher"),
        ("002", "Akita"),
        ("mongrel", "mongrel"),
    ]


def test_batches_of_any_size_give_the_same_figures() -> None:
    answers, labels = _answers(3, pictures=41, classes=8, labelled=8)
    one, many = _sums(answers, labels, batch=41), _sums(answers, labels, batch=4)
    assert np.array_equal(one.confusion, many.confusion)
    assert one.top5_hits == many.top5_hits
    assert one.loss_sum == pytest.approx(many.loss_sum)


def test_class_that_occurs_nowhere_is_left_out_of_the_mean() -> None:
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert macro_f1(confusion) == pytest.approx((6 / 7 + 8 / 9) / 2)


def test_class_that_is_only_predicted_counts_as_nought() -> None:
    confusion = np.array([[3, 0, 1], [0, 4, 0], [0, 0, 0]])
    assert macro_f1(confusion) == pytest.approx((6 / 7 + 1 + 0) / 3)


def test_no_picture_gives_noughts_and_no_warning() -> None:
    summary = MetricSums(4).summary()
    assert summary.pictures == 0
    assert (summary.loss, summary.accuracy, summary.top5_accuracy, summary.macro_f1) == (0, 0, 0, 0)


def test_answers_that_are_no_numbers_hit_nothing_in_the_top_five() -> None:
    sums = MetricSums(8)
    sums.add(np.full((3, 8), np.nan), np.array([1, 2, 3]))
    assert sums.summary().top5_accuracy == 0


@given(
    logits=arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
@settings(max_examples=80, deadline=None)
def test_log_softmax_is_that_of_torch(logits: NDArray[np.float32]) -> None:
    theirs = torch.from_numpy(logits).double().log_softmax(dim=-1).numpy()
    ours = log_softmax(logits)
    assert ours.dtype == np.float64
    assert np.allclose(ours, theirs, rtol=1e-12, atol=1e-9)
    assert np.allclose(np.exp(ours).sum(axis=-1), 1)
