"""Numbers of tensors, against plain NumPy in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vizsla.debugging.format import BINS, STORED
from vizsla.debugging.reductions import (
    Reduced,
    _statistics,
    _sums_elsewhere,
    _sums_of,
    flattened,
    sample_of,
    unit_shares,
)

FLOATS = arrays.arrays(
    np.float32,
    arrays.array_shapes(max_dims=4, max_side=6),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


def numbers(tensor: torch.Tensor, collection: str = "weights") -> dict[str, float]:
    reduced = Reduced()
    reduced.add("x", collection, tensor)
    return dict(zip(STORED, reduced.arrays()["reductions"][0].tolist(), strict=True))


@given(FLOATS)
@settings(deadline=None, max_examples=150)
def test_any_numbers_are_reduced_as_numpy_does(values: np.ndarray) -> None:
    found = numbers(torch.from_numpy(values))
    finite = values[np.isfinite(values)].astype(np.float64)
    assert found["nans"] == np.isnan(values).sum()
    assert found["infs"] == np.isinf(values).sum()
    assert found["zeros"] == pytest.approx((values == 0).mean())
    if len(finite):
        with np.errstate(over="ignore"):
            assert found["l1"] == pytest.approx(np.float32(np.abs(finite).sum()), rel=1e-5)
            assert found["l2"] == pytest.approx(
                np.float32(np.sqrt((finite**2).sum())), rel=1e-4, abs=1e-18
            )
    if len(finite) == values.size:
        assert (found["min"], found["max"]) == (finite.min(), finite.max())
        scale = np.abs(finite).max() + 1e-30
        if scale < 1e18:
            assert found["mean"] == pytest.approx(finite.mean(), abs=1e-6 * scale)
            assert found["std"] == pytest.approx(finite.std(), rel=1e-3, abs=1e-5 * scale)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_large_tensors_of_any_kind_are_exact(
    kind: torch.dtype, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(64, 32, 5, 5) * 0.02 + 0.01).to(kind).to(memory_format=layout)
    found, true = numbers(tensor), tensor.double()
    assert found["mean"] == pytest.approx(true.mean().item(), rel=1e-4)
    assert found["std"] == pytest.approx(true.std(correction=0).item(), rel=1e-4)
    assert found["l1"] == pytest.approx(true.abs().sum().item(), rel=1e-4)
    quantiles = torch.quantile(true.flatten(), torch.tensor([0.05, 0.5, 0.95]).double())
    for name, value in zip(("quantile_5", "median", "quantile_95"), quantiles, strict=True):
        assert found[name] == pytest.approx(value.item(), abs=0.002)


def test_small_deviation_around_a_large_mean_is_not_lost() -> None:
    weights = 1 + 1e-4 * torch.randn(512)
    assert numbers(weights)["std"] == pytest.approx(weights.double().std().item(), rel=0.01)


def test_sample_prefers_no_kernel_position() -> None:
    """A stride of 576 would take one position of a 3 x 3 kernel alone."""
    positions = torch.arange(512 * 512 * 9) % 9
    taken = sample_of(positions.float())
    shares = torch.bincount(taken.long(), minlength=9) / len(taken)
    assert shares.min() > 0.1
    assert len(taken) <= 4096


def test_histogram_lies_between_the_ends_of_the_tensor() -> None:
    reduced = Reduced()
    reduced.add("x", "weights", torch.linspace(-1, 1, 1000))
    reduced.add("same", "weights", torch.ones(50))
    counts = reduced.arrays()["histograms"]
    assert counts.shape == (2, BINS)
    assert counts.sum(axis=1).tolist() == [1000, 50]
    assert counts[0].max() - counts[0].min() <= 2


def test_update_is_the_change_over_what_was_changed() -> None:
    reduced, weight = Reduced(), torch.full((10,), 2.0)
    reduced.add("w", "weights", weight)
    reduced.add_later("w", weight - 0.1)
    assert reduced.arrays()["reductions"][0, STORED.index("update")] == pytest.approx(0.05)
    assert np.isnan(numbers(weight)["update"])


def test_scaled_gradients_are_divided_and_shares_are_not() -> None:
    reduced = Reduced()
    reduced.add("g", "gradients", torch.tensor([0.0, 4.0, -8.0, 0.0]), scale=4.0)
    found = dict(zip(STORED, reduced.arrays()["reductions"][0].tolist(), strict=True))
    assert (found["min"], found["max"], found["l1"]) == (-2.0, 1.0, 3.0)
    assert found["zeros"] == 0.5


def test_tensors_without_numbers_are_left_out() -> None:
    assert flattened(torch.empty(0)) is None
    assert flattened(torch.empty(3, device="meta")) is None
    assert flattened(torch.nn.parameter.UninitializedParameter()) is None
    assert numbers(torch.tensor([[0, 3], [0, 4]]))["l2"] == 5
    assert numbers(torch.tensor([[0.0, 3.0], [0.0, 4.0]]).to_sparse())["l1"] == 7


def test_units_are_channels_of_pictures_and_features_of_rows() -> None:
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[:, 1] = 1.0
    active = (-math.inf, 0.0)
    assert unit_shares(pictures, active).tolist() == [0, 1, 0]
    tokens = torch.zeros(2, 7, 5)
    tokens[..., 4] = 1.0
    assert unit_shares(tokens, active).tolist() == [0, 0, 0, 0, 1]
    saturated = unit_shares(torch.tensor([[10.0, 0.0], [-10.0, 1.0]]), (-9.5, 9.5))
    assert saturated.tolist() == [1, 0]
    assert unit_shares(torch.zeros(3), active) is None


@given(FLOATS)
@settings(deadline=None, max_examples=100)
def test_accelerators_get_the_same_numbers_in_their_own_way(values: np.ndarray) -> None:
    """The way of devices without a cheap look at a number, here on the CPU."""
    row, sample = torch.from_numpy(values).flatten(), values.ravel()
    here, there = (
        dict(zip(STORED, _statistics(sums(row).numpy(), values.size, sample), strict=False))
        for sums in (_sums_of, _sums_elsewhere)
    )
    for name, value in here.items():
        if np.isfinite(values).any() or name in ("nans", "infs", "zeros"):
            size = float(np.abs(values[np.isfinite(values)]).max(initial=0)) + 1e-30
            assert there[name] == pytest.approx(value, rel=1e-3, abs=1e-3 * size)


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1e-3), (0.1, 0.0), (10.0, 1e-2)])
def test_deviation_of_large_tensors_does_not_drown(mean: float, std: float) -> None:
    torch.manual_seed(0)
    values = mean + std * torch.randn(1_000_000, dtype=torch.float64)
    assert numbers(values.float())["std"] == pytest.approx(std, rel=0.05, abs=1e-7)


def test_complex_tensors_count_both_parts() -> None:
    values = torch.complex(torch.full((8,), 1.0), torch.full((8,), 3.0))
    assert numbers(values)["mean"] == pytest.approx(2.0)


def test_units_of_rows_are_their_channels() -> None:
    rows = torch.zeros(2, 3, 50)
    rows[:, 2] = 1.0
    assert unit_shares(rows, (-math.inf, 0.0), rows_first=True).tolist() == [0, 0, 1]
