"""Preprocessing is the textbook's, computed faster, and the same wherever it is computed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vizsla.data.transforms import Preprocessing
from vizsla.training.evaluation import InputMaker

GREY = 128


def noise(width: int, height: int) -> Image.Image:
    """Every pixel another value: the least forgiving picture for a resize."""
    generator = np.random.default_rng([width, height])
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def array(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image).astype(np.int16)


# -- Geometry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (64, 64), (32, 64), (128, 384)])
def test_center_is_resize_then_crop(interpolation: str, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size_px=28, crop_pct=0.875, interpolation=interpolation)
    image = noise(*size)
    scale = 32 / min(size)  # 28 / 0.875; the sizes are such that all borders fall on pixels
    whole = image.resize(
        (round(size[0] * scale), round(size[1] * scale)), Image.Resampling[interpolation.upper()]
    )
    left, top = (whole.width - 28) // 2, (whole.height - 28) // 2
    expected = whole.crop((left, top, left + 28, top + 28))
    assert np.abs(array(preprocessing.fit(image)) - array(expected)).max() <= 1


def test_center_looks_at_the_middle() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    fitted = Preprocessing(size_px=32, crop_pct=1.0, interpolation="nearest").fit(image)
    assert (array(fitted) == (0, 0, 255)).all()


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (16, 16)])
def test_squash_keeps_everything(size: tuple[int, int]) -> None:
    fitted = Preprocessing(size_px=24, crop="squash").fit(noise(*size))
    assert fitted.tobytes() == noise(*size).resize((24, 24), Image.Resampling.BILINEAR).tobytes()


@pytest.mark.parametrize(
    ("size", "box"),
    [((100, 50), (0, 8, 32, 24)), ((50, 100), (8, 0, 24, 32)), ((32, 32), (0, 0, 32, 32))],
)
def test_pad_centres_the_whole_picture_on_grey(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    fitted = Preprocessing(size_px=32, crop="pad").fit(Image.new("RGB", size, "red"))
    left, top, right, bottom = box
    pixels = array(fitted)
    assert (pixels[top:bottom, left:right] == (255, 0, 0)).all()
    pixels[top:bottom, left:right] = GREY
    assert (pixels == GREY).all()


@pytest.mark.parametrize("crop", ["center", "squash", "pad"])
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 2), (7, 2000), (31, 33)])
def test_the_oddest_pictures_fit(crop: str, size: tuple[int, int]) -> None:
    fitted = Preprocessing(size_px=32, crop=crop).fit(noise(*size))
    assert (fitted.mode, fitted.size) == ("RGB", (32, 32))


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size_px=st.integers(16, 64),
    crop=st.sampled_from(["center", "squash", "pad"]),
    crop_pct=st.floats(0.05, 1.0),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_any_picture_fits_and_one_colour_stays_it(
    width: int, height: int, size_px: int, crop: str, crop_pct: float, interpolation: str
) -> None:
    preprocessing = Preprocessing(size_px, crop, crop_pct, interpolation)
    fitted = preprocessing.fit(Image.new("RGB", (width, height), (GREY, GREY, GREY)))
    assert fitted.size == (size_px, size_px)
    assert (array(fitted) == GREY).all()


@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.95, 1.0])
def test_decoding_keeps_twice_the_pixels_that_are_needed(crop_pct: float) -> None:
    preprocessing = Preprocessing(size_px=224, crop_pct=crop_pct)
    assert preprocessing.decode_px >= 2 * math.floor(224 / crop_pct)


# -- Arithmetic --------------------------------------------------------------------------------


def pixels_of(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_normalise_is_scale_then_standardise() -> None:
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    pixels = pixels_of(5, 7)
    inputs = preprocessing.normalise(pixels)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1) / 255).double()
    for channel in range(3):
        expected[channel] = (expected[channel] - preprocessing.mean[channel]) / preprocessing.std[
            channel
        ]
    assert inputs.dtype == np.float32
    assert inputs.flags.c_contiguous
    np.testing.assert_allclose(inputs, expected.numpy(), atol=1e-5)


def test_a_batch_is_normalised_like_each_of_its_pictures() -> None:
    preprocessing, pixels = Preprocessing(), pixels_of(3, 4, 5)
    batch = preprocessing.normalise(pixels)
    assert batch.shape == (3, 3, 4, 5)
    for one, inputs in zip(pixels, batch, strict=True):
        assert (preprocessing.normalise(one) == inputs).all()


@settings(max_examples=30, deadline=None)
@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.05, 1)] * 3),
)
def test_training_makes_the_same_floats(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    preprocessing, pixels = Preprocessing(mean=mean, std=std), pixels_of(2, 6, 6)
    made = InputMaker(preprocessing, torch.device("cpu"))(torch.from_numpy(pixels))
    assert made.dtype == torch.float32
    assert made.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(made.numpy(), preprocessing.normalise(pixels), rtol=1e-6, atol=1e-6)


# -- The record --------------------------------------------------------------------------------


@given(
    st.builds(
        Preprocessing,
        size_px=st.integers(16, 2048),
        crop=st.sampled_from(["center", "squash", "pad"]),
        crop_pct=st.floats(0.01, 1),
        interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        mean=st.tuples(*[st.floats(0, 1)] * 3),
        std=st.tuples(*[st.floats(0.01, 1)] * 3),
    )
)
def test_the_record_survives_json(preprocessing: Preprocessing) -> None:
    text = json.dumps(preprocessing.to_dict())
    assert Preprocessing.from_dict(json.loads(text)) == preprocessing
