"""A trained network as a TFLite file, for phones and small boards, by litert-torch.

The file takes pixels in the order in which a phone's camera and its kernels have them: (1, s, s,
3), channels last. Written in channels first, each file would begin with a transposition. One
picture at a time: many delegates take nothing else. Int8 is whole: weights per channel,
activations, input and output.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vizsla import extras
from vizsla.data.cores import available_cores
from vizsla.errors import DependencyError, WorkError
from vizsla.runs.files import write_whole

Answerer = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_PURPOSE = "Export to TFLite"
_SIGNATURE = "serving_default"
_LOUD = ("torch.utils._pytree", "torchao", "litert_torch", "jax", "absl")


def write_tflite(
    module: nn.Module, size_px: int, path: Path, calibration: NDArray[np.float32] | None = None
) -> tuple[str, ...]:
    """Write `module` to `path` and return notes on how the file is used, as sentences.

    The input is (1, size_px, size_px, 3), normalised as in training; the output (1, classes) are
    logits. Both are float32, or, with `calibration`, int8: a value is `(number - zero_point) *
    scale`, with both constants in the file. `calibration` (n, 3, size_px, size_px) float32 are
    normalised training or validation pictures, from which the ranges of activations are read; a
    hundred are enough.

    Raises `DependencyError` where litert-torch or a part of it is missing, `WorkError` where the
    network does not convert, `StorageError`.
    """
    with _quiet():
        litert = extras.require("litert_torch", "tflite", _PURPOSE)
    module = copy.deepcopy(module).eval().cpu().float()
    example = torch.zeros(1, size_px, size_px, 3)
    try:
        with _quiet():
            litert.config.show_progress = False
            channels_last = litert.to_channel_last_io(module, args=[0]).eval()
            content = _bytes_of(litert.convert(channels_last, (example,)))
            if calibration is not None:
                content = _quantised(content, calibration)
    except DependencyError:
        raise
    # The converter and the quantiser raise their own errors, torch's, JAX's and the network's.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise WorkError(
            f"{type(module).__name__} could not be written as TFLite: {why}. Export it to onnx "
            "instead."
        ) from error
    write_whole(path, lambda file: file.write(content))
    return _notes(size_px, calibration)


def tflite_answerer(path: Path) -> Answerer:
    """What the file answers: pixels (n, 3, s, s) float32, normalised, to logits (n, classes)
    float32, a picture at a time; int8 in and out is translated. Not for several threads at once.

    Raises `DependencyError` where LiteRT is missing.
    """
    runtime = extras.require("ai_edge_litert.interpreter", "tflite", "Running a TFLite file")
    interpreter = runtime.Interpreter(str(path), num_threads=available_cores())
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def answer(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = []
        for picture in np.moveaxis(pixels, 1, -1):
            interpreter.set_tensor(taken["index"], _encoded(picture[None], taken))
            interpreter.invoke()
            rows.append(_decoded(interpreter.get_tensor(given["index"]), given))
        return np.concatenate(rows) if rows else np.zeros((0, given["shape"][-1]), np.float32)

    return answer


def _encoded(values: NDArray[np.float32], tensor: dict[str, Any]) -> NDArray[Any]:
    """Float values as the tensor holds them."""
    if tensor["dtype"] == np.float32:
        return np.ascontiguousarray(values)
    scale, zero_point = tensor["quantization"]
    limits = np.iinfo(tensor["dtype"])
    numbers = np.round(values / scale) + zero_point
    return np.ascontiguousarray(np.clip(numbers, limits.min, limits.max).astype(tensor["dtype"]))


def _decoded(values: NDArray[Any], tensor: dict[str, Any]) -> NDArray[np.float32]:
    """The float values of what the tensor holds."""
    floats = values.astype(np.float32)
    if tensor["dtype"] == np.float32:
        return floats
    scale, zero_point = tensor["quantization"]
    return (floats - np.float32(zero_point)) * np.float32(scale)


def _bytes_of(model: Any) -> bytes:
    """The content of a converted model, which can only write itself to a path."""
    with tempfile.TemporaryDirectory(prefix="vizsla-tflite-") as folder:
        path = Path(folder) / "model.tflite"
        model.export(str(path))
        return path.read_bytes()


def _quantised(content: bytes, calibration: NDArray[np.float32]) -> bytes:
    """The int8 model of a float one: weights per output channel, activations per tensor."""
    calibrator, manager, quantizer, ranges, recipes = (
        extras.require(f"ai_edge_quantizer.{name}", "tflite", _PURPOSE)
        for name in ("calibrator", "recipe_manager", "quantizer", "utils.qsv_utils", "recipe")
    )
    recipe = recipes.static_wi8_ai8()
    chosen = manager.RecipeManager()
    chosen.load_quantization_recipe(recipe)
    # The quantiser's own door keeps a moving average of each picture's ends: it cuts off the
    # answers of every picture that is surer than the mean one.
    watched = calibrator.Calibrator(
        content, num_threads=available_cores(), qsv_update_func=ranges.min_max_update
    )
    samples = _Samples(_input_name(content), calibration)
    watched.calibrate({_SIGNATURE: samples}, chosen)
    work = quantizer.Quantizer(bytearray(content), recipe)
    return bytes(work.quantize(watched.get_model_qsvs()).quantized_model)


class _Samples:
    """Calibration pictures as the quantiser takes them: it goes over them several times."""

    def __init__(self, name: str, pixels: NDArray[np.float32]) -> None:
        self._name, self._pixels = name, np.moveaxis(pixels, 1, -1)

    def __len__(self) -> int:
        return len(self._pixels)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        for picture in self._pixels:
            yield {self._name: np.ascontiguousarray(picture)[None]}


def _input_name(content: bytes) -> str:
    runtime = extras.require("ai_edge_litert.interpreter", "tflite", _PURPOSE)
    signature = runtime.Interpreter(model_content=content).get_signature_list()[_SIGNATURE]
    name: str = signature["inputs"][0]
    return name


def _notes(size_px: int, calibration: NDArray[np.float32] | None) -> tuple[str, ...]:
    shape = f"(1, {size_px}, {size_px}, 3)"
    if calibration is None:
        return (f"The input is float32 {shape}, channels last and normalised; one picture a call.",)
    return (
        f"The input is int8 {shape}, channels last: normalised values divided by the input's "
        "scale, plus its zero point; the logits are int8 likewise. One picture a call.",
        f"Ranges of activations were read from {len(calibration)} pictures.",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' banners, tables and deprecations of one another are not the user's."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
