"""From bytes or a file to an RGB picture, whatever the file holds. Pillow and NumPy only.

Training, evaluation and serving decode here and nowhere else. Orientation is applied, colour
spaces become RGB, transparency lies on white, 16 bits become 8, an animation gives its first
frame. A picture that cannot be decoded raises `PictureError`; whether that is skipped, repaired
or fatal is the caller's policy.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH

from vizsla.errors import PictureError

# A 178-megapixel picture takes half a gigabyte in RGB; beyond it lies a decompression bomb.
LARGEST_PIXELS = 178_956_970

# Each scan of a JPEG goes over the whole picture: a small file with many keeps a core for hours.
_MOST_SCANS = 100
_SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

# Several times 100 MB each on their way to RGB: one at a time, whatever the number of threads.
_LARGE_PIXELS = 25_000_000
_one_large = threading.Lock()

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
    most_pixels: int = LARGEST_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """The picture as an RGB image, upright; messages call it `name`, else by its path.

    `at_least_px` lets a JPEG decode at a reduced scale whose shorter side is still that long:
    several times faster for photographs of many megapixels. With `repair`, a truncated file
    yields what could be read, the rest grey. `most_pixels` bounds width times height, and
    `formats` (Pillow's names) what kinds of file are read at all. Safe to call from several
    threads at once.

    Raises `PictureError` for anything that is not a picture, is broken, or is implausibly large.
    """
    called = name or _name(source)
    try:
        with _pillow_quiet, _open(source, called, most_pixels, formats) as image:
            return _decode_opened(image, at_least_px, repair)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(f"{called}: there is no such file.") from None
    except UnidentifiedImageError:
        raise PictureError(
            f"{called} is not a picture, or its header is broken.", "not_a_picture"
        ) from None
    except Image.DecompressionBombError:
        raise _bomb(called, most_pixels) from None
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


def _open(
    source: str | PathLike[str] | bytes,
    called: str,
    most_pixels: int,
    formats: tuple[str, ...] | None,
) -> Image.Image:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    image: Image.Image = Image.open(file, formats=formats)
    if max(image.width * image.height, _tile_pixels(image)) > most_pixels:
        image.close()
        raise _bomb(called, most_pixels)
    if isinstance(source, bytes) and _has_endless_scans(image, source):
        image.close()
        raise PictureError(f"{called} has more than {_MOST_SCANS} scans; no camera makes such.")
    return image


def _tile_pixels(image: Image.Image) -> int:
    """How many pixels a tile of a TIFF has, which is unpacked whole for the smallest picture."""
    if image.format != "TIFF":
        return 0
    sides = [getattr(image, "tag_v2", {}).get(tag) for tag in (TILEWIDTH, TILELENGTH)]
    width, height = (side if isinstance(side, int) else 0 for side in sides)
    return width * height


def _has_endless_scans(image: Image.Image, content: bytes) -> bool:
    # The bare count comes first, since it takes no time and nearly always settles the matter.
    if image.format not in ("JPEG", "MPO") or content.count(b"\xff\xda") <= _MOST_SCANS:
        return False
    return len(_SCAN.findall(content)) > _MOST_SCANS


def _decode_opened(image: Image.Image, at_least_px: int | None, repair: bool) -> Image.Image:
    if at_least_px is not None:
        image.draft("RGB", (at_least_px, at_least_px))
    with _one_large if image.width * image.height > _LARGE_PIXELS else nullcontext():
        if repair:
            with _truncation_tolerated():
                image.load()
        else:
            image.load()
        return to_rgb(image)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its metadata says, or itself; metadata that cannot be read says nothing."""
    orientation = None
    # Not ImageOps.exif_transpose: it writes all metadata anew, which fails on tags of an odd type.
    with suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as `decode` gives it: upright, in RGB, transparency on white, 8 bits."""
    given, image = image, _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image is given else image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits, or floats, scaled to 8 bits by the range they must have."""
    values = np.array(image, dtype=np.float64)  # eight times the picture's bytes: changed in place
    np.nan_to_num(values, copy=False)
    largest = float(values.max(initial=0.0))
    scale = 255.0 if largest <= 1.0 else 1.0 if largest <= 255.0 else 255.0 / 65535.0
    if image.mode.startswith("I;16") and largest > 1.0:
        scale = 255.0 / 65535.0
    values *= scale
    return Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8))


class _Quiet:
    """While any thread decodes, Pillow's warnings are ignored; the last to leave restores them.

    Pillow warns of odd metadata and of half-sized bombs; both are judged here instead. The
    filters are the process's own, and `warnings.catch_warnings` in each thread would put back
    what another thread had set.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._catching = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._catching = warnings.catch_warnings()
                self._catching.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._catching.__exit__(None, None, None)


_pillow_quiet = _Quiet()


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


def _bomb(called: str, most_pixels: int) -> PictureError:
    return PictureError(
        f"{called} has more than {most_pixels:,} pixels; refused, since a small file "
        "can unpack to fill the memory. Make it smaller first.",
        "picture_too_large",
    )
