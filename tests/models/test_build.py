"""From settings to a network: names, sizes, starts, and errors that say the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vizsla.errors import InputError, ModelError, SettingError
from vizsla.models.build import Network, build_network, check_architecture, rebuild
from vizsla.settings import Recipe


def _built(seed: int = 0, classes: int = 3, **settings: object) -> Network:
    recipe = Recipe(**{"model": "test_resnet", "weights": "none", **settings})
    torch.manual_seed(seed)
    return build_network(recipe, recipe, classes)


def _same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(one.equal(other) for one, other in pairs)


def test_unknown_model_is_told_with_the_nearest_names() -> None:
    with pytest.raises(ModelError, match=r"no architecture 'resnet5O'. Did you mean .*resnet50"):
        _built(model="resnet5O")


@pytest.mark.parametrize(
    "name", ["", "resnet", "hf-hub:someone/something", "../resnet50", "a\x00b"]
)
def test_anything_else_as_a_model_is_an_input_error(name: str) -> None:
    with pytest.raises(InputError):
        check_architecture(name)


def test_unknown_weights_of_a_known_model_are_told_with_what_there_is() -> None:
    with pytest.raises(ModelError, match="no weights tagged 'best'.*test_resnet.r160_in1k"):
        check_architecture("test_resnet.best")
    check_architecture("test_resnet.r160_in1k")


def test_random_start_depends_on_the_seed_alone() -> None:
    assert _same(_built(seed=1).module, _built(seed=1).module)
    assert not _same(_built(seed=1).module, _built(seed=2).module)


def test_random_start_is_said_in_words() -> None:
    network = _built()
    assert network.weights_origin == "none (random)"
    assert network.weights_hash is None


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_efficientnet"])
def test_picture_size_reaches_network_and_preprocessing(model: str) -> None:
    network = _built(model=model, size_px=64, crop="pad", crop_pct=0.7)
    assert network.preprocessing.size_px == 64
    assert (network.preprocessing.crop, network.preprocessing.crop_pct) == ("pad", 0.7)
    assert network.arguments == ({"img_size": 64} if model == "test_vit" else {})
    with torch.no_grad():
        assert network.module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_picture_size_is_the_weights_own_by_default() -> None:
    assert _built(model="test_vit").preprocessing.size_px == 160


@pytest.mark.parametrize(
    ("model", "size_px"), [("test_vit", 65), ("test_maxvit", 100), ("test_convnext", 16)]
)
def test_size_that_a_network_cannot_take_is_told(model: str, size_px: int) -> None:
    with pytest.raises(SettingError, match=rf"size_px is {size_px}, but {model} cannot take"):
        _built(model=model, size_px=size_px)


def test_network_is_handed_over_in_training_mode() -> None:
    assert all(part.training for part in _built(size_px=64).module.modules())


def test_unsupported_stochastic_depth_is_told() -> None:
    with pytest.raises(SettingError, match="vgg11 does not take drop_path_rate.*Leave that"):
        _built(model="vgg11", drop_path_rate=0.1)


def test_dropout_and_stochastic_depth_are_handed_on() -> None:
    network = _built(model="test_vit", drop_rate=0.25, drop_path_rate=0.5)
    assert network.arguments == {"drop_rate": 0.25, "drop_path_rate": 0.5}
    assert network.module.head_drop.p == 0.25
    assert network.module.blocks[-1].drop_path1.drop_prob == 0.5


def test_rebuilt_network_takes_the_weights() -> None:
    network = _built(model="test_vit", size_px=64, drop_path_rate=0.1)
    again = rebuild(network.architecture, network.arguments, 3)
    again.load_state_dict(network.module.state_dict())
    assert _same(again, network.module)


def test_head_for_other_classes_starts_small_on_given_weights(tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    given = _built(seed=5, classes=7).module
    save_file(given.state_dict(), path)
    network = _built(weights=str(path))
    assert network.weights_origin == str(path.resolve())
    assert network.module.conv1[0].weight.equal(given.conv1[0].weight)
    assert network.module.fc.weight.shape[0] == 3
    assert float(network.module.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    assert not network.module.fc.bias.any()


def test_architecture_without_a_classifier_is_refused() -> None:
    with pytest.raises(ModelError, match="has no classifier to train"):
        _built(classes=0)
