"""The cut at the freeze boundary: where it lies, that both halves are the network, and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vizsla.models.build import rebuild
from vizsla.models.freezing import plan_freezing, set_training_mode
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


def test_a_network_that_does_not_trace_stays_whole() -> None:
    class Branching(nn.Module):
        """Decides by its values, which no trace can follow."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 3)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            values = self.first(pictures).mean(dim=(2, 3))
            return self.fc(values if values.sum() > 0 else -values)

    assert partition(Branching(), {"fc.weight", "fc.bias"}, 32) is None
