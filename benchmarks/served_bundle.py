"""What the serving benchmark serves and what it asks: a bundle and JPEG bodies, made in seconds.

A ResNet-18 with random weights is as fast as a trained one. Its head is solved, not trained, so
that each picture that is asked about has a class of its own: an answer that was computed for
another picture of the batch is then seen to be wrong. It is quantised as `vizsla export` does,
calibrated on the same pictures.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.photographs import archive

_CLASSES, _PICTURES = 120, 32
_PIXELS, _BYTES = (500, 400), 40_000
_RIDGE = 1e-3  # of the head's least squares; with less of it, int8 would lose the answers


def make(folder: Path) -> tuple[Path, Path, str]:
    """Write `folder`/bundle, and `folder`/requests with NN-LABEL.jpg files; both, and what is on
    the pictures."""
    requests = folder / "requests"
    requests.mkdir(parents=True)
    try:
        pictures, what = _photographs(archive("pets5")), "photographs"
    except SystemExit:  # there are none beside the repository
        pictures, what = _drawn(), "drawn dogs"
    for number, image in enumerate(pictures):
        (requests / f"{number:02d}-{_label(number)}.jpg").write_bytes(_jpeg(image))
    _write_int8_bundle(folder / "bundle", requests)
    return folder / "bundle", requests, what


def _label(number: int) -> str:
    """Of the picture's class; classes between them stay without a picture."""
    return f"{1 + number * (_CLASSES // _PICTURES):03d}"


def _photographs(path: Path) -> Iterator[Image.Image]:
    with zipfile.ZipFile(path) as pictures:
        names = sorted(name for name in pictures.namelist() if name.endswith(".jpg"))
        for name in names[:: len(names) // _PICTURES][:_PICTURES]:
            with Image.open(io.BytesIO(pictures.read(name))) as image:
                yield ImageOps.fit(image.convert("RGB"), _PIXELS)


def _drawn() -> Iterator[Image.Image]:
    from vizsla.data.synthetic import breed_traits, draw_dog

    rng = np.random.default_rng(0)
    for number in range(_PICTURES):
        pixels = np.asarray(ImageOps.fit(draw_dog(breed_traits(number), rng, 500), _PIXELS))
        grain = rng.normal(0, 8, pixels.shape)  # without it, 40 KB could not be filled
        yield Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def _jpeg(image: Image.Image) -> bytes:
    """The picture in the quality that comes nearest to the wanted size."""

    def encoded(quality: int) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return file.getvalue()

    return min(map(encoded, range(20, 97, 2)), key=lambda data: abs(len(data) - _BYTES))


def _write_int8_bundle(bundle: Path, requests: Path) -> None:
    import torch

    import vizsla
    from vizsla.bundle.format import FACTS_FILE, ONNX_FILE, BundleFacts, describe_files
    from vizsla.bundle.predictor import load_bundle
    from vizsla.exporting.bundle_files import write_bundle
    from vizsla.exporting.quantize import Quantizer
    from vizsla.models.build import build_network
    from vizsla.records import ClassLabel
    from vizsla.settings import Recipe

    torch.manual_seed(0)
    recipe = Recipe(model="resnet18", weights="none", unfreeze="all", size_px=224)
    network = build_network(recipe, recipe, _CLASSES)
    for part in network.module.modules():
        # timm starts each block's last batch norm at zero. Folded into the convolution before it,
        # that makes all its weights zero, and the file a quarter smaller than a trained one.
        if isinstance(part, torch.nn.BatchNorm2d) and not part.weight.any():
            torch.nn.init.uniform_(part.weight, 0.05, 0.15)
    facts = BundleFacts(
        architecture=network.architecture,
        arguments=network.arguments,
        classes=tuple(ClassLabel.from_folder(f"{n + 1:03d}.Class_{n}") for n in range(_CLASSES)),
        preprocessing=network.preprocessing,
        recipe=recipe.model_dump(mode="json"),
        metrics={},
        data={},
        created=date.today().isoformat(),
        vizsla=vizsla.__version__,
    )
    facts = write_bundle(network.module, facts, bundle)
    predictor = load_bundle(bundle)
    files = sorted(requests.glob("*.jpg"))
    inputs = np.stack([predictor.prepare(file) for file in files])
    _solve_head(network.module, inputs, [int(file.stem.split("-")[1]) - 1 for file in files])
    facts = write_bundle(network.module, facts, bundle)
    (bundle / ONNX_FILE).write_bytes(Quantizer(bundle / ONNX_FILE, inputs).graph("minmax"))
    facts = replace(facts, files=describe_files(bundle))
    (bundle / FACTS_FILE).write_text(json.dumps(facts.to_dict()), encoding="utf-8")
    answers = [one.predicted_label for one in load_bundle(bundle).predict([*files], top_k=1)]
    if answers != [file.stem.split("-")[1] for file in files]:
        raise SystemExit("The int8 network does not tell the pictures apart; nothing to check by.")


def _solve_head(module: Any, inputs: np.ndarray, classes: list[int]) -> None:
    """Set the last layer so that each input's largest logit is its class's, far ahead."""
    import torch

    with torch.inference_mode():
        features = module.eval().forward_head(
            module.forward_features(torch.from_numpy(inputs)), pre_logits=True
        )
    rows = features.double().numpy()
    wanted = np.full((len(rows), _CLASSES), -5.0)
    wanted[np.arange(len(rows)), classes] = 5.0
    centred, offset = rows - rows.mean(0), wanted.mean(0)
    kernel = centred @ centred.T + _RIDGE * np.eye(len(rows))
    weight = centred.T @ np.linalg.solve(kernel, wanted - offset)
    head = module.get_classifier()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight.T.copy()))
        head.bias.copy_(torch.from_numpy(offset - rows.mean(0) @ weight))
