"""The pictures that were answered most surely and wrongly, as thumbnails within the page.

Such pictures tell most: a wrong label, a breed that two classes share, a picture of something
else. Each is a few kilobytes of JPEG inside the page, so that it is seen without the pictures.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from vizsla.data.decode import decode
from vizsla.errors import PictureError
from vizsla.records import PictureCard, Section
from vizsla.reports.classes import why_not_judged
from vizsla.reports.reading import SPLIT_WORDS, Reading, class_names, read_answers
from vizsla.words import counted, percent, shortened

_TITLE = "Most wrong pictures"
_MOST = 24
_SIDE_PX = 160
# Of all thumbnails together; one that does not fit its part is made smaller.
_BUDGET_BYTES = 250_000
_ATTEMPTS = ((_SIDE_PX, 75), (_SIDE_PX, 55), (128, 50), (96, 40))
_GONE = "This picture is gone, or cannot be decoded."


def section_of(reading: Reading) -> Section:
    """The thumbnails, or why there are none."""
    if reading.judged is None:
        return Section(_TITLE, why_not_judged(reading))
    split = reading.judged.split
    answers = read_answers(reading, split)
    if not answers:
        text = f"predictions-{split}.csv, which tells what was answered for each picture, is gone."
        return Section(_TITLE, text)
    wrong = sorted((one for one in answers if one[1] != one[2]), key=lambda one: -one[3])
    if not wrong:
        return Section(_TITLE, "None: every answer is right.")
    root = Path(str(reading.table("data").get("root", "")))
    pictures = _cards(wrong[:_MOST], root, class_names(reading))
    return Section(_TITLE, _told(len(wrong), split, pictures, root), pictures=pictures)


def thumbnail(path: Path) -> bytes:
    """The picture as a small JPEG. Raises `PictureError` where there is none."""
    # A scale at which the shorter side of a wide picture still has enough pixels.
    image = decode(path, at_least_px=_SIDE_PX * 3 // 4)
    for side_px, quality in _ATTEMPTS:
        small = image.copy()
        small.thumbnail((side_px, side_px), Image.Resampling.BICUBIC, reducing_gap=2.0)
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= _BUDGET_BYTES // _MOST * 3 // 4:  # as base64 it is a third longer
            break
    return file.getvalue()


def _cards(
    wrong: Sequence[tuple[str, str, str, float]], root: Path, names: dict[str, str]
) -> tuple[PictureCard, ...]:
    with ThreadPoolExecutor(4) as pool:  # decoding leaves Python's lock to the others
        sources = list(pool.map(lambda one: _source(root / one[0]), wrong))
    cards = []
    for source, (path, label, answer, confidence) in zip(sources, wrong):
        true, taken = names.get(label, label), names.get(answer, answer)
        cards.append(
            PictureCard(
                source,
                alt=f"Picture of {true}, taken for {taken}" if source else _GONE,
                text=f"{true}, taken for {taken} with {percent(confidence)}",
                note=shortened(path, 60),
            )
        )
    return tuple(cards)


def _source(path: Path) -> str | None:
    try:
        return f"data:image/jpeg;base64,{b64encode(thumbnail(path)).decode()}"
    except (PictureError, OSError, ValueError):  # a path may hold what no file system takes
        return None


def _told(mistakes: int, split: str, pictures: Sequence[PictureCard], root: Path) -> str:
    were = "was" if mistakes == 1 else "were"
    text = (
        f"{counted(mistakes, 'picture')} of the {SPLIT_WORDS[split]} split {were} answered wrongly"
    )
    if mistakes > len(pictures):
        text += f"; these {len(pictures)} most surely"
    text += ". Look for wrong labels, and for pictures that show several classes, or none."
    gone = sum(one.source is None for one in pictures)
    if gone:
        text += f" {counted(gone, 'picture')} of these could not be read from {root}."
    return text
