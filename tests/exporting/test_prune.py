"""A pruned network is smaller, can be bundled and loaded again, and a short training repairs it."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from vizsla.data.catalogue import Catalogue
from vizsla.data.sources import read_manifest
from vizsla.data.transforms import Preprocessing
from vizsla.errors import DependencyError, Interrupted, ModelError, SettingError
from vizsla.exporting.onnx import export_onnx
from vizsla.exporting.prune import prune, rebuild_pruned, weighty_layers
from vizsla.exporting.recovery import RecoverySettings, recover
from vizsla.models.build import rebuild
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe

SIZE_PX = 64
VIT = {"img_size": SIZE_PX, "depth": 1}


def _network(architecture: str = "test_resnet", arguments: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    module = rebuild(architecture, arguments or {}, 3)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # timm starts some at zero, and with them whole blocks
            nn.init.uniform_(part.weight, 0.5, 1.0)
    return module.eval()


def _pixels(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, SIZE_PX, SIZE_PX, generator=generator)


def _answers(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = module(_pixels())
    return logits


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_structured_pruning_makes_a_network_smaller_in_every_runtime(
    architecture: str, tmp_path: Path
) -> None:
    module = _network(architecture)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pruned = prune(module, 0.4, "structured", SIZE_PX)
    assert pruned.parameters_before == sum(one.numel() for one in module.parameters())
    assert pruned.parameters_after == sum(one.numel() for one in pruned.module.parameters())
    assert pruned.parameters_after < 0.8 * pruned.parameters_before
    assert pruned.sparsity == pytest.approx(1 - pruned.parameters_after / pruned.parameters_before)
    assert all(torch.equal(before[name], one) for name, one in module.state_dict().items())

    sizes = []
    for name, network in (("whole", module), ("pruned", pruned.module)):
        export_onnx(network, architecture, SIZE_PX, tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]
    session = onnxruntime.InferenceSession(tmp_path / "pruned", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixels": _pixels().numpy()})
    assert np.allclose(logits, _answers(pruned.module).numpy(), atol=1e-4)
    assert logits.shape == (4, 3)


def test_channels_that_weigh_least_go_and_eight_stay_together() -> None:
    module = _network()
    first, norm, _, second = module.conv1[:4]
    with torch.no_grad():  # the first convolution's odd channels are next to nothing
        first.weight[1::2] *= 1e-4
        norm.weight[1::2] *= 1e-4
        second.weight[:, 1::2] *= 1e-4
    kept = first.weight[::2]
    pruned = prune(module, 0.5, "structured", SIZE_PX)
    assert torch.equal(weighty_layers(pruned.module)["conv1.0"].weight, kept)
    layers = [entry for entry in pruned.removed if "channels_after" in entry]
    assert layers
    for entry in layers:
        halved = entry["channels_after"] != entry["channels_before"]
        assert not halved or entry["channels_after"] % 8 == 0, entry
    assert any(entry["channels_after"] < entry["channels_before"] for entry in layers)


def test_pruned_weights_load_into_the_architecture_cut_to_their_shapes() -> None:
    pruned = prune(_network("test_efficientnet"), 0.4, "structured", SIZE_PX)
    removed = json.loads(json.dumps(pruned.removed))
    again = rebuild("test_efficientnet", {}, 3)
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.load_state_dict(pruned.module.state_dict())
    rebuild_pruned(again, removed).load_state_dict(pruned.module.state_dict())
    assert torch.equal(_answers(again.eval()), _answers(pruned.module))
    _answers(again.train()).sum()  # and it trains on


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"layer": "no_such"}, "a layer 'no_such'"),
        ({"layer": "conv1.0", "attributes": {"forward": 3}}, "no size called 'forward'"),
        ({"layer": "conv1.0", "shapes": {"mass": [3]}}, "no tensor called 'mass'"),
    ],
)
def test_shapes_that_are_not_of_this_architecture_are_refused(
    entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        rebuild_pruned(_network(), [entry])


@pytest.mark.parametrize(("architecture", "arguments"), [("test_resnet", {}), ("test_vit", VIT)])
def test_magnitude_pruning_zeroes_the_smallest_weights_and_leaves_the_classifier(
    architecture: str, arguments: dict[str, Any]
) -> None:
    module = _network(architecture, arguments)
    pruned = prune(module, 0.5, "magnitude", SIZE_PX)
    head = module.get_classifier()
    layers = {n: part for n, part in weighty_layers(module).items() if part is not head}
    weights = torch.cat([part.weight.detach().flatten() for part in layers.values()])
    after = {name: weighty_layers(pruned.module)[name].weight.detach() for name in layers}
    left = torch.cat([weight.flatten() for weight in after.values()])
    assert float((left == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(weights[left == 0].abs().max()) <= float(weights[left != 0].abs().min())
    assert torch.equal(weights[left != 0], left[left != 0])
    assert torch.equal(pruned.module.get_classifier().weight, head.weight)
    assert {entry["layer"]: entry["zeros"] for entry in pruned.removed} == pytest.approx(
        {name: float((weight == 0).float().mean()) for name, weight in after.items()}
    )
    assert pruned.parameters_before - pruned.parameters_after == int((left == 0).sum())


def test_magnitude_pruning_saves_space_where_the_file_is_compressed(tmp_path: Path) -> None:
    sizes = []
    module = _network()
    for name, network in (
        ("whole", module),
        ("pruned", prune(module, 0.6, "magnitude", 64).module),
    ):
        export_onnx(network, "test_resnet", SIZE_PX, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        sizes.append((len(content), len(gzip.compress(content))))
    assert sizes[1][0] == pytest.approx(sizes[0][0], rel=0.01)
    assert sizes[1][1] < 0.6 * sizes[0][1]


def test_an_architecture_that_cannot_lose_channels_is_offered_the_other_method() -> None:
    with pytest.raises(ModelError, match=r"VisionTransformer.*--prune-method magnitude"):
        prune(_network("test_vit", VIT), 0.5, "structured", SIZE_PX)


def test_amounts_that_mean_nothing_are_refused() -> None:
    for amount in (0.0, -0.1, 0.95, float("nan")):
        with pytest.raises(SettingError, match="above 0 and at most"):
            prune(_network(), amount, "magnitude", SIZE_PX)
    with pytest.raises(ModelError, match="Nothing was removed"):
        prune(_network(), 0.01, "structured", SIZE_PX)


def test_without_the_library_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(DependencyError, match=r"vizsla\[prune\]"):
        prune(_network(), 0.5, "structured", SIZE_PX)


class Trained:
    """What a recovery starts from: the network of a finished run, and what it was trained on."""

    def __init__(self, run: RunFolder) -> None:
        facts = run.facts()
        self.recipe = Recipe(**facts["recipe"])
        manifest = read_manifest(run.catalogue, exact=True)
        root = Path(facts["data"]["root"])
        self.catalogue = Catalogue(
            root, manifest.paths, manifest.labels, manifest.splits, manifest.classes
        )
        self.preprocessing = Preprocessing.from_dict(facts["model"]["preprocessing"])
        self.module = rebuild("test_resnet", facts["model"]["arguments"], 3)
        state = torch.load(run.bundle / "model.pth", weights_only=True)
        self.module.load_state_dict(state)

    def recover(self, module: nn.Module, tell: Any = None, **settings: Any) -> nn.Module:
        chosen = RecoverySettings(self.recipe, **{"epochs": 2, "workers": 0, **settings})
        return recover(
            module, self.catalogue, self.preprocessing, chosen, tell or (lambda _line: None)
        )


@pytest.fixture(scope="module")
def trained(finished_run: RunFolder) -> Trained:
    return Trained(finished_run)


# The drawn pictures are few; these learn in four short epochs.
_WELL: dict[str, Any] = {"lr": 5e-3, "epochs": 4, "batch_size": 8}


def test_recovery_lowers_the_loss_of_a_pruned_network_alike_each_time(trained: Trained) -> None:
    pruned = prune(trained.module, 0.5, "structured", SIZE_PX).module
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    lines: list[str] = []
    recovered = trained.recover(pruned, lines.append, seed=3, **_WELL)
    figures = [
        [float(words.split(",")[0]) for words in re.split("accuracy|loss", line)[1:]]
        for line in lines
    ]
    accuracies, losses = zip(*figures, strict=True)
    assert max(accuracies[1:]) > accuracies[0] + 0.2
    assert min(losses[1:]) < 0.9 * losses[0]
    again, other = (trained.recover(pruned, seed=seed, **_WELL) for seed in (3, 4))
    assert not recovered.training
    first, second = recovered.state_dict(), again.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.0.weight"], other.state_dict()["conv1.0.weight"])
    assert all(torch.equal(before[name], one) for name, one in pruned.state_dict().items())


def test_recovery_keeps_zeros_at_zero_and_trains_the_rest(trained: Trained) -> None:
    pruned = prune(trained.module, 0.7, "magnitude", SIZE_PX).module
    recovered = trained.recover(pruned, lr=2e-3)
    for name, layer in weighty_layers(pruned).items():
        zero = layer.weight == 0
        weight = weighty_layers(recovered)[name].weight
        assert bool((weight[zero] == 0).all())
        assert not torch.equal(weight[~zero], layer.weight[~zero])
    assert all(not layer.weight._backward_hooks for layer in weighty_layers(recovered).values())


def test_network_recovered_in_bf16_answers_and_exports_in_float32(
    trained: Trained, tmp_path: Path
) -> None:
    recipe = trained.recipe.replace(precision="bf16")
    pruned = prune(trained.module, 0.5, "structured", SIZE_PX).module
    settings = RecoverySettings(recipe, **{**_WELL, "epochs": 1, "workers": 0})
    recovered = recover(
        pruned, trained.catalogue, trained.preprocessing, settings, lambda _line: None
    )
    export_onnx(recovered, "test_resnet", SIZE_PX, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(["logits"], {"pixels": _pixels().numpy()})
    assert np.allclose(logits, _answers(recovered).numpy(), atol=1e-5)


def test_recovery_that_only_does_harm_is_not_kept(trained: Trained) -> None:
    lines: list[str] = []
    pruned = prune(trained.module, 0.01, "magnitude", SIZE_PX).module
    recovered = trained.recover(pruned, lines.append, lr=5.0, epochs=1)
    assert "brought nothing" in lines[-1]
    after = recovered.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in pruned.state_dict().items())


def test_recovery_stops_when_asked(trained: Trained) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("recovery, epoch 1"):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    pruned = prune(trained.module, 0.5, "magnitude", SIZE_PX).module
    with pytest.raises(Interrupted, match="nothing was exported"):
        trained.recover(pruned, interrupt, epochs=50)
    assert signal.getsignal(signal.SIGINT) == before
