"""Answers for a bundle inside a SageMaker hosting container, with the code beside this file.

The four functions that SageMaker's inference toolkits call. They take the same bodies as vizsla's
own server, but for multipart forms, which no endpoint passes on: a picture's bytes, or JSON with
one picture or several in base64. Answers are JSON or CSV. A request that cannot be answered raises
`ValueError` with a sentence; inside the toolkit it also carries the HTTP status of a client's
mistake, so that it does not count as a failure of the model.
"""

import base64
import binascii
import contextlib
import csv
import importlib
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vizsla.bundle.predictor import Predictor, load_bundle
from vizsla.data.decode import decode
from vizsla.errors import PictureError

# The toolkit answers with the status that an error of its own carries, and with 500 to others.
_ToolkitError: Any = Exception
with contextlib.suppress(ImportError):  # outside a container there is none
    _ToolkitError = importlib.import_module("sagemaker_inference.errors").BaseInferenceToolkitError

_PICTURE_TYPES = (
    "image/jpeg", "image/jpg", "image/pjpeg", "image/png", "image/webp", "image/gif", "image/bmp",
    "image/x-bmp", "image/x-ms-bmp", "image/tiff", "application/x-image",
    "application/octet-stream",
)  # fmt: skip
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_MOST_PIXELS = 100_000_000
_MOST_PICTURES = 64
_MOST_IN_A_BATCH = 16
_ACCEPTED = ("application/json", "text/csv")


class Refused(ValueError, _ToolkitError):  # type: ignore[misc]
    """A request that cannot be answered: a sentence, and the HTTP status that it means."""

    def __init__(self, status_code: int, code: str, message: str) -> None:
        ValueError.__init__(self, message)
        self.status_code, self.code = status_code, code
        self.message = self.phrase = message

    def __str__(self) -> str:
        return str(self.message)


@dataclass(frozen=True)
class Request:
    """The pictures of one request; `many` where the answer is a list. What could not be read of
    one stands in its place."""

    pictures: Sequence[bytes | Refused]
    many: bool = False
    top_k: int = 5


def model_fn(model_dir: str, context: Any = None) -> Predictor:
    """The predictor of the bundle in `model_dir` (with a copy beside this file as the fallback)."""
    folder = Path(model_dir)
    if not (folder / "bundle.json").is_file():
        folder = Path(__file__).parents[1]
    return load_bundle(folder, threads=_threads())


