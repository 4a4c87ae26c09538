"""From bytes or a file to an RGB picture, whatever the file holds. Pillow and NumPy only.

Training, evaluation and serving decode here and nowhere else. Orientation is applied, colour
spaces become RGB, transparency lies on white, 16 bits become 8, an animation gives its first
frame. A picture that cannot be decoded raises `PictureError`; whether that is skipped, repaired
or fatal is the caller's policy.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from vizsla.errors import PictureError

# A 178-megapixel picture takes half a gigabyte in RGB; beyond it lies a decompression bomb.
LARGEST_PIXELS = 178_956_970

_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa")
_TURNS = {  # by EXIF's orientation; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_truncation_lock = threading.Lock()


def decode(
    source: str | PathLike[str] | bytes,
    *,
    at_least_px: int | None = None,
    repair: bool = False,
    name: str | None = None,
) -> Image.Image:
    """The picture as an RGB image, upright; messages call it `name`, else by its path.

    `at_least_px` lets a JPEG decode at a reduced scale whose shorter side is still that long:
    several times faster for photographs of many megapixels. With `repair`, a truncated file
    yields what could be read, the rest grey.

    Raises `PictureError` for anything that is not a picture, is broken, or is implausibly large.
    """
    called = name or _name(source)
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and of half-sized bombs; both are judged here instead.
            warnings.simplefilter("ignore")
            with _open(source, called) as image:
                return _decode_opened(image, at_least_px, repair)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{called}: there is no such file.") from None
    except UnidentifiedImageError:
        raise PictureError(f"{called} is not a picture, or its header is broken.") from None
    except Image.DecompressionBombError:
        raise PictureError(_bomb(called)) from None
    # Pillow's readers let many kinds of error through on hostile bytes (struct, Syntax, Value,
    # Index, Overflow, zlib, Memory, …): each means that the picture cannot be decoded.
    except Exception as error:
        raise PictureError(f"{called} cannot be decoded: {error}.") from None


def read_bytes(path: Path) -> bytes:
    """A picture file's bytes. Raises `PictureError` where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PictureError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise PictureError(f"{path} cannot be read: {error.strerror or error}.") from None


def _open(source: str | PathLike[str] | bytes, called: str) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.width * image.height > LARGEST_PIXELS:
        image.close()
        raise PictureError(_bomb(called))
    return image


def _decode_opened(image: Image.Image, at_least_px: int | None, repair: bool) -> Image.Image:
    if at_least_px is not None:
        image.draft("RGB", (at_least_px, at_least_px))
    if repair:
        with _truncation_tolerated():
            image.load()
    else:
        image.load()
    return to_rgb(image)


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its metadata says; metadata that cannot be read says nothing."""
    orientation = None
    # Not ImageOps.exif_transpose: it writes all metadata anew, which fails on tags of an odd type.
    with suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image.copy() if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as `decode` gives it: upright, in RGB, transparency on white, 8 bits."""
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits, or floats, scaled to 8 bits by the range they must have."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64))
    largest = float(values.max(initial=0.0))
    scale = 255.0 if largest <= 1.0 else 1.0 if largest <= 255.0 else 255.0 / 65535.0
    if image.mode.startswith("I;16") and largest > 1.0:
        scale = 255.0 / 65535.0
    return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))


@contextmanager
def _truncation_tolerated() -> Iterator[None]:
    """Pillow's switch is global, so one repair at a time and the old value put back."""
    with _truncation_lock:
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _name(source: Any) -> str:
    return f"The picture ({len(source):,} bytes)" if isinstance(source, bytes) else str(source)


def _bomb(called: str) -> str:
    return (
        f"{called} has more than {LARGEST_PIXELS:,} pixels; refused, since a small file "
        "can unpack to fill the memory. Make it smaller first."
    )
