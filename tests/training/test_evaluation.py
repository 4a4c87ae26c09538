"""Sums on the device are the sums that NumPy makes, and survive a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from vizsla.data.transforms import Preprocessing
from vizsla.metrics import MetricSums, log_softmax
from vizsla.training.evaluation import DeviceSums, InputMaker

CPU = torch.device("cpu")


def batches(class_count: int, seed: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            3 * torch.randn(size, class_count, generator=generator),
            torch.randint(class_count, (size,), generator=generator),
        )
        for size in (8, 8, 1, 5)
    ]


def count(sums: DeviceSums, some: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for logits, labels in some:
        sums.add(F.cross_entropy(logits, labels), logits, labels)


@pytest.mark.parametrize("class_count", [2, 5, 12])
def test_device_sums_are_the_sums_of_numpy(class_count: int) -> None:
    on_device, in_numpy = DeviceSums(class_count, CPU), MetricSums(class_count)
    count(on_device, batches(class_count))
    for logits, labels in batches(class_count):
        in_numpy.add(log_softmax(logits.numpy()), labels.numpy())
    summed = on_device.summed()
    assert np.array_equal(summed.confusion, in_numpy.confusion)
    assert summed.top5_hits == in_numpy.top5_hits
    assert summed.loss_sum == pytest.approx(in_numpy.loss_sum, rel=1e-6)
    assert summed.summary().pictures == 22
    assert summed.summary().macro_f1 == in_numpy.summary().macro_f1


def test_sums_go_on_from_their_state_as_if_never_stopped() -> None:
    whole, first, second = (DeviceSums(5, CPU) for _ in range(3))
    some = batches(5)
    count(whole, some)
    count(first, some[:2])
    second.load_state(first.state())
    count(second, some[2:])
    assert second.summed().loss_sum == whole.summed().loss_sum
    assert np.array_equal(second.summed().confusion, whole.summed().confusion)
    assert second.summed().top5_hits == whole.summed().top5_hits


def test_fresh_sums_summarise_to_zeros() -> None:
    summary = DeviceSums(3, CPU).summed().summary()
    assert summary.pictures == 0
    assert summary.accuracy == summary.loss == summary.macro_f1 == 0.0


def test_inputs_are_those_of_the_bundle() -> None:
    preprocessing = Preprocessing(
        size_px=16,
        crop_pct=0.9,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    pixels = torch.randint(256, (3, 16, 16, 3), dtype=torch.uint8)
    made = InputMaker(preprocessing, CPU)(pixels)
    assert made.dtype == torch.float32
    assert made.shape == (3, 3, 16, 16)
    assert made.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(
        made.numpy(), preprocessing.normalise(pixels.numpy()), rtol=0, atol=1e-6
    )
