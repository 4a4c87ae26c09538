"""Preprocessing: an RGB picture to the network's input, in Pillow and NumPy alone.

The record here is written into every bundle, and the same two functions prepare the pictures of
validation, of a bundle's answers and of the server. Geometry stays in bytes (`fit`), arithmetic
gives floats (`normalise`); a training moves the cheap bytes between processes and does the
arithmetic on the device. Random variation of training pictures is `augment.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_CROPS = ("center", "squash", "pad")
_LARGEST_SIDE_PX = 8192
_PAD_COLOUR = (128, 128, 128)


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input of shape (3, size_px, size_px), float32.

    `crop` is `center` (shorter side to `size_px / crop_pct`, middle square), `squash` (both
    sides to `size_px`) or `pad` (longer side to `size_px`, the rest grey). `mean` and `std` are
    of values scaled to 0..1, in RGB order.
    """

    size_px: int = 224
    crop: str = "center"
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Preprocessing:
        """From what `to_dict` gave. Raises `ValueError`, `TypeError` or `KeyError` for anything
        that no picture could be prepared by."""
        made = cls(**{**facts, "mean": tuple(facts["mean"]), "std": tuple(facts["std"])})
        if type(made.size_px) is not int or not 1 <= made.size_px <= _LARGEST_SIDE_PX:
            raise ValueError(f"its size_px is {made.size_px!r}")
        if made.crop not in _CROPS or made.interpolation not in _FILTERS:
            raise ValueError(f"its crop is {made.crop!r}, its interpolation {made.interpolation!r}")
        if not 0 < made.crop_pct <= 1:
            raise ValueError(f"its crop_pct is {made.crop_pct!r}")
        if not (len(made.mean) == len(made.std) == 3 and all(map(math.isfinite, made.mean))):
            raise ValueError(f"its mean is {made.mean!r}, its std {made.std!r}")
        if not all(math.isfinite(one) and one > 0 for one in made.std):
            raise ValueError(f"its std is {made.std!r}")
        return made

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @property
    def decode_px(self) -> int:
        """The shorter side below which decoding must not reduce a picture."""
        # Twice the target, so that the resize and not the JPEG's block scaling sets the quality.
        return 2 * math.ceil(self.size_px / self.crop_pct)

    @property
    def filter(self) -> Image.Resampling:
        return _FILTERS[self.interpolation]

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture brought to `size_px` by `size_px`."""
        if self.crop == "squash":
            return image.resize((self.size_px, self.size_px), self.filter)
        return self._pad(image) if self.crop == "pad" else self._center(image)

    def reduce(self, image: Image.Image) -> Image.Image:
        """The picture with its shorter side at most `decode_px`: enough for any crop of it."""
        scale = self.decode_px / min(image.size)
        if scale >= 1:
            return image
        width, height = (max(1, round(side * scale)) for side in image.size)
        return image.resize((width, height), self.filter)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Bytes (…, height, width, 3) to floats (…, 3, height, width)."""
        scale, shift = (one[:, None, None] for one in self.scale_and_shift())
        # The bytes are moved, not the floats, which are four times as many.
        planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3))
        values: NDArray[np.float32] = np.multiply(planes, scale, dtype=np.float32)
        values -= shift
        return values

    def scale_and_shift(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Per channel, the factors of `normalise`: bytes * scale - shift."""
        std = np.asarray(self.std, np.float32)
        scale = (1 / (np.float32(255) * std)).astype(np.float32)
        return scale, (np.asarray(self.mean, np.float32) / std).astype(np.float32)

    def _center(self, image: Image.Image) -> Image.Image:
        # Only the part that survives the crop is resized: the same values, a quarter less work.
        side = round(self.size_px / self.crop_pct)
        width, height = image.size
        scale = min(width, height) / side
        span = self.size_px * scale
        left, top = (width - span) / 2, (height - span) / 2
        box = (max(left, 0), max(top, 0), min(left + span, width), min(top + span, height))
        return image.resize((self.size_px, self.size_px), self.filter, box=box)

    def _pad(self, image: Image.Image) -> Image.Image:
        scale = self.size_px / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        ground = Image.new("RGB", (self.size_px, self.size_px), _PAD_COLOUR)
        corner = ((self.size_px - width) // 2, (self.size_px - height) // 2)
        ground.paste(image.resize((width, height), self.filter), corner)
        return ground
