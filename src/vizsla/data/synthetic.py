"""A seeded data set of cartoon dogs, with faults planted where you ask for them.

Demonstrations, tests and benchmarks need pictures whose truth is known: which breed was drawn,
which label is wrong, which file is broken. These take milliseconds, need no download, and can be
learnt by a small network but not from one pixel; they say nothing about accuracy on photographs.
Finding the planted faults is the audit's task, not this module's.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vizsla.errors import DataError, SettingError, StorageError

Colour: TypeAlias = tuple[int, ...]  # red, green, blue
Outline: TypeAlias = NDArray[np.complex128]  # points x + iy: x to the right, y down

_COLOURS: dict[str, Colour] = {
    "honey": (228, 168, 76), "midnight": (62, 58, 76), "snow": (242, 240, 236),
    "cocoa": (124, 76, 50), "slate": (108, 130, 162), "fox": (212, 96, 44),
    "cream": (244, 218, 166), "silver": (168, 172, 180), "rosewood": (152, 60, 56),
    "sand": (198, 174, 136), "lilac": (182, 152, 186),
}  # fmt: skip
_ACCENTS: dict[str, Colour] = {
    "ivory": (254, 250, 236), "toffee": (190, 116, 54), "coal": (40, 38, 44),
    "peach": (250, 192, 126), "umber": (92, 58, 44), "ash": (132, 134, 142), "plum": (106, 70, 98),
}  # fmt: skip
_BUILDS = {  # the lengths of back and leg, the radii of chest, hip and skull
    "stocky": (0.62, 0.30, 0.31, 0.27, 0.34), "slim": (0.74, 0.58, 0.22, 0.16, 0.28),
    "long": (1.10, 0.20, 0.24, 0.22, 0.31),
}  # fmt: skip
_EARS = {  # bands around two circles: centres, then radii; the skull is the circle |z| = 1
    "pricked": (-0.4 - 0.6j, -0.45 - 1.6j, 0.4, 0.04), "floppy": (-0.5 - 0.6j, -1 + 0.4j, 0.2, 0.4),
    "button": (-0.5 - 0.8j, -0.05 - 0.5j, 0.3, 0.06), "long": (-0.5 - 0.4j, -0.7 + 1.3j, 0.2, 0.4),
}  # fmt: skip
_MUZZLES = {
    "short": (0.55 + 0.35j, 0.75 + 0.38j, 0.5, 0.44), "long": (0.5 + 0.25j, 1.6 + 0.42j, 0.5, 0.27),
    "bearded": (0.5 + 0.3j, 1.15 + 0.35j, 0.48, 0.4),
}  # fmt: skip
_TAILS = {  # the radii of root and tip, and the way from one to the other
    "curled": (0.09, 0.07, [0, -0.16 - 0.16j, -0.1 - 0.4j, 0.13 - 0.42j, 0.12 - 0.25j]),
    "plume": (0.08, 0.14, [0, -0.2 - 0.12j, -0.34 - 0.32j, -0.34 - 0.55j]),
    "whip": (0.06, 0.025, [0, -0.24 - 0.1j, -0.42 - 0.28j, -0.5 - 0.56j]),
    "stub": (0.1, 0.08, [0, -0.1 - 0.1j]),
}
TRAITS: dict[str, tuple[str, ...]] = {
    "coat": ("smooth", "shaggy", "curly"), "ears": tuple(_EARS), "colour": tuple(_COLOURS),
    "pattern": ("plain", "patched", "spotted", "saddle", "masked"), "accent": tuple(_ACCENTS),
    "build": tuple(_BUILDS), "muzzle": tuple(_MUZZLES), "tail": tuple(_TAILS),
}  # fmt: skip
BREEDS_MAX = 3 * 4 * 5 * 11 * 7  # coats, ears, patterns, colours, accents: no common divisor
_KINDS = (  # in step with coats and ears
    "Shepherd", "Sheepdog", "Doodle", "Hound", "Spitz", "Waterdog",
    "Mastiff", "Spaniel", "Corgi", "Pointer", "Terrier", "Poodle",
)  # fmt: skip
_PETS = (  # 23, which shares no divisor with 12 kinds
    "Waffle", "Bramble", "Pudding", "Thistle", "Biscuit", "Marmalade", "Pebble", "Noodle",
    "Velvet", "Button", "Muffin", "Clover", "Pepper", "Nutmeg", "Truffle", "Dumpling",
    "Hazel", "Maple", "Turnip", "Pickle", "Acorn", "Toffee", "Barley",
)  # fmt: skip


@dataclass(frozen=True)
class Breed:
    """What all dogs of a breed share. Raises `SettingError` for a trait that `TRAITS` lacks."""

    name: str
    coat: str
    ears: str
    pattern: str
    colour: str
    accent: str
    build: str
    muzzle: str
    tail: str

    def __post_init__(self) -> None:
        for trait, choices in TRAITS.items():
            if (value := getattr(self, trait)) not in choices:
                raise SettingError(f"{trait} is {value!r}; choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Faults:
    """What to plant in the training split; no picture carries two faults.

    `truncated` pictures are cut off at 30 to 80 % of their bytes, `wrong_labels` show one breed in
    the folder of another. `duplicates` are copied, byte for byte, to additional files: in turn to
    the same class, its test or valid split, another class, and that class's test or valid split.
    `imbalance` is the largest training class over the smallest, the rest in a geometric series.
    """

    truncated: int = 0
    duplicates: int = 0
    wrong_labels: int = 0
    imbalance: float = 1.0


@dataclass(frozen=True)
class DrawnDataset:
    """Where a drawn data set is, and what is wrong with it, as paths relative to `folder`."""

    folder: Path
    classes: tuple[str, ...]  # folder names
    truncated: tuple[str, ...]
    duplicates: dict[str, str]  # the original of each copy
    wrong_labels: dict[str, str]  # the class folder where each picture belongs


def draw_dataset(
    folder: str | Path,
    *,
    breeds: int = 6,
    pictures_per_breed: int = 40,
    size_px: int = 96,
    seed: int = 0,
    faults: Faults | None = None,
    splits: bool = True,
) -> DrawnDataset:
    """Draw dogs as JPEG files into a new or empty folder, and say what was planted where.

    With `splits`, files are `train/001.Name/Name_00001.jpg` and so on: 15 % of each breed, at
    least one picture, in valid and as many in test. Without, they are `001.Name/Name_00001.jpg`.
    `breeds` is 2 to 4620, `pictures_per_breed` at least 3, `size_px` (a picture's side) 16 to
    1024, `seed` at least 0; `faults=None` plants none. Equal arguments give equal bytes on one
    machine; a picture depends on seed, breed and number, not on how many others are drawn.
    Raises `SettingError` for a value out of range, `DataError` for a folder that already holds
    something, `StorageError` for one that cannot be written.
    """
    _check("breeds", breeds, 2, BREEDS_MAX)
    _check("pictures_per_breed", pictures_per_breed, 3)
    _check("seed", seed, 0)
    faults, folder = faults or Faults(), Path(folder)
    slots = _lay_out(breeds, pictures_per_breed, splits, faults.imbalance)
    kept, shown, originals = _plant(slots, breeds, seed, faults)
    classes = tuple(f"{label + 1:03d}.{breed_traits(label).name}" for label in range(breeds))
    paths = {slot: slot.path(classes[slot.label]) for slot in (*slots, *originals)}
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} is not an empty folder; name a new or an empty one.")
        for slot, path in paths.items():
            source = originals.get(slot, slot)
            rng = np.random.default_rng([seed, source.label, source.number, 0])
            dog = draw_dog(breed_traits(shown.get(source, source.label)), rng, size_px)
            dog.save(content := io.BytesIO(), "JPEG", quality=90)
            end = int(kept.get(slot, 1.0) * content.tell())
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content.getvalue()[:end])
    except OSError as error:
        raise StorageError(f"Cannot write pictures to {folder}: {error}.") from error
    return DrawnDataset(
        folder=folder,
        classes=classes,
        truncated=tuple(paths[slot] for slot in kept),
        duplicates={paths[copy]: paths[original] for copy, original in originals.items()},
        wrong_labels={paths[slot]: classes[label] for slot, label in shown.items()},
    )


def breed_traits(index: int) -> Breed:
    """The breed of an index from 0 to 4619 (else `SettingError`): the same one in every data set.

    Each has a name and a combination of traits of its own. Neighbours differ in coat, ears,
    pattern, colour and accent: a few breeds are easily told apart, many are a fine-grained task.
    """
    _check("breed index", index, 0, BREEDS_MAX - 1)
    place = {"build": index + index // 3, "muzzle": index // 2}
    chosen = {trait: names[place.get(trait, index) % len(names)] for trait, names in TRAITS.items()}
    name = f"{_PETS[index % 23]}_{_KINDS[index % 12]}"
    return Breed(f"{_PETS[index // 276]}_{name}" if index >= 276 else name, **chosen)


def draw_dog(breed: Breed, rng: np.random.Generator, size_px: int = 96) -> Image.Image:
    """One dog of that breed: an RGB picture of `size_px` by `size_px` pixels, 16 to 1024.

    The generator decides scene, light, place, posture, expression and where spots and patches
    lie. Raises `SettingError` for a size out of range.
    """
    _check("size_px", size_px, 16, 1024)
    image = _scene(rng, 2 * size_px)  # twice the size, then halved: smooth edges
    _Dog(image, breed, rng).paint()
    return _lit(image.reduce(2), rng)


def _check(name: str, value: float, lowest: float, highest: float = math.inf) -> None:
    if not lowest <= value <= highest:
        allowed = f"at least {lowest}" if highest == math.inf else f"{lowest} to {highest}"
        raise SettingError(f"{name} is {value}; it must be {allowed}.")


class _Slot(NamedTuple):
    """One file to write: its split ("" without splits), class, and number within the class."""

    split: str
    label: int
    number: int

    def path(self, folder: str) -> str:
        name = folder.partition(".")[2]
        return str(PurePosixPath(self.split, folder, f"{name}_{self.number:05d}.jpg"))


def _lay_out(breeds: int, pictures: int, splits: bool, imbalance: float) -> list[_Slot]:
    """The slots of every class; of the training pictures imbalance keeps the first."""
    held_out = max(1, round(0.15 * pictures)) if splits else 0
    train = pictures - 2 * held_out
    _check("imbalance", imbalance, 1, train)
    slots = []
    for label in range(breeds):
        kept = round(train * imbalance ** (-label / (breeds - 1)))
        slots += [_Slot("train" if splits else "", label, n + 1) for n in range(kept)]
        slots += [_Slot("valid", label, train + n + 1) for n in range(held_out)]
        slots += [_Slot("test", label, train + held_out + n + 1) for n in range(held_out)]
    return slots


def _plant(
    slots: list[_Slot], breeds: int, seed: int, faults: Faults
) -> tuple[dict[_Slot, float], dict[_Slot, int], dict[_Slot, _Slot]]:
    """The share of bytes kept, the breed shown, and the original copied, by slot."""
    train = [slot for slot in slots if slot.split in ("train", "")]
    counts = {name: getattr(faults, name) for name in ("truncated", "wrong_labels", "duplicates")}
    for name, count in {**counts, f"the sum of {', '.join(counts)}": sum(counts.values())}.items():
        _check(name, count, 0, len(train))
    rng = np.random.default_rng([seed, 0, 0, 1])  # the pictures' own end in 0
    faulty = [train[place] for place in rng.permutation(len(train))[: sum(counts.values())]]
    other = {slot: (slot.label + int(rng.integers(1, breeds))) % breeds for slot in faulty}
    kept = {slot: rng.uniform(0.3, 0.8) for slot in faulty[: faults.truncated]}
    copied = len(faulty) - faults.duplicates
    originals, free = {}, 1 + max(slot.number for slot in slots)
    for turn, slot in enumerate(faulty[copied:]):
        split = ("test", "valid")[turn // 4 % 2] if slot.split and turn % 2 else slot.split
        label = (slot.label, other[slot])[turn // (2 if slot.split else 1) % 2]
        originals[_Slot(split, label, free + turn)] = slot
    return kept, {slot: other[slot] for slot in faulty[faults.truncated : copied]}, originals


_CIRCLE: Outline = np.exp(2j * np.pi * np.arange(24) / 24)
_INK, _WHITE, _PINK = (44, 34, 40), (254, 254, 252), (236, 120, 130)
_SCENES = (  # the sky above and at the horizon, and the ground: meadow, beach, snow, dusk, a room
    ((140, 200, 244), (220, 240, 250), (128, 186, 92)),
    ((130, 206, 236), (206, 238, 244), (238, 216, 160)),
    ((172, 196, 222), (226, 234, 244), (240, 244, 250)),
    ((92, 80, 140), (250, 170, 130), (84, 104, 84)),
    ((232, 206, 196), (222, 192, 182), (176, 128, 92)),
)


def _scene(rng: np.random.Generator, side_px: int) -> Image.Image:
    tint = rng.uniform(0.88, 1.08, 3)
    colours = (np.asarray(_SCENES[rng.integers(len(_SCENES))]) * tint).clip(0, 255)
    ground, hill, pebble = (tuple(map(int, light * colours[2])) for light in (1, 0.72, 0.85))
    sky = np.linspace(colours[0], colours[1], side_px).astype(np.uint8)[:, None]
    image = Image.fromarray(sky).resize((side_px, side_px), Image.Resampling.NEAREST)
    draw, horizon = ImageDraw.Draw(image), rng.uniform(0.5, 0.75)
    for x, y, width in rng.uniform((0, horizon - 0.3, 0.2), (0.9, horizon, 0.5), (2, 3)) * side_px:
        draw.rounded_rectangle((x, y, x + width, side_px), 0.3 * width, hill)
    draw.rectangle((0, horizon * side_px, side_px, side_px), ground)
    for x, y, width in rng.uniform((0, horizon, 0.02), (1, 1, 0.08), (14, 3)) * side_px:
        draw.ellipse((x, y, x + width, y + width / 3), pebble)
    return image


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture or its mirror image under a lamp at one side, with a sensor's noise."""
    pixels = np.asarray(image, np.float32)[:, :: rng.choice((-1, 1))]
    lamp = rng.uniform(0.72, 1.12) * rng.uniform(0.94, 1.06, 3)
    lamp = lamp + np.linspace(-1, 1, image.width)[:, None] * rng.uniform(-0.15, 0.15)
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(2, 9))
    return Image.fromarray((pixels * lamp.astype(np.float32) + noise).clip(0, 255).astype(np.uint8))


