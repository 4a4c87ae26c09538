"""Kept outputs are found exactly where nothing that they depend on has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from vizsla.data.transforms import Preprocessing
from vizsla.errors import StorageError
from vizsla.models.build import rebuild
from vizsla.models.feature_cache import DiskFeatures, FeatureStore, MemoryFeatures, store_key
from vizsla.models.freezing import plan_freezing
from vizsla.models.partition import Partition, partition

PREPROCESSING = Preprocessing(size_px=64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))


def network(seed: int = 0, classes: int = 3, architecture: str = "test_resnet") -> nn.Module:
    torch.manual_seed(seed)
    return rebuild(architecture, {}, classes)


def halves_of(module: nn.Module, unfreeze: str = "head") -> Partition:
    policy = plan_freezing(module, unfreeze)
    policy.apply(module)
    halves = partition(module, policy.trainable, 64)
    assert halves is not None
    return halves


def key(module: nn.Module, unfreeze: str = "head", **changes: object) -> str:
    return store_key(halves_of(module, unfreeze), replace(PREPROCESSING, **changes), "fp32")


def test_the_same_network_has_the_same_key() -> None:
    assert key(network()) == key(network())


def test_whatever_the_outputs_depend_on_changes_the_key() -> None:
    changed_norm = network()
    with torch.no_grad():
        next(changed_norm.buffers()).add_(0.001)
    keys = [
        key(network()),
        key(network(seed=1)),
        key(network(), unfreeze="layer4"),
        key(network(architecture="test_byobnet")),
        key(changed_norm),
        key(network(), crop="squash"),
        key(network(), size_px=72),
        key(network(), interpolation="bicubic"),
        store_key(halves_of(network()), PREPROCESSING, "bf16"),
    ]
    assert len(set(keys)) == len(keys)


def test_head_and_classes_and_training_leave_the_key_alone() -> None:
    module = network()
    before = key(module)
    with torch.no_grad():
        module.get_classifier().weight.add_(1)  # type: ignore[operator]
    module.train()
    module(torch.randn(2, 3, 64, 64))  # which moves the counters of batch norm, and more
    after = network(classes=7)
    after.load_state_dict(
        {
            name: tensor
            for name, tensor in network().state_dict().items()
            if not name.startswith("fc.")
        },
        strict=False,
    )
    assert key(after) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (2, 3, 4)])
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_what_is_added_is_read_back(place: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    size = torch.Size(shape)
    store: FeatureStore = (
        DiskFeatures("k", "test", size, dtype)
        if place == "disk"
        else MemoryFeatures(6, size, dtype)
    )
    outputs = torch.randn(6, *shape).to(dtype)
    keys = [bytes([number + 1]) * 16 for number in range(6)]
    with store.filling(lambda: False, lambda: None) as mine:
        assert mine
        store.add(keys[:4], outputs[:4])
        store.add(keys[4:], outputs[4:])
    slots = store.find([keys[5], b"", keys[0], b"x" * 16])
    assert (slots < 0).tolist() == [False, True, False, True]
    assert torch.equal(store.rows()[slots[[0, 2]]], outputs[[5, 0]])


def test_room_beyond_the_budget_is_refused_with_the_way_out() -> None:
    store = DiskFeatures("k", "test", torch.Size((250,)), torch.float32)
    with store.filling(lambda: False, lambda: None):
        store.make_room(900, [], 1e6)
        with pytest.raises(StorageError, match=r"may hold 1\.0 MB \(cache_gb\).*Raise cache_gb"):
            store.make_room(1000, [], 1e6)
        with pytest.raises(StorageError, match="Free some space"):
            store.make_room(10**12, [], 1e20)


def test_a_full_store_drops_what_is_not_wanted_any_more() -> None:
    store = DiskFeatures("k", "test", torch.Size((250,)), torch.float32)
    outputs = torch.randn(100, 250)
    keys = [bytes([number + 1]) * 16 for number in range(100)]
    with store.filling(lambda: False, lambda: None):
        store.add(keys, outputs)
        mapped = store.rows()
        store.find(keys)
        mapped = store.rows()
        store.make_room(50, keys[90:], 110_000)
        slots = store.find(keys)
        assert (slots >= 0).tolist() == [False] * 90 + [True] * 10
        assert torch.equal(store.rows()[slots[90:]], outputs[90:])
        assert torch.equal(mapped, outputs)  # whoever had the old ones has them still
