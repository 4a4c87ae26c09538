"""Answers for a bundle inside a SageMaker hosting container, with the code beside this file."""

import json
from pathlib import Path
from typing import Any

from vizsla.bundle.predictor import Predictor, load_bundle

_PICTURES = ("image/", "application/x-image", "application/octet-stream")


def model_fn(model_dir: str, context: Any = None) -> Predictor:
    """The predictor of the bundle in `model_dir` (with a copy beside this file as the fallback)."""
    folder = Path(model_dir)
    return load_bundle(folder if (folder / "bundle.json").is_file() else Path(__file__).parents[1])


def input_fn(body: bytes, content_type: str, context: Any = None) -> bytes:
    """The picture's bytes. Raises ValueError for a content type that is no picture."""
    if not content_type.startswith(_PICTURES):
        raise ValueError(
            f"Unsupported content type {content_type!r}; send a picture as image/jpeg."
        )
    return bytes(body)


def predict_fn(data: bytes, model: Predictor, context: Any = None) -> dict[str, Any]:
    """The answer for one picture, as plain values."""
    return model.predict(data).to_dict()


def output_fn(
    prediction: dict[str, Any], accept: str = "application/json", context: Any = None
) -> str:
    """The answer as JSON."""
    return json.dumps(prediction)
