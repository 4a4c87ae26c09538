"""A network as an ONNX graph with its weights inside.

torch has two exporters. The older follows one call through a network in eval mode, takes a second
where the newer takes ten, and folds batch norms into convolutions by itself; but it fails on a few
networks, and where a network decides by its values it may be wrong without a word. So whoever
uses its graph compares the answers with the network's first, and falls back on something else.
"""

from __future__ import annotations

import io
import warnings

import torch
from torch import nn

OPSET = 18


def quick_graph(module: nn.Module, example: torch.Tensor, output: str) -> bytes:
    """The graph of `module` in eval mode by the older exporter: input `pixels` like `example`, of
    any batch size, and `output`. Raises whatever the exporter does where it fails."""
    graph = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (example,),
            graph,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=[output],
            dynamic_axes={"pixels": {0: "batch"}, output: {0: "batch"}},
        )
    return graph.getvalue()
