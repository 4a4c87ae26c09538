"""Mixed batches keep their pictures, and their targets stay distributions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from vizsla.settings import AugmentSettings
from vizsla.training.mixing import BatchMixer, build_loss

CLASSES = 4
CPU = torch.device("cpu")


def mixed(count: int, seed: int = 1, **settings: float) -> tuple[torch.Tensor, torch.Tensor]:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return BatchMixer(AugmentSettings(**settings), CLASSES, CPU)(pictures(count), labels(count))


def pictures(count: int) -> torch.Tensor:
    """Picture i is all i + 1, so that a mixed one tells what it was mixed from."""
    return torch.arange(1.0, count + 1).view(-1, 1, 1, 1).repeat(1, 3, 16, 16)


def labels(count: int) -> torch.Tensor:
    return torch.arange(count) % CLASSES


def test_without_mixing_a_batch_is_left_alone() -> None:
    inputs, targets = mixed(5)
    assert torch.equal(inputs, pictures(5))
    assert torch.equal(targets, labels(5))


@pytest.mark.parametrize("count", [1, 2, 7, 8])
@pytest.mark.parametrize(
    "settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}]
)
def test_targets_are_shares_that_sum_to_one(count: int, settings: dict[str, float]) -> None:
    for seed in range(5):
        inputs, targets = mixed(count, seed, **settings)
        assert inputs.shape == (count, 3, 16, 16)
        assert targets.shape == (count, CLASSES)
        assert targets.dtype == torch.float32
        assert (targets >= 0).all()
        assert targets.sum(dim=1) == pytest.approx(torch.ones(count))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_picture_without_a_partner_stays_as_it_is(name: str) -> None:
    for count in (1, 7):
        inputs, targets = mixed(count, **{name: 1.0})
        assert torch.equal(inputs[-1], pictures(count)[-1])
        assert torch.equal(targets[-1], F.one_hot(labels(count)[-1], CLASSES).float())


def test_mixup_weighs_pictures_as_it_weighs_labels() -> None:
    inputs, targets = mixed(4, seed=2, mixup=1.0)
    own = targets[0, 0]
    assert 0.01 < own < 0.99
    assert targets[0, 3] == pytest.approx(1 - own)
    assert inputs[0] == pytest.approx(own * pictures(4)[0] + (1 - own) * pictures(4)[3])


def test_cutmix_cuts_as_much_as_its_labels_say() -> None:
    inputs, targets = mixed(4, seed=3, cutmix=1.0)
    kept = (inputs[0, 0] == 1).float().mean()
    assert 0 < kept < 1
    assert set(inputs[0].unique().tolist()) == {1.0, 4.0}
    assert targets[0, 0] == pytest.approx(kept)


@pytest.mark.parametrize("count", [1, 7, 8])
def test_erasing_changes_a_rectangle_and_no_label(count: int) -> None:
    inputs, targets = mixed(count, random_erasing=1.0)
    changed = (inputs != pictures(count)).float().mean(dim=(1, 2, 3))
    assert ((changed > 0) & (changed < 0.5)).all()
    assert torch.equal(targets, labels(count))


def test_erasing_goes_with_mixing() -> None:
    inputs, targets = mixed(7, random_erasing=1.0, mixup=0.4, cutmix=1.0)
    assert inputs.shape == (7, 3, 16, 16)
    assert targets.sum(dim=1) == pytest.approx(torch.ones(7))


def test_the_same_state_of_chance_mixes_alike() -> None:
    settings = {"random_erasing": 0.5, "mixup": 0.4, "cutmix": 1.0}
    first, again, other = (mixed(8, seed, **settings) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_labels_and_their_one_hot_shares_lose_alike() -> None:
    loss = build_loss(0.0, None)
    logits = torch.randn(5, CLASSES)
    shares = F.one_hot(labels(5), CLASSES).float()
    assert loss(logits, labels(5)) == pytest.approx(loss(logits, shares))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_is_torchs_own_for_labels_and_for_shares(smoothing: float) -> None:
    logits = torch.randn(6, CLASSES)
    _, shares = mixed(6, mixup=0.4)
    loss = build_loss(smoothing, None)
    for targets in (labels(6), shares):
        expected = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        assert torch.equal(loss(logits, targets), expected)


def test_smoothing_spreads_its_share_over_all_classes() -> None:
    logits = torch.randn(6, CLASSES)
    spread = 0.9 * F.one_hot(labels(6), CLASSES) + 0.1 / CLASSES
    by_hand = -(spread * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert build_loss(0.1, None)(logits, labels(6)) == pytest.approx(by_hand)


def test_class_weights_weigh_the_loss() -> None:
    logits = torch.randn(6, CLASSES)
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    expected = F.cross_entropy(logits, labels(6), weight=weights)
    assert torch.equal(build_loss(0.0, weights)(logits, labels(6)), expected)
