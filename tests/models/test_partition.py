"""The cut at the freeze boundary: where it lies, that both halves are the network, and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vizsla.models.build import rebuild
from vizsla.models.freezing import FreezePolicy, plan_freezing, set_training_mode
from vizsla.models.partition import Partition, partition


def cut(
    architecture: str, unfreeze: str, **arguments: object
) -> tuple[nn.Module, Partition | None]:
    torch.manual_seed(0)
    module = rebuild(architecture, dict(arguments), 3)
    policy = plan_freezing(module, unfreeze)
    policy.apply(module)
    set_training_mode(module)
    return module, partition(module, policy.trainable, 160)


@pytest.mark.parametrize("unfreeze", ["head", "last", "2"])
@pytest.mark.parametrize(
    "architecture",
    ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet"],
)
def test_the_halves_compute_the_network(architecture: str, unfreeze: str) -> None:
    module, halves = cut(architecture, unfreeze)
    assert halves is not None
    module.eval()
    halves.tail.eval()
    pictures = torch.randn(3, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(halves.tail(halves.trunk(pictures)), module(pictures))


@pytest.mark.parametrize(
    ("architecture", "arguments", "size_px"),
    [
        ("resnet10t", {}, 64),
        ("mobilenetv2_035", {}, 64),
        ("mobilenetv3_small_050", {}, 64),
        ("efficientnet_b0", {}, 64),
        ("convnext_atto", {}, 64),
        ("vit_tiny_patch16_224", {"img_size": 64}, 64),
        ("swin_tiny_patch4_window7_224", {"img_size": 112}, 112),
        ("regnetx_002", {}, 64),
        ("densenet121", {}, 64),
    ],
)
def test_the_families_of_networks_are_cut_by_tracing(
    architecture: str, arguments: dict[str, object], size_px: int
) -> None:
    module = rebuild(architecture, arguments, 3)
    for unfreeze in ("head", "last"):
        policy = plan_freezing(module, unfreeze)
        policy.apply(module)
        halves = partition(module, policy.trainable, size_px)
        assert halves is not None
        assert halves.traced
        module.eval()
        halves.tail.eval()
        pictures = torch.randn(2, 3, size_px, size_px)
        with torch.no_grad():
            torch.testing.assert_close(halves.tail(halves.trunk(pictures)), module(pictures))


def test_nothing_that_trains_is_in_the_trunk_and_all_of_it_is_in_the_tail() -> None:
    module, halves = cut("test_resnet", "layer3")
    assert halves is not None
    training = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert not training & {id(parameter) for parameter in halves.trunk.parameters()}
    assert training <= {id(parameter) for parameter in halves.tail.parameters()}


def test_training_the_tail_trains_the_network() -> None:
    module, halves = cut("test_resnet", "head")
    assert halves is not None
    before = module.state_dict()["fc.weight"].clone()
    features = halves.trunk(torch.randn(2, 3, 160, 160))
    halves.tail(features).sum().backward()
    torch.optim.SGD(halves.tail.parameters(), lr=1.0).step()
    assert not torch.equal(module.state_dict()["fc.weight"], before)


def test_everything_trained_leaves_nothing_to_cut() -> None:
    assert cut("test_resnet", "all")[1] is None


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_efficientnet"])
def test_dropout_before_the_head_is_drawn_anew_in_the_tail(architecture: str) -> None:
    module, halves = cut(architecture, "head", drop_rate=0.5)
    assert halves is not None
    set_training_mode(module)
    halves.tail.train()
    features = halves.trunk(torch.randn(4, 3, 160, 160))
    assert torch.equal(features, features)
    assert not torch.equal(halves.tail(features), halves.tail(features))
    halves.tail.eval()
    assert torch.equal(halves.tail(features), halves.tail(features))


class Branching(nn.Module):
    """Decides by its values, which no trace can follow; with timm's own two halves, or without."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        values = self.first(pictures).mean(dim=(2, 3))
        return self.fc(values if values.sum() > 0 else -values)


class BranchingInHalves(Branching):
    def forward_features(self, pictures: torch.Tensor) -> torch.Tensor:
        values = self.first(pictures)
        return values if values.sum() > 0 else -values

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc(features.mean(dim=(2, 3)))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(pictures))


def test_a_network_that_does_not_trace_is_cut_at_forward_features() -> None:
    module = BranchingInHalves()
    FreezePolicy(frozenset({"fc.weight", "fc.bias"}), 15, 127).apply(module)
    halves = partition(module, {"fc.weight", "fc.bias"}, 32)
    assert halves is not None
    assert (halves.boundary, halves.traced) == ("forward_features", False)
    pictures = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(halves.tail(halves.trunk(pictures)), module(pictures))
    assert set(halves.trunk_weights()) == {"network.first.weight", "network.first.bias"}
    halves.tail(halves.trunk(pictures).detach()).sum().backward()
    assert module.fc.weight.grad is not None
    again = partition(module, {"fc.weight", "fc.bias"}, 32, boundary="forward_features")
    assert again is not None
    assert again.boundary == "forward_features"


def test_a_network_that_does_not_trace_stays_whole_if_more_than_the_head_trains() -> None:
    names = {name for name, _ in BranchingInHalves().named_parameters()}
    assert partition(BranchingInHalves(), names, 32) is None


def test_a_network_without_halves_that_does_not_trace_stays_whole() -> None:
    assert partition(Branching(), {"fc.weight", "fc.bias"}, 32) is None
