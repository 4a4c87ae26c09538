"""Weights from files: whichever way they are wrapped, and never by running what is in them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from vizsla.checksum import sha256_of
from vizsla.data.transforms import Preprocessing
from vizsla.errors import ModelError
from vizsla.models.build import build_network, rebuild
from vizsla.models.weights import WeightsFile, read_weights
from vizsla.settings import Recipe

SMALL = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def _network(seed: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return rebuild("test_resnet", {}, classes)


def _equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    first, second = _network(1), _network(2)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(first.state_dict(), path)
    else:
        save_file(first.state_dict(), path)
    read_weights(path).load_into(second)
    assert _equal(first.state_dict(), second.state_dict())


def _prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in SMALL.items()}


@pytest.mark.parametrize(
    "content",
    [
        _prefixed("module."),
        _prefixed("_orig_mod."),
        _prefixed("model."),
        _prefixed("module._orig_mod."),
        {"state_dict": SMALL, "epoch": 3},
        {"model": _prefixed("module."), "optimizer": {"state": {}}},
        {"state_dict_ema": SMALL, "state_dict": {"a.weight": torch.zeros(2, 3)}},
        {"network": {"state_dict": SMALL}},
    ],
)
def test_wrappings_are_taken_off(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save(content, path)
    assert _equal(read_weights(path).tensors, SMALL)


def test_prefixes_of_safetensors_are_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "wrapped.safetensors"
    save_file(_prefixed("module."), path)
    assert _equal(read_weights(path).tensors, SMALL)


def test_prefix_of_some_tensors_only_is_part_of_their_name(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model.weight": torch.ones(1), "other": torch.ones(1)}, path)
    assert set(read_weights(path).tensors) == {"model.weight", "other"}


def test_older_format_of_torch_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save(SMALL, path, _use_new_zipfile_serialization=False)
    assert _equal(read_weights(path).tensors, SMALL)


class _Trap:
    """Unpickling it by Python's own rules would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    content = {**SMALL, "trap": _Trap(sprung)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="holds more than numbers.*not loaded.*state_dict"):
        read_weights(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert sprung.exists()


def test_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match="holds more than numbers"):
        read_weights(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(2), None])
def test_file_without_a_state_dict_is_told(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "empty.pth"
    torch.save(content, path)
    with pytest.raises(ModelError, match="holds no state dict"):
        read_weights(path)


def test_missing_file_is_told_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file.*pretrained, or none"):
        read_weights(tmp_path / "none.pth")


def _saved(kind: str) -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors" if kind == "safetensors" else "a.pth")
        if kind == "safetensors":
            save_file(SMALL, path)
        else:
            torch.save(SMALL, path, _use_new_zipfile_serialization=kind == "zip")
        return path.suffix, path.read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_file_is_an_error_of_ours_or_still_weights(kind: str, data: st.DataObject) -> None:
    suffix, content = _saved(kind)
    broken = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 3)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"broken{suffix}")
        path.write_bytes(broken)
        try:
            read_weights(path)
        except ModelError as error:
            told = str(error)
        else:
            return
    assert str(path) in told


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_file_is_told(tmp_path: Path, kind: str) -> None:
    suffix, content = _saved(kind)
    path = tmp_path / f"short{suffix}"
    for length in range(0, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match="damaged|cannot be read"):
            read_weights(path)


def _file_of(tensors: dict[str, torch.Tensor], **metadata: str) -> WeightsFile:
    return WeightsFile(Path("given.safetensors"), tensors, metadata)


