"""What a client sends for a picture: the file as it is; where there is no file PNG, or JPEG where
that is too large."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vizsla.data.decode import read_bytes, to_rgb
from vizsla.errors import PictureError
from vizsla.words import size

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[Any]
Pictures = list[Picture] | tuple[Picture, ...]

LARGEST_FETCH_BYTES = 32 << 20
SMALL_BYTES = 1 << 20  # every server takes as much; nobody need be asked
_MOST_REDIRECTS = 5
# A proxy of the environment cannot reach this machine's own loopback.
_LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Outgoing:
    """A picture's bytes, their type, and what messages call it."""

    content: bytes
    content_type: str
    name: str


class Fetcher:
    """Fetches pictures from the web, without the server's token. Safe from several threads."""

    def __init__(self, httpx: ModuleType, timeout_s: float) -> None:
        self._httpx = httpx
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._http: Any = None

    def fetch(self, url: str) -> bytes:
        """The content at `url`. Raises `PictureError` where there is none, or too much of it."""
        with self._lock:
            if self._http is None:
                self._http = self._httpx.Client(
                    timeout=self._timeout_s,
                    follow_redirects=True,
                    max_redirects=_MOST_REDIRECTS,
                    mounts=dict.fromkeys(_LOOPBACK),  # straight, whatever proxy there is
                )
        try:
            with self._http.stream("GET", url) as answer:
                if answer.status_code != 200:
                    raise PictureError(
                        f"{url} cannot be fetched: {answer.status_code} {answer.reason_phrase}."
                    )
                content = bytearray()
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > LARGEST_FETCH_BYTES:
                        raise PictureError(
                            f"{url} is larger than {size(LARGEST_FETCH_BYTES)}; not fetched."
                        )
                return bytes(content)
        # UnicodeError is the system's, of a name that no machine can have.
        except (self._httpx.HTTPError, self._httpx.InvalidURL, UnicodeError) as error:
            why = str(error).rstrip(".") or type(error).__name__
            raise PictureError(f"{url} cannot be fetched: {why}.") from None

    def close(self) -> None:
        with self._lock:
            if self._http is not None:
                self._http.close()


def outgoing(
    picture: Picture, name: str, fetcher: Fetcher, most_bytes: Callable[[], int]
) -> Outgoing:
    """What to send for `picture`; `most_bytes` tells, where it matters, how much the server takes.
    Raises `PictureError` where it cannot be read, fetched or made a picture of; `TypeError` for
    what can be no picture at all."""
    if isinstance(picture, np.ndarray):
        picture = _image_of(picture, name)
    if isinstance(picture, Image.Image):
        return _encoded(picture, name, most_bytes)
    if isinstance(picture, bytes | bytearray | memoryview):
        content = bytes(picture)
    elif isinstance(picture, str) and _URL.match(picture):
        content = fetcher.fetch(picture)
    elif isinstance(picture, str | os.PathLike):
        content = read_bytes(Path(picture))
    else:
        raise TypeError(
            f"A picture is a path, a URL, bytes, a Pillow image or an array, and no "
            f"{type(picture).__name__}."
        )
    if not content:
        raise PictureError(f"{name} is empty.")
    return Outgoing(content, "application/octet-stream", name)


def called(picture: Picture, number: int = 1, count: int = 1) -> str:
    """What messages call a picture: its path or URL, else its place among `count`."""
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    return "The picture" if count == 1 else f"Picture {number} of {count}"


def path_of(picture: Picture) -> str | None:
    """The path or URL that a prediction carries."""
    return os.fspath(picture) if isinstance(picture, str | os.PathLike) else None


def _encoded(image: Image.Image, name: str, most_bytes: Callable[[], int]) -> Outgoing:
    try:
        image = to_rgb(image)
        # The quickest level: on a fast line the time of better ones is longer than what they save.
        content = _file(image, "PNG", compress_level=1)
    # An image that was opened from a file decodes only now, and Pillow raises whatever it likes.
    except Exception as error:
        raise PictureError(f"{name} cannot be decoded: {error}.") from None
    if len(content) <= SMALL_BYTES or len(content) <= most_bytes():
        return Outgoing(content, "image/png", name)
    try:
        return Outgoing(_file(image, "JPEG", quality=95, subsampling=0), "image/jpeg", name)
    except OSError:  # a side longer than a JPEG's can be: the server will say that it is too large
        return Outgoing(content, "image/png", name)


def _file(image: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _image_of(array: NDArray[Any], name: str) -> Image.Image:
    """The picture in an array, whose values are checked: a wrong range gives a wrong answer."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or not array.size:
        raise PictureError(
            f"{name} is an array of shape {array.shape}, but must be (height, width, 3), or "
            "(height, width) for grey. Give several as a list."
        )
    if array.dtype != np.uint8:
        array = _bytes_of(array, name)
    return Image.fromarray(np.ascontiguousarray(array))


def _bytes_of(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    kind = array.dtype.kind
    if kind not in "fiu":
        raise PictureError(
            f"{name} is an array of {array.dtype}, but must be of uint8, or of floats in 0 to 1."
        )
    low, high, most = float(array.min()), float(array.max()), 1 if kind == "f" else 255
    if not (low >= 0 and high <= most):  # so that NaN is refused, too
        raise PictureError(
            f"{name} is an array of {array.dtype} with values from {low:g} to {high:g}, but they "
            f"must lie in 0 to {most}."
        )
    scale = 255 if kind == "f" else 1
    result: NDArray[np.uint8] = np.rint(array.astype(np.float64) * scale).astype(np.uint8)
    return result