class _Dog:
    """A dog on its way onto a picture: feet around 0, x to the right, y down, a face in skulls."""

    def __init__(self, image: Image.Image, breed: Breed, rng: np.random.Generator) -> None:
        self.draw, self.breed, self.rng = ImageDraw.Draw(image), breed, rng
        self.main, self.accent = _COLOURS[breed.colour], _ACCENTS[breed.accent]
        self.far = tuple(round(0.72 * level) for level in self.main)  # the side in the shade
        self.length, self.leg, self.chest_radius, self.hip_radius, skull = _BUILDS[breed.build]
        behind = self.length / 2 + self.hip_radius - min(np.real(_TAILS[breed.tail][2]))
        ahead = self.length / 2 + 0.2 + skull * (_MUZZLES[breed.muzzle][1].real + 0.4)
        self.unit_px = image.width * rng.uniform(0.7, 0.95) / max(behind + ahead, 1.8)
        spot = complex(rng.uniform(0.44, 0.56), rng.uniform(0.82, 0.94))
        self.feet_px = image.width * spot + self.unit_px * (behind - ahead) / 2
        self.hip, self.chest, self.hind_step, self.fore_step = self._posture()
        neck = (0.22 - 0.3j) * rng.uniform(0.9, 1.15) - 0.5j * skull - 0.4j * self.chest_radius
        self.head = self.chest + neck
        self.turn = skull * complex(np.exp(1j * rng.uniform(-0.28, 0.22)))

    def _posture(self) -> tuple[complex, complex, float, float]:
        """Hip, chest, and how far the feet are ahead of them: standing, playing or sitting."""
        stride, length = self.rng.uniform(-0.14, 0.14), self.length
        hip = -length / 2 - 1j * (self.leg + 0.6 * self.hip_radius)
        seat = complex(-0.3 * length, -self.hip_radius)
        return (
            (hip, hip + length - 0.03j, stride, -stride),
            (hip, complex(0.45 * length, -self.chest_radius), stride, 0.3),
            (seat, seat + 0.8 * length * np.exp(-0.9j), 0.25, stride / 2),
        )[self.rng.integers(3 if self.leg > 0.25 else 2)]

    def paint(self) -> None:
        """From the back to the front."""
        start, tip, *radii = _EARS[self.breed.ears]
        self._fill(self._face(start + 0.65, tip + 0.65, *radii), fill=self.far)
        for joint, step in ((self.hip, 0.22 - self.hind_step), (self.chest, 0.22 - self.fore_step)):
            self._fill(*self._limb(joint, step), fill=self.far)
        root, end, way = _TAILS[self.breed.tail]
        wag = np.asarray(way) * np.exp(1j * self.rng.uniform(-0.5, 0.35))
        points = self.hip - (0.75 + 0.5j) * self.hip_radius + wag
        widths = np.linspace(root, end, len(way))
        tail = [_band(*points[n : n + 2], *widths[n : n + 2]) for n in range(len(way) - 1)]
        self._fill(*tail, fill=self.main)
        self._fill(tail[-1], fill=self.accent, ink=0)
        self._paint_body()
        self._paint_head()
        dark_ears = self.breed.pattern in ("masked", "saddle")
        self._fill(self._face(start, tip, *radii), fill=self.accent if dark_ears else self.main)

    def _paint_body(self) -> None:
        """The trunk with its pattern; patches and spots lie elsewhere on every dog."""
        hip, chest, pattern = self.hip_radius, self.chest_radius, self.breed.pattern
        hind, hind_paw = self._limb(self.hip, self.hind_step)
        fore, fore_paw = self._limb(self.chest, self.fore_step)
        neck = _band(self.chest, self.head, 0.7 * chest, 0.6 * abs(self.turn))
        self._fill(_band(self.hip, self.chest, hip, chest), neck, hind, fore, fill=self.main)
        count, size = {"patched": (3, 0.16), "spotted": (20, 0.045)}.get(pattern, (0, 0.0))
        along = (np.arange(count) + self.rng.random(count)) / max(count, 1)
        across = (hip + (chest - hip) * along - 1.6 * size) * self.rng.uniform(-1, 1, count)
        centres = self.hip + (self.chest - self.hip) * along + 1j * across
        marks = [_band(at, at + size, size, 0.7 * size) for at in centres]
        if pattern == "saddle":
            marks = [_band(self.hip - 0.06j, self.chest - 0.07j, 0.7 * hip, 0.7 * chest)]
        self._fill(*marks, fill=self.accent, ink=0)
        self._fill(hind_paw, fore_paw, fill=self.accent)

    def _paint_head(self) -> None:
        """All but the ears, as if seen slightly from the front."""
        _, end, _, radius = _MUZZLES[self.breed.muzzle]
        muzzle, eye = self._face(*_MUZZLES[self.breed.muzzle]), 0.32 - 0.2j
        if self.rng.random() < 0.5:
            self._fill(self._face(0.75 + 0.6j, 0.78 + 1.05j, 0.17, 0.2), fill=_PINK)
        if self.breed.muzzle == "bearded":
            self._fill(self._face(0.55 + 0.65j, 0.95 + 0.85j, 0.35, 0.32), fill=self.accent)
        self._fill(self._face(0, 0.1j, 1, 0.95), muzzle, fill=self.main)
        marks = {"masked": [muzzle], "patched": [self._face(eye, eye + 0.1j, 0.46, 0.42)]}
        self._fill(*marks.get(self.breed.pattern, []), fill=self.accent, ink=0)
        smile = np.append(0.36 * _CIRCLE[1:10], 0.3 * _CIRCLE[9:1:-1]) + end + radius * (0.1 + 0.2j)
        self._fill(self.head + self.turn * smile, fill=_INK, ink=0)
        look = eye + 0.05 * np.exp(1j * self.rng.uniform(-1.5, 1.5))
        dots = [(end + (0.75 - 0.5j) * radius, 0.18, _INK), (eye, 0.26, _INK), (eye, 0.22, _WHITE)]
        for at, size, fill in (*dots, (look, 0.16, _INK), (look - 0.05 - 0.06j, 0.05, _WHITE)):
            self._fill(self._face(at, at, size, size), fill=fill, ink=0)

    def _face(self, a: complex, b: complex, a_radius: float, b_radius: float) -> Outline:
        return self.head + self.turn * _band(a, b, a_radius, b_radius)

    def _limb(self, joint: complex, step: float) -> tuple[Outline, Outline]:
        foot = complex(joint.real + step, -0.07)
        leg = _band(joint, foot, 0.55 * self.hip_radius, 0.075)
        return leg, _band(foot, foot + 0.09, 0.075, 0.06)

    def _fill(self, *shapes: Outline, fill: Colour, ink: float = 0.022) -> None:
        """Fill shapes as one silhouette; around it an edge of ink, furry as the coat, or none."""
        coat, width = self.breed.coat if ink else "smooth", round(2 * ink * self.unit_px)
        pixels = [_furry(shape, coat) * self.unit_px + self.feet_px for shape in shapes]
        outlines = [points.view(np.float64).tolist() for points in pixels]
        for points in outlines if width else []:
            self.draw.line(points + points[:4], fill=_INK, width=width)
        for points in outlines:
            self.draw.polygon(points, fill=fill)


def _band(a: complex, b: complex, a_radius: float, b_radius: float) -> Outline:
    """The outline of a rubber band around two circles."""
    around_b = ((b - a) * _CIRCLE.conj()).real + b_radius - a_radius > 0
    return np.where(around_b, b + b_radius * _CIRCLE, a + a_radius * _CIRCLE)


def _furry(outline: Outline, coat: str) -> Outline:
    """The outline as the coat makes it: as it is, in tufts, or in curls."""
    if coat == "smooth":
        return outline
    closed = np.concatenate((outline, outline[:1]))
    along = np.concatenate(([0], np.abs(closed[1:] - closed[:-1]).cumsum()))
    tufts, points = max(5, round(along[-1] / 0.11)), 2 if coat == "shaggy" else 4
    phase = np.arange(tufts * points + 1) / points
    even: Outline = np.interp(phase / tufts * along[-1], along, closed)
    tangent, height = even[1:] - even[:-1], np.abs(np.sin(np.pi * phase[:-1]))
    outward = -1j * tangent / (np.abs(tangent) + 1e-9)
    return even[:-1] + height * (0.045 * outward + 0.025j if coat == "shaggy" else 0.04 * outward)
