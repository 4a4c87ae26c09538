"""Biases that make up for what rounding the weights does to the mean of each channel.

Rounded weights shift a layer's outputs by (rounded - exact) times its inputs, and the mean of that
shift is known from the inputs' means on real pictures; taking it off the bias costs nothing at
inference. Where a layer has few weights a channel, as the depthwise layers of a MobileNet have, it
is most of what int8 loses. After Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", with the means measured instead of derived.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

_BATCH = 16
_STEPS = 127  # of an int8 weight to either side of zero


def corrected_biases(
    model: onnx.ModelProto, means: Mapping[str, NDArray[np.float64]]
) -> dict[str, onnx.TensorProto]:
    """For each node by name, the initializer to put in place of its bias where it is quantised.

    `means` gives the mean of each channel of a tensor. Nodes are left out whose weights or bias
    are computed or shared, and those without a bias.
    """
    given = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    found: dict[str, onnx.TensorProto] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        source, weight, bias = node.input[:3]
        if weight in given and bias in given and uses[bias] == 1 and source in means:
            shift = _shift(node, numpy_helper.to_array(given[weight]), means[source])
            exact = numpy_helper.to_array(given[bias])
            if shift is not None and shift.shape == exact.shape:
                fixed = (exact - shift).astype(exact.dtype)
                found[node.name] = numpy_helper.from_array(fixed, bias)
    return found


def corrected_module(module: nn.Module, inputs: NDArray[np.float32]) -> nn.Module:
    """A copy of `module` whose convolutions and linear layers have such biases, for a quantiser
    that takes a module; `inputs` (n, 3, size, size) are prepared pictures.

    A batch norm behind a layer scales whole output channels, weights and rounding alike, so that
    the bias in front of it is right after folding too.
    """
    corrected = copy.deepcopy(module).cpu().float().eval()
    layers = [one for one in corrected.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    sums: dict[nn.Module, torch.Tensor] = {}

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        pixels = given[0].double()
        if pixels.ndim == 4 and isinstance(layer, nn.Conv2d):
            pixels = pixels.mean(dim=(2, 3))
        means = pixels.reshape(-1, pixels.shape[-1]).mean(dim=0) * len(given[0])
        sums[layer] = sums.get(layer, torch.zeros(())) + means

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    with torch.inference_mode():
        for start in range(0, len(inputs), _BATCH):
            corrected(torch.from_numpy(inputs[start : start + _BATCH]))
    for hook in hooks:
        hook.remove()
    for layer in layers:
        if layer in sums:
            weight = layer.weight.detach().numpy()
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            shift = _grouped_shift(weight, (sums[layer] / len(inputs)).numpy(), groups)
            exact = 0.0 if layer.bias is None else layer.bias.detach().double().numpy()
            layer.bias = nn.Parameter(torch.from_numpy(exact - shift).to(layer.weight.dtype))
    return corrected


def _shift(
    node: onnx.NodeProto, weight: NDArray[np.float32], means: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The mean change of each output channel (out,) when the weights are rounded."""
    attributes = {one.name: one for one in node.attribute}
    if node.op_type == "Gemm":
        if "transB" not in attributes or not attributes["transB"].i:
            weight = weight.T
        return _rounding(weight) @ means if weight.shape[1] == len(means) else None
    groups = attributes["group"].i if "group" in attributes else 1
    return _grouped_shift(weight, means, groups) if weight.shape[1] * groups == len(means) else None


def _grouped_shift(
    weight: NDArray[np.float32], means: NDArray[np.float64], groups: int
) -> NDArray[np.float64]:
    """The mean change (out,) of weights (out, in of a group, …) on inputs of mean (in,)."""
    error = _rounding(weight)
    error = error.reshape(*error.shape[:2], -1).sum(axis=2)  # (out, in of its group)
    own = means.reshape(groups, -1).repeat(len(error) // groups, axis=0)
    shift: NDArray[np.float64] = (error * own).sum(axis=1)
    return shift


def _rounding(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """Rounded minus exact weights, with a scale for each output channel (the first axis)."""
    exact = weight.astype(np.float64)
    largest = np.abs(exact).reshape(len(exact), -1).max(axis=1)
    scale = np.where(largest > 0, largest / _STEPS, 1.0).reshape(-1, *[1] * (exact.ndim - 1))
    rounded: NDArray[np.float64] = np.round(exact / scale) * scale - exact
    return rounded
