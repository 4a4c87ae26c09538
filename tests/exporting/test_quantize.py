"""An int8 network answers as its original; layers that cannot stay in float, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from vizsla.errors import WorkError
from vizsla.exporting.bias import corrected_biases, corrected_module
from vizsla.exporting.calibration import METHODS, Activations
from vizsla.exporting.fallback import Judged, Limits, Reference, least_float
from vizsla.exporting.onnx_files import OnnxAnswerer
from vizsla.exporting.quantize import Quantizer, layers_of, quantize
from vizsla.models.onnx_graph import quick_graph

SIZE_PX = 16


class _Net(nn.Module):
    """Three layers and a head. With `bad`, the middle one carries an outlier channel so large that
    8-bit steps over it tell nothing else apart; the layer after it takes that channel off again."""

    def __init__(self, bad: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 16, 1)
        self.after = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        if bad:
            with torch.no_grad():
                self.middle.bias[0] = 20_000.0
                self.after.weight[:, 0] = 0.0
        with torch.no_grad():  # so that no class is the answer to everything
            self.head.bias -= self(torch.from_numpy(_pictures(64))).mean(dim=0) / 20

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.after(self.middle(self.first(pixels).relu()))
        return self.head(self.last(hidden.relu()).relu().mean(dim=(2, 3))) * 20


def _pictures(count: int, seed: int = 0) -> NDArray[np.float32]:
    blocks = np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)
    return blocks.repeat(SIZE_PX // 4, axis=2).repeat(SIZE_PX // 4, axis=3)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def made(module: nn.Module) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(quick_graph(module, torch.zeros(2, 3, SIZE_PX, SIZE_PX), "logits"))
        return path

    return made


def _first_answers(path: Path, pictures: NDArray[np.float32]) -> NDArray[np.int64]:
    answers: NDArray[np.int64] = OnnxAnswerer(path)(pictures).argmax(axis=1)
    return answers


def _types(graph: bytes) -> set[int]:
    return {one.data_type for one in onnx.load_from_string(graph).graph.initializer}


def test_int8_answers_as_the_original_in_any_batch(write: Callable[[nn.Module], Path]) -> None:
    path, pictures = write(_Net(bad=False)), _pictures(64)
    labels = _first_answers(path, pictures)
    result = quantize(path, pictures, labels, Limits.of(0.1))  # a toy: near ties abound
    assert result.float_layers == ()
    assert (result.layers, result.judged.pictures) == (5, 64)
    assert onnx.TensorProto.INT8 in _types(result.graph)
    fresh = _pictures(40, seed=7)
    for count in (1, 40):
        given = OnnxAnswerer(result.graph)(fresh[:count])
        expected = OnnxAnswerer(path)(fresh[:count])
        assert np.abs(given - expected).mean() < 0.1 * expected.std()
        assert (given != expected).any()  # or nothing was quantised
    assert (given.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.9
    assert len(result.graph) < 2 * path.stat().st_size  # a toy: scales weigh as much as weights


def test_layers_that_int8_ruins_stay_in_float_and_the_rest_does_not(
    write: Callable[[nn.Module], Path],
) -> None:
    path, pictures = write(_Net(bad=True)), _pictures(64)
    labels = _first_answers(path, pictures)
    assert len(set(labels.tolist())) > 1
    reference = Reference.of(OnnxAnswerer(path), pictures, labels)
    quantizer = Quantizer(path, pictures)
    told: list[str] = []
    for method in METHODS:
        ruined = reference.judge(OnnxAnswerer(quantizer.graph(method)))
        assert not Limits.of(0.01).hold(ruined)
    result = quantize(path, pictures, labels, Limits.of(0.01), told.append)
    assert "after" in result.float_layers  # it would read the outlier in 8 bits
    assert len(result.float_layers) < result.layers - 1
    assert Limits.of(0.01).hold(reference.judge(OnnxAnswerer(result.graph)))
    assert onnx.TensorProto.INT8 in _types(result.graph)
    assert any("looking for those that hurt" in line for line in told)


def test_bias_takes_off_what_rounding_the_weights_adds_to_the_mean(
    write: Callable[[nn.Module], Path],
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)).eval()
    path, pictures = write(module), _pictures(32)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    biases = corrected_biases(model, Activations(model, pictures).channel_means())
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    inputs = torch.from_numpy(pictures)
    for name, layer in zip(names, (module[0], module[2]), strict=True):
        exact = layer.weight.detach().clone()
        with torch.no_grad():
            before = layer(inputs).mean(dim=(0, 2, 3))
            scale = exact.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
            layer.weight.copy_((exact / scale).round() * scale)
            rounded = layer(inputs).mean(dim=(0, 2, 3))
            layer.bias.copy_(torch.from_numpy(numpy_helper.to_array(biases[name]).copy()))
            corrected = layer(inputs).mean(dim=(0, 2, 3))
            layer.weight.copy_(exact)
            layer.bias.copy_(layer.bias - corrected + before)
            assert (rounded - before).abs().max() > 2 * (corrected - before).abs().max()
            inputs = module[1](layer(inputs))


def test_module_gets_the_biases_that_its_onnx_file_gets(
    write: Callable[[nn.Module], Path],
) -> None:
    module = _Net(bad=False).eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pictures = _pictures(40)
    model = onnx.shape_inference.infer_shapes(onnx.load(str(write(module))))
    biases = corrected_biases(model, Activations(model, pictures).channel_means())
    corrected = corrected_module(module, pictures)
    assert len(biases) == 5
    for node in model.graph.node:
        if node.name in biases:
            name = node.name.strip("/").split("/")[0]
            expected = numpy_helper.to_array(biases[node.name])
            found = corrected.get_submodule(name).bias.detach().numpy()
            assert np.allclose(found, expected, atol=1e-6)
            assert not np.array_equal(found, before[f"{name}.bias"].numpy())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_ranges_are_what_was_seen() -> None:
    node = onnx.helper.make_node("Relu", ["pixels"], ["logits"], name="relu")
    value = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, 4, 4])
        for name in ("pixels", "logits")
    ]
    graph = onnx.helper.make_graph([node], "one", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 9
    inputs = np.random.default_rng(0).normal(size=(2000, 3, 4, 4)).astype(np.float32)
    inputs[0, 0, 0, 0] = 100.0
    found = {method: Activations(model, inputs).ranges(method) for method in METHODS}
    assert found["minmax"]["pixels"] == (inputs.min(), np.float32(100))
    assert found["minmax"]["logits"] == (0, 100)
    assert found["mse"]["logits"][1] < 99  # one value of 96,000 is not worth steps of that size
    assert 3 < found["percentile"]["logits"][1] < 10


def test_layers_are_named_as_torch_names_modules(write: Callable[[nn.Module], Path]) -> None:
    names = [layer.name for layer in layers_of(onnx.load(str(write(_Net(bad=False)))))]
    assert names == ["first", "middle", "after", "last", "head"]


def test_network_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(WorkError, match=r"model\.onnx could not be quantised"):
        quantize(tmp_path / "model.onnx", _pictures(2), np.zeros(2, int), Limits.of(0.01))


NAMES = [f"layer{number}" for number in range(40)]


def _attempt(guilty: set[str], tried: list[tuple[str, ...]]) -> Callable[..., Judged]:
    """A network of which each guilty layer in int8 costs a tenth of the answers."""

    def attempt(left: tuple[str, ...], some: int | None) -> Judged:
        tried.append(left)
        hurting = len(guilty - set(left))
        return Judged(1 - 0.1 * hurting, 0.1 * hurting, float(hurting), some or 256)

    return attempt


@pytest.mark.parametrize("guilty", [{"layer7"}, {"layer0", "layer39"}, {"layer3", "layer4"}])
def test_search_finds_the_guilty_layers_in_a_bounded_number_of_tries(guilty: set[str]) -> None:
    tried: list[tuple[str, ...]] = []
    attempt = _attempt(guilty, tried)
    left, judged = least_float(NAMES, attempt, attempt((), None), Limits.of(0.01))
    assert guilty <= set(left)
    assert len(left) <= 3 * len(guilty)
    assert judged.agreement == 1
    assert len(tried) <= 1 + 16 + 4 + 12


def test_search_that_finds_nothing_gives_the_best_that_it_saw() -> None:
    attempt = _attempt(set(NAMES[::2]), [])
    left, judged = least_float(NAMES, attempt, attempt((), None), Limits.of(0.01))
    assert judged.agreement < 1
    assert 0 < len(left) < len(NAMES)


def test_limits_are_of_accuracy_and_of_five_times_as_many_answers() -> None:
    limits = Limits.of(0.01)
    assert limits.hold(Judged(0.95, 0.01, 0, 100))
    assert not limits.hold(Judged(0.95, 0.011, 0, 100))
    assert not limits.hold(Judged(0.949, 0.0, 0, 100))
    assert Limits(0.01, None).hold(Judged(0.2, -0.1, 0, 100))
    assert Limits.of(0.5).disagreement == 1


def test_threads_of_a_network_rest_while_another_is_timed(
    write: Callable[[nn.Module], Path],
) -> None:
    session = OnnxAnswerer(write(_Net(bad=False)), threads=2)._session
    options = session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
