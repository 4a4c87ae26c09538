"""What trains, on three families of networks; and that what is frozen does not move at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vizsla.errors import ModelError
from vizsla.models.build import rebuild
from vizsla.models.freezing import plan_freezing, set_training_mode, stages

HEADS = {
    "test_resnet": {"fc.weight", "fc.bias"},
    "test_vit": {"head.weight", "head.bias"},
    "test_efficientnet": {"classifier.weight", "classifier.bias"},
}
LAST = {"test_resnet": "layer4.", "test_vit": "blocks.5.", "test_efficientnet": "blocks.4."}
networks = pytest.mark.parametrize("architecture", HEADS)


def _network(architecture: str, **arguments: float) -> nn.Module:
    torch.manual_seed(0)
    return rebuild(architecture, arguments, 3)


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


@networks
def test_head_trains_the_classifier_alone(architecture: str) -> None:
    assert plan_freezing(_network(architecture), "head").trainable == HEADS[architecture]


@networks
def test_last_trains_the_last_stage_and_the_head(architecture: str) -> None:
    trainable = plan_freezing(_network(architecture), "last").trainable
    assert trainable >= HEADS[architecture]
    stage = {
        name for name in trainable - HEADS[architecture] if name.startswith(LAST[architecture])
    }
    assert stage
    # Beside it only what closes the trunk.
    closing = trainable - HEADS[architecture] - stage
    assert {name.split(".")[0] for name in closing} <= {"norm", "conv_head", "bn2"}


@networks
def test_stages_hold_every_parameter_but_the_head_once(architecture: str) -> None:
    module = _network(architecture)
    row = [name for stage in stages(module) for name in stage]
    assert len(row) == len(set(row))
    assert set(row) == _names(module) - HEADS[architecture]


@networks
def test_number_trains_so_many_stages(architecture: str) -> None:
    module = _network(architecture)
    rows = stages(module)
    policy = [plan_freezing(module, str(count)).trainable for count in range(len(rows) + 1)]
    assert policy[0] == HEADS[architecture]
    assert policy[1] == plan_freezing(module, "last").trainable
    assert policy[2] == HEADS[architecture] | set(rows[-1]) | set(rows[-2])
    assert policy[-1] == _names(module)


@networks
def test_all_trains_everything(architecture: str) -> None:
    module = _network(architecture)
    policy = plan_freezing(module, "all")
    assert policy.trainable == _names(module)
    assert policy.trained_numbers == policy.all_numbers
    assert policy.all_numbers == sum(one.numel() for one in module.parameters())


@pytest.mark.parametrize(
    ("architecture", "prefix", "like", "unlike"),
    [
        ("test_resnet", "layer4", "layer4.0.conv1.weight", "layer3.0.conv1.weight"),
        ("test_vit", "blocks.3", "blocks.3.norm1.weight", "blocks.4.norm1.weight"),
        ("test_efficientnet", "blocks.1.0", "blocks.1.0.conv_exp.weight", "conv_stem.weight"),
    ],
)
def test_prefix_trains_what_it_matches_and_the_head(
    architecture: str, prefix: str, like: str, unlike: str
) -> None:
    module = _network(architecture)
    trainable = plan_freezing(module, prefix).trainable
    assert {like, *HEADS[architecture]} <= trainable
    assert unlike in _names(module) - trainable
    assert all(name.startswith(prefix + ".") for name in trainable - HEADS[architecture])


def test_prefix_matches_whole_names_only() -> None:
    module = nn.Module()
    module.layer1 = nn.Linear(1, 1)
    module.layer10 = nn.Linear(1, 1)
    module.get_classifier = nn.Identity
    assert plan_freezing(module, "layer1").trainable == {"layer1.weight", "layer1.bias"}


def test_unknown_prefix_is_told_with_what_there_is() -> None:
    with pytest.raises(
        ModelError, match="'layerr4'.*Did you mean layer4.*layer1, layer2"
    ) as caught:
        plan_freezing(_network("test_resnet"), "layerr4")
    assert "head, last, all, or a number of stages" in str(caught.value)


def test_more_stages_than_there_are_is_told_with_how_many() -> None:
    with pytest.raises(ModelError, match="unfreeze is 99 stages, but VisionTransformer has 7"):
        plan_freezing(_network("test_vit"), "99")


def test_policy_switches_gradients_on_and_off() -> None:
    module = _network("test_resnet")
    plan_freezing(module, "last").apply(module)
    wanted = plan_freezing(module, "last").trainable
    assert {name for name, one in module.named_parameters() if one.requires_grad} == wanted
    plan_freezing(module, "all").apply(module)
    assert all(one.requires_grad for one in module.parameters())


def _train_a_step(module: nn.Module, unfreeze: str) -> None:
    plan_freezing(module, unfreeze).apply(module)
    set_training_mode(module)
    trained = [one for one in module.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    module(torch.randn(4, 3, 64, 64)).square().sum().backward()
    optimizer.step()


@networks
@pytest.mark.parametrize("unfreeze", ["head", "last"])
def test_frozen_weights_and_batch_norm_statistics_do_not_move(
    architecture: str, unfreeze: str
) -> None:
    arguments = {"img_size": 64} if architecture == "test_vit" else {}
    module = _network(architecture, **arguments)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    _train_a_step(module, unfreeze)
    trainable = plan_freezing(module, unfreeze).trainable
    trained_modules = {name.rpartition(".")[0] for name in trainable}
    moved = {name for name, tensor in module.state_dict().items() if not tensor.equal(before[name])}
    assert moved
    assert {name.rpartition(".")[0] for name in moved} <= trained_modules
    assert HEADS[architecture] <= moved


def test_trained_batch_norm_statistics_do_move() -> None:
    module = _network("test_resnet")
    before = module.layer4[0].bn1.running_mean.clone()
    _train_a_step(module, "last")
    assert not module.layer4[0].bn1.running_mean.equal(before)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_frozen_blocks_drop_nothing(architecture: str) -> None:
    arguments = {"img_size": 64} if architecture == "test_vit" else {}
    module = _network(architecture, drop_path_rate=0.5, **arguments)
    plan_freezing(module, "head").apply(module)
    set_training_mode(module)
    pictures = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        features = [module.forward_features(pictures) for _ in range(3)]
        expected = module.eval().forward_features(pictures)
    assert all(torch.equal(one, expected) for one in features)


def test_dropout_before_the_head_still_drops() -> None:
    module = _network("test_vit", drop_rate=0.5, img_size=64)
    plan_freezing(module, "head").apply(module)
    set_training_mode(module)
    pictures = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(module(pictures), module(pictures))
