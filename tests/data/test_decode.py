"""Whatever a file holds becomes an upright RGB picture or a `PictureError`, never anything else."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from vizsla.data import decode as decode_module
from vizsla.data.decode import LARGEST_PIXELS, decode
from vizsla.data.synthetic import breed_traits, draw_dog
from vizsla.errors import PictureError


@cache
def dog(width: int = 48, height: int = 48) -> Image.Image:
    drawn = draw_dog(breed_traits(4), np.random.default_rng(0), 64)
    return drawn.resize((width, height), Image.Resampling.BILINEAR)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    image.save(content := io.BytesIO(), form, **options)
    return content.getvalue()


def array(image: Image.Image) -> NDArray[np.int16]:
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int16)


def difference(one: Image.Image, two: Image.Image) -> float:
    """Mean absolute difference in levels of 0 to 255."""
    assert one.size == two.size
    return float(np.abs(array(one) - array(two)).mean())


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A block of metadata from tags as (number, type, count, four bytes of value)."""
    tags = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + tags + b"\0\0\0\0"


def oriented(orientation: int) -> bytes:
    return exif((0x0112, 3, 1, struct.pack("<HH", orientation, 0)))


# -- Formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "options", "most"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}, 2),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 2),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("BMP", {}, 0),
        ("GIF", {}, 6),
    ],
)
def test_formats_from_bytes_and_from_a_file(
    tmp_path: Path, form: str, options: dict[str, object], most: float
) -> None:
    content = encoded(dog(), form, **options)
    assert difference(decode(content), dog()) <= most
    (tmp_path / "picture").write_bytes(content)  # the content decides, not the name
    assert difference(decode(tmp_path / "picture"), dog()) <= most
    assert decode(str(tmp_path / "picture")).tobytes() == decode(content).tobytes()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.n_frames == 3
    assert difference(decode(content), frames[0]) == 0


def test_cmyk_jpeg() -> None:
    content = encoded(dog().convert("CMYK"), "JPEG", quality=95, subsampling=0)
    assert difference(decode(content), dog()) < 3


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG"])
def test_greyscale(form: str) -> None:
    grey = dog().convert("L")
    options = {"quality": 95} if form == "JPEG" else {}
    assert difference(decode(encoded(grey, form, **options)), grey.convert("RGB")) < 2


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP"])
def test_one_bit(form: str) -> None:
    bits = dog().convert("1")
    assert set(np.unique(np.asarray(bits))) == {False, True}
    assert difference(decode(encoded(bits, form)), bits.convert("RGB")) == 0


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(form: str) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = array(decode(encoded(Image.fromarray(ramp), form)))
    assert np.abs(pixels[..., 0] - ramp / 257).max() <= 1
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_floats_are_scaled_by_their_range() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    ramp[0, 0] = np.nan
    pixels = array(decode(encoded(Image.fromarray(ramp), "TIFF")))
    assert np.abs(pixels[..., 0] - np.nan_to_num(ramp) * 255).max() <= 1


# -- Transparency ------------------------------------------------------------------------------


def half_transparent(mode: str) -> Image.Image:
    """Left: black and opaque. Right: black and invisible."""
    image = Image.new("LA" if mode == "LA" else "RGBA", (8, 4), 0)
    image.paste((0, 255) if mode == "LA" else (0, 0, 0, 255), (0, 0, 4, 4))
    if mode == "P":
        palette = Image.new("P", (8, 4), 0)
        palette.putpalette([0, 0, 0, 0, 0, 0])
        palette.paste(1, (4, 0, 8, 4))
        return palette
    return image


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGBA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("RGBA", "TIFF", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {"transparency": 1}),
        ("P", "PNG", {"transparency": b"\xff\x00"}),
        ("P", "GIF", {"transparency": 1}),
    ],
)
def test_transparency_lies_on_white(mode: str, form: str, options: dict[str, object]) -> None:
    pixels = array(decode(encoded(half_transparent(mode), form, **options)))
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 10), ("1", 0)])
def test_a_transparent_colour_is_white(mode: str, key: object) -> None:
    content = encoded(Image.new(mode, (4, 4), key), "PNG", transparency=key)
    assert (array(decode(content)) == 255).all()


