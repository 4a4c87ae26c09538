"""A network in int8: static, per channel, and only as far as its answers stay what they were.

Weights become int8 with a scale for each output channel, activations uint8 with ranges seen on
real pictures, and biases make up for what rounding the weights does (`bias.py`). The graph keeps
QuantizeLinear and DequantizeLinear nodes (QDQ), which ONNX Runtime and OpenVINO both fuse. A node
stays in float by being left out; `fallback.py` finds which have to. What is not quantised at all,
such as a softmax, is ONNX Runtime's choice.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from vizsla.errors import WorkError
from vizsla.exporting.bias import corrected_biases
from vizsla.exporting.calibration import METHODS, Activations, Method
from vizsla.exporting.fallback import Answers, Judged, Limits, Reference, least_float
from vizsla.exporting.onnx_files import OnnxAnswerer

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Quantized:
    """An int8 graph and how it came about: the kind of ranges, the layers left in float, and how
    it did on the calibration pictures."""

    graph: bytes
    method: Method
    float_layers: tuple[str, ...]
    layers: int
    judged: Judged


@dataclass(frozen=True)
class Layer:
    """A layer with weights or a product, and the nodes between it and the next one."""

    name: str
    nodes: tuple[str, ...]


class Quantizer:
    """Makes int8 graphs of one network. Looks at the calibration pictures once, when it is made."""

    def __init__(
        self,
        path: Path,
        inputs: NDArray[np.float32],
        progress: Callable[[int, int], None] = lambda done, all_of_them: None,
    ) -> None:
        """`path` is a float ONNX file, `inputs` are prepared pictures (n, 3, size, size).

        Raises `WorkError` where ONNX Runtime cannot prepare the network.
        """
        self._model = _prepared(path)
        self.layers = layers_of(self._model)
        self._activations = Activations(self._model, inputs, progress)
        self._biases = corrected_biases(self._model, self._activations.channel_means())

    def graph(self, method: Method, float_layers: Collection[str] = ()) -> bytes:
        """The int8 network as an ONNX file's bytes, with the named layers in float."""
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import (
            CalibrationMethod,
            TensorData,
            TensorsData,
        )
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

        ranges = {
            name: TensorData(lowest=np.asarray(low), highest=np.asarray(high))
            for name, (low, high) in self._activations.ranges(method).items()
        }
        left = [node for one in self.layers if one.name in float_layers for node in one.nodes]
        model = self._corrected(left)
        with _quiet():
            quantizer = QDQQuantizer(
                model,
                True,  # per channel
                False,  # the full 8 bits of a weight
                QuantType.QInt8,
                QuantType.QUInt8,  # int8 agrees as well, at 1.6 times the time of a MobileNetV2
                TensorsData(CalibrationMethod.MinMax, ranges),
                [],
                left,
                sorted({*QDQRegistry, *QLinearOpsRegistry}),
                {},
            )
            quantizer.quantize_model()
        quantized: onnx.ModelProto = quantizer.model.model
        for node in quantized.graph.node:
            node.doc_string = ""
        data: bytes = quantized.SerializeToString()
        return data

    def _corrected(self, left: Collection[str]) -> onnx.ModelProto:
        """The float network with the biases that its nodes need in int8, all but those `left`."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        biases = {one.name: one for node, one in self._biases.items() if node not in left}
        for tensor in model.graph.initializer:
            if tensor.name in biases:
                tensor.CopyFrom(biases[tensor.name])
        return model


def quantize(
    path: Path,
    inputs: NDArray[np.float32],
    labels: NDArray[np.integer],
    limits: Limits,
    progress: Callable[[str], None] = lambda message: None,
) -> Quantized:
    """The int8 network of the float ONNX file `path` that answers `inputs` most alike, with as few
    layers in float as keep it within the aim of `limits`.

    `inputs` (n, 3, size, size) are prepared pictures, `labels` (n,) their classes. Where no choice
    of layers meets the aim, the best attempt comes back: whether it may leave is judged on other
    pictures. Raises `WorkError` where ONNX Runtime cannot quantise the network, and
    `OSError` where there is no space for what it writes in between.
    """
    progress(f"calibrate on {len(inputs)} pictures")
    try:
        quantizer = Quantizer(path, inputs)
        reference = Reference.of(OnnxAnswerer(path), inputs, labels)

        def attempt(method: Method, left: tuple[str, ...], some: int | None = None) -> Judged:
            answers: Answers = OnnxAnswerer(quantizer.graph(method, left))
            return reference.judge(answers, some)

        plain = {method: attempt(method, ()) for method in METHODS}
        best = min(METHODS, key=lambda method: plain[method].badness)
        left: tuple[str, ...] = ()
        judged = plain[best]
        if not limits.aim().hold(judged):
            names = [layer.name for layer in quantizer.layers]
            progress(
                f"all {len(names)} layers in int8: {judged.in_words}; looking for those that hurt"
            )
            left, judged = least_float(
                names, lambda left, some: attempt(best, left, some), judged, limits
            )
        return Quantized(quantizer.graph(best, left), best, left, len(quantizer.layers), judged)
    except (WorkError, OSError):  # a full disk is no fault of the network
        raise
    # The quantiser raises ValueError, RuntimeError, its own and onnx's errors.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise WorkError(f"{path.name} could not be quantised: {why}") from error


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """The network's layers in the order of its graph; every node belongs to one."""
    groups: list[tuple[str, list[str]]] = []
    before: list[str] = []
    for node in model.graph.node:
        if node.op_type in _LAYERS:
            groups.append((_layer_name(node.name), [*before, node.name]))
            before = []
        elif groups:
            groups[-1][1].append(node.name)
        else:
            before.append(node.name)
    return [Layer(name, tuple(nodes)) for name, nodes in _told_apart(groups)]


def _layer_name(node: str) -> str:
    """A module's name as torch gives it, where the exporter left it in the node's.

    >>> _layer_name("/blocks/blocks.1/blocks.1.0/conv_pw/Conv"), _layer_name("node_conv2d_3")
    ('blocks.1.0.conv_pw', 'node_conv2d_3')
    """
    if not node.startswith("/"):
        return node
    name = last = ""
    for part in node.strip("/").split("/")[:-1]:
        if last and part.startswith(f"{last}."):  # a container's child repeats its name
            name = name[: len(name) - len(last)] + part
        else:
            name = f"{name}.{part}" if name else part
        last = part
    return name or node.strip("/")


def _told_apart(groups: list[tuple[str, list[str]]]) -> Iterator[tuple[str, list[str]]]:
    seen: dict[str, int] = {}
    for name, nodes in groups:
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), nodes


def _prepared(path: Path) -> onnx.ModelProto:
    """The network simplified by ONNX Runtime, with its tensors' types and a name for each node."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="vizsla-quantize-") as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger, which is not for its user's user."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