def input_fn(body: bytes | str, content_type: str | None, context: Any = None) -> Request:
    """The pictures of a body: raw, or JSON as `{"image": …}`, `{"images": […]}` or
    `{"instances": […]}`, each with `"top_k"` where other than 5 classes are to be named.

    Raises `Refused`, a `ValueError`, for another content type or a body that is not what it says.
    """
    kind = (content_type or "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _of_json(body)
    if kind not in _PICTURE_TYPES:
        raise Refused(
            415,
            "unsupported_media_type",
            f"Unsupported content type {content_type!r}; send a picture as image/jpeg, or "
            "application/json with the picture in base64.",
        )
    if not body:
        raise Refused(400, "empty_body", "The body is empty; send a picture's bytes.")
    return Request([body.encode("latin-1") if isinstance(body, str) else bytes(body)])


def predict_fn(data: Request, model: Predictor, context: Any = None) -> dict[str, Any]:
    """The answer for one picture, or `{"predictions": […]}` for many, as plain values.

    Raises `Refused` where the one picture does not decode; among many, one that does not has its
    error in place of an answer.
    """
    started = time.perf_counter()
    answers = _answers(data, model)
    facts = {"model": model.folder.resolve().name}
    if data.many:
        told = [_error_of(answer) if isinstance(answer, Refused) else answer for answer in answers]
        answer: dict[str, Any] = {"predictions": told}
    else:
        (one,) = answers
        if isinstance(one, Refused):
            raise one
        answer = one
    return {**answer, **facts, "ms": round(1e3 * (time.perf_counter() - started), 2)}


def output_fn(
    prediction: dict[str, Any], accept: str | None = "application/json", context: Any = None
) -> str:
    """The answer as JSON, or as CSV: a line `label,class_name,confidence` for each picture, three
    empty fields and the error's code for one without an answer.

    Raises `Refused` where `accept` allows neither.
    """
    if _accepted(accept) == "application/json":
        return json.dumps(prediction)
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    for one in prediction.get("predictions", [prediction]):
        if "error" in one:
            writer.writerow(["", "", "", one["error"]["code"]])
        else:
            confidence = f"{one['confidence']:.6f}"
            writer.writerow([one["predicted_label"], one["class_name"], confidence])
    return lines.getvalue()


def _threads() -> int | None:
    """The threads of one answer: the toolkit's server starts a worker for each core unless it is
    told a number, and the workers share the cores. Outside a container all cores are taken."""
    if _ToolkitError is Exception:
        return None
    cores = os.cpu_count() or 1
    told = os.environ.get("SAGEMAKER_MODEL_SERVER_WORKERS", "").strip()
    if told.isdecimal() and int(told) > 0:
        return max(1, cores // int(told))
    several = os.environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"
    return cores if several else 1  # of several models each has one worker


def _of_json(body: bytes | str) -> Request:
    try:
        content = json.loads(body)
    except RecursionError:
        raise Refused(400, "bad_json", "The body is no JSON: it is nested too deep.") from None
    except ValueError as error:
        raise Refused(400, "bad_json", f"The body is no JSON: {str(error)[:200]}.") from None
    facts = content if isinstance(content, dict) else {"images": content}
    top_k = 5 if facts.get("top_k") is None else facts["top_k"]
    if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
        raise Refused(400, "bad_json", f"top_k is {top_k!r}, but must be a whole number from 1.")
    if "image" in facts:
        picture = _from_item(facts["image"])
        if isinstance(picture, Refused):
            raise picture
        return Request([picture], top_k=top_k)
    items = facts.get("images", facts.get("instances"))
    if not isinstance(items, list) or not items:
        raise Refused(
            400,
            "bad_json",
            'The JSON must be {"image": …} or {"images": […]} with pictures in base64.',
        )
    if len(items) > _MOST_PICTURES:
        raise Refused(
            413,
            "too_many_pictures",
            f"The request has {len(items)} pictures, and {_MOST_PICTURES} are the most at once.",
        )
    return Request([_from_item(item) for item in items], many=True, top_k=top_k)


def _from_item(item: Any) -> bytes | Refused:
    """The bytes of a base64 text, a `data:` URL or `{"b64": …}`, or why there are none."""
    text = item.get("b64") if isinstance(item, dict) else item
    if not isinstance(text, str):
        return Refused(400, "bad_json", 'A picture must be a base64 text or {"b64": "<base64>"}.')
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            return Refused(400, "bad_base64", "A data: URL must hold its picture in base64.")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return Refused(400, "bad_base64", f"A picture is not in base64: {error}.")
    return content or Refused(422, "not_a_picture", "A picture in the request is empty.")


def _answers(data: Request, model: Predictor) -> list[dict[str, Any] | Refused]:
    """Each picture's answer; a few at a time go through the network, so that memory is bounded."""
    answers: list[dict[str, Any] | Refused] = []
    for start in range(0, len(data.pictures), _MOST_IN_A_BATCH):
        inputs = [_input(one, model) for one in data.pictures[start : start + _MOST_IN_A_BATCH]]
        whole = [one for one in inputs if not isinstance(one, Refused)]
        rows = iter(model.probabilities(np.stack(whole)) if whole else ())
        answers += [
            one if isinstance(one, Refused) else model.ranked(next(rows), data.top_k).to_dict()
            for one in inputs
        ]
    return answers


def _input(picture: bytes | Refused, model: Predictor) -> Any:
    if isinstance(picture, Refused):
        return picture
    preprocessing = model.facts.preprocessing
    try:
        image = decode(
            picture,
            at_least_px=preprocessing.decode_px,
            most_pixels=_MOST_PIXELS,
            formats=_FORMATS,
        )
    except PictureError as error:
        return Refused(422, error.code, str(error))
    return preprocessing.normalise(np.asarray(preprocessing.fit(image)))


def _error_of(refused: Refused) -> dict[str, Any]:
    return {"error": {"code": refused.code, "message": str(refused)}}


def _accepted(accept: str | None) -> str:
    """The first of JSON and CSV that an Accept header names; JSON where it takes anything."""
    for entry in (accept or "*/*").split(","):
        kind = entry.partition(";")[0].strip().lower()
        if kind in _ACCEPTED:
            return kind
        if kind in ("*/*", "application/*"):
            return "application/json"
        if kind == "text/*":
            return "text/csv"
    raise Refused(
        406, "not_acceptable", f"Answers are {' or '.join(_ACCEPTED)}, and not {accept!r}."
    )