def test_half_transparency_mixes_with_white() -> None:
    pixels = array(decode(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")))
    assert np.abs(pixels - 127).max() <= 1


# -- Orientation -------------------------------------------------------------------------------

STORED_AS = {  # how a camera that says so has turned the upright picture
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED_AS)
def test_pictures_come_out_upright(orientation: int, form: str) -> None:
    turn = STORED_AS[orientation]
    stored = dog(48, 32) if turn is None else dog(48, 32).transpose(turn)
    metadata = Image.Exif()
    metadata[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    if form == "WEBP":
        options = {"lossless": True}
    content = encoded(stored, form, exif=metadata.tobytes(), **options)
    assert difference(decode(content), dog(48, 32)) < 2


@pytest.mark.parametrize(
    "metadata",
    [
        b"Exif\0\0garbage!!",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        oriented(9),
        exif((0x0112, 2, 4, b"abcd")),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_metadata_costs_no_picture(form: str, metadata: bytes) -> None:
    assert decode(encoded(dog(48, 32), form, exif=metadata)).size == (48, 32)


@pytest.mark.parametrize(
    "odd",
    [(0x0100, 5, 1, b"\1\0\0\0"), (0x011B, 2, 4, b"\xff\xfe\xfd\0"), (0x0132, 12, 1, b"\0" * 4)],
)
def test_orientation_is_read_beside_tags_of_an_odd_type(odd: tuple[int, int, int, bytes]) -> None:
    both = exif((0x0112, 3, 1, b"\6\0\0\0"), odd)
    assert decode(encoded(dog(48, 32), "JPEG", exif=both)).size == (32, 48)


# -- Reduced decoding --------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 30, 64, 100, 400])
def test_a_reduced_jpeg_is_no_shorter_than_asked(least: int) -> None:
    content = encoded(dog(320, 256), "JPEG", quality=95)
    reduced = decode(content, at_least_px=least)
    assert min(reduced.size) >= min(least, 256)
    assert min(reduced.size) <= max(2 * least, 32)
    assert difference(reduced, dog(320, 256).resize(reduced.size, Image.Resampling.BOX)) < 4


def test_other_formats_are_not_reduced() -> None:
    assert decode(encoded(dog(), "PNG"), at_least_px=8).size == (48, 48)


# -- Broken pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "TIFF"])
def test_a_truncated_picture_is_an_error_and_can_be_repaired(form: str) -> None:
    whole = encoded(dog(64, 64), form)
    cut = whole[: int(len(whole) * 0.6)]
    with pytest.raises(PictureError, match=r"The picture \([\d,]+ bytes\)"):
        decode(cut)
    if form == "TIFF":
        return  # its directory lies at the end: nothing is left to repair
    repaired, right = array(decode(cut, repair=True)), array(decode(whole))
    assert repaired.shape == right.shape
    part = slice(44, None) if form == "BMP" else slice(None, 20)  # BMP is stored bottom up
    assert np.abs(repaired[part] - right[part]).mean() < 1


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("cut", [20, 900])
def test_repairing_puts_pillows_global_switch_back(
    monkeypatch: pytest.MonkeyPatch, before: bool, cut: int
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", before)
    try:
        decode(encoded(dog(), "JPEG")[:cut], repair=True)
    except PictureError:
        assert cut == 20
    assert before is ImageFile.LOAD_TRUNCATED_IMAGES


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("size", [(LARGEST_PIXELS + 1, 1), (50_000, 50_000)])
def test_a_bomb_is_refused_without_memory_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int | None,
    repair: bool,
    size: tuple[int, int],
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # a caller may have lifted Pillow's own
    monkeypatch.setattr(decode_module, "_decode_opened", None)  # and no pixel is touched
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    tracemalloc.start()
    with pytest.raises(PictureError, match="has more than 178,956,970 pixels; refused"):
        decode(tmp_path / "bomb.png", repair=repair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_large_picture_below_the_limit_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Image, "MAX_IMAGE_PIXELS", 1200
    )  # Pillow warns above it, raises above twice
    assert decode(encoded(dog(), "PNG")).size == (48, 48)


def test_a_missing_file() -> None:
    with pytest.raises(PictureError, match="no/such.jpg: there is no such file"):
        decode("no/such.jpg")


@pytest.mark.parametrize("content", [b"", b"Dear diary, no picture today.\n" * 20, b"\xff\xd8\xff"])
def test_a_file_that_only_pretends(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "diary.jpg").write_bytes(content)
    with pytest.raises(PictureError, match="diary.jpg is not a picture, or its header is broken"):
        decode(tmp_path / "diary.jpg")


def test_a_folder_called_like_a_picture(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="cannot be decoded"):
        decode(tmp_path)


# -- Anything at all ---------------------------------------------------------------------------


def assert_only_pictures_or_errors(content: bytes, repair: bool) -> None:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        image = decode(content, at_least_px=32, repair=repair)
    except PictureError:
        pass
    else:
        assert image.mode == "RGB"
        assert min(image.size) >= 1
        assert len(image.tobytes()) == 3 * image.width * image.height
    assert before is ImageFile.LOAD_TRUNCATED_IMAGES


MAGIC = [
    b"",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"RIFF\0\0\0\0WEBP",
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MAGIC), st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_picture_or_an_error(magic: bytes, rest: bytes, repair: bool) -> None:
    assert_only_pictures_or_errors(magic + rest, repair)


@cache
def intact(form: str) -> bytes:
    metadata = {"exif": oriented(6)} if form in ("JPEG", "PNG", "WEBP") else {}
    return encoded(dog(), form, **metadata)


@settings(max_examples=200, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]),
    # Headers are at the front: most changes go there.
    changes=st.lists(
        st.tuples(st.one_of(st.integers(0, 120), st.integers(0, 10_000)), st.integers(0, 255)),
        max_size=6,
    ),
    cut=st.floats(0, 1),
    repair=st.booleans(),
)
def test_a_spoilt_picture_is_a_picture_or_an_error(
    form: str, changes: list[tuple[int, int]], cut: float, repair: bool
) -> None:
    content = bytearray(intact(form))
    for place, value in changes:
        content[place % len(content)] = value
    # Half of all are left whole, so that the changes matter.
    assert_only_pictures_or_errors(bytes(content[: int(min(1.0, 2 * cut) * len(content))]), repair)