def test_misfit_says_what_differs() -> None:
    state = dict(_network(1).state_dict())
    state["conv9.weight"] = state.pop("conv1.0.weight")
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    network = _network(2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        _file_of(state).load_into(network)
    message = str(caught.value)
    assert "given.safetensors do not fit the network (ResNet)" in message
    assert "1 tensors are missing (conv1.0.weight)" in message
    assert "1 tensors are unknown to it (conv9.weight)" in message
    assert "have another shape (layer1.0.conv1.weight is (2, 2) instead of (" in message
    assert _equal(before, network.state_dict())


def test_many_differences_are_told_by_their_number() -> None:
    with pytest.raises(ModelError, match=r"tensors are missing \(\S+, \S+, \S+, …\)"):
        _file_of(SMALL).load_into(_network(1))


def test_head_of_another_shape_keeps_its_start_and_the_rest_is_taken() -> None:
    given, network = _network(1, classes=7), _network(2, classes=3)
    head = {name: tensor.clone() for name, tensor in network.fc.state_dict().items()}
    _file_of(given.state_dict()).load_into(network)
    assert _equal(head, network.fc.state_dict())
    for name, tensor in network.state_dict().items():
        assert name.startswith("fc.") or tensor.equal(given.state_dict()[name])


def test_head_may_be_missing() -> None:
    given = {name: one for name, one in _network(1).state_dict().items() if name[:3] != "fc."}
    _file_of(given).load_into(network := _network(2))
    assert network.conv1[0].weight.equal(given["conv1.0.weight"])


def test_metadata_gives_the_preprocessing() -> None:
    metadata = {
        "input_size": "(3, 96, 96)",
        "mean": "0.1,0.2,0.3",
        "std": "[0.5, 0.6, 0.7]",
        "crop_pct": "0.8",
        "interpolation": "bicubic",
    }
    known = _file_of(SMALL, **metadata).preprocessing(Preprocessing(crop="pad"))
    assert known == Preprocessing(
        size_px=96,
        crop="pad",
        crop_pct=0.8,
        interpolation="bicubic",
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.6, 0.7),
    )


def test_without_metadata_the_preprocessing_is_the_default() -> None:
    assert _file_of(SMALL).preprocessing(Preprocessing()) == Preprocessing()


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": "dark"},
        {"mean": "0.5"},
        {"mean": "0.5,0.5,nan"},
        {"std": "0.2,0.2,0"},
        {"std": "1,1,-1"},
        {"std": "inf,1,1"},
        {"crop_pct": "0"},
        {"crop_pct": "1.5"},
        {"crop_pct": "all"},
        {"input_size": "3,0,0"},
        {"input_size": "3,-64,-64"},
        {"input_size": "3,1000000,1000000"},
        {"input_size": "big"},
        {"interpolation": "random"},
    ],
)
def test_nonsense_in_the_metadata_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"metadata of given\.safetensors"):
        _file_of(SMALL, **metadata).preprocessing(Preprocessing())


def test_pad_type_of_the_metadata_builds_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "same.safetensors"
    made = rebuild("test_efficientnet", {"pad_type": "same"}, 3)
    save_file(made.state_dict(), path, {"pad_type": "same", "crop_pct": "0.9"})
    recipe = Recipe(model="test_efficientnet", weights=str(path), size_px=64)
    network = build_network(recipe, recipe, 3)
    assert network.arguments == {"pad_type": "same"}
    assert network.preprocessing.crop_pct == 0.9
    assert network.weights_hash == sha256_of(path)
    pictures = torch.randn(2, 3, 63, 63)
    with torch.no_grad():
        assert torch.equal(network.module.eval()(pictures), made.eval()(pictures))


@pytest.mark.parametrize(("named", "fits"), [("test_resnet.r160_in1k", True), ("test_vit", False)])
def test_architecture_of_the_metadata_is_held_against_the_model(
    tmp_path: Path, named: str, fits: bool
) -> None:
    path = tmp_path / "named.safetensors"
    save_file(_network(1).state_dict(), path, {"architecture": named})
    recipe = Recipe(model="test_resnet", weights=str(path), size_px=64)
    if fits:
        assert build_network(recipe, recipe, 3).architecture == "test_resnet"
        return
    with pytest.raises(ModelError, match="for test_vit, and the model is test_resnet"):
        build_network(recipe, recipe, 3)
