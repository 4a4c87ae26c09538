"""The drawn data set is what it says it is: same bytes, same layout, exactly the planted faults."""

import re
import tempfile
from collections import Counter
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vizsla.data import synthetic
from vizsla.data.synthetic import (
    BREEDS_MAX,
    TRAITS,
    Breed,
    Faults,
    breed_traits,
    draw_dataset,
    draw_dog,
)
from vizsla.errors import DataError, SettingError, StorageError

WAFFLE = breed_traits(0)


def contents(folder):
    """Every file below a folder: relative path -> bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def counts(folder, split):
    """Pictures by class folder of a split."""
    return Counter(path.parent.name for path in (folder / split).rglob("*.jpg"))


def traits(breed):
    return tuple(getattr(breed, trait) for trait in TRAITS)


def pixels(index, picture=0, size_px=32):
    dog = draw_dog(breed_traits(index), np.random.default_rng([picture, index]), size_px)
    return np.asarray(dog, np.float64)


# -- Layout ------------------------------------------------------------------------------------


def test_splits_hold_70_15_15_percent_of_every_breed(tmp_path):
    drawn = draw_dataset(tmp_path, breeds=3, pictures_per_breed=20, size_px=16)
    assert drawn.folder == tmp_path
    assert drawn.classes == ("001.Waffle_Shepherd", "002.Bramble_Sheepdog", "003.Pudding_Doodle")
    for split, count in (("train", 14), ("valid", 3), ("test", 3)):
        assert counts(tmp_path, split) == dict.fromkeys(drawn.classes, count)


def test_files_are_named_after_class_and_number(tmp_path):
    draw_dataset(tmp_path, breeds=2, pictures_per_breed=3, size_px=16)
    assert list(contents(tmp_path)) == [
        "test/001.Waffle_Shepherd/Waffle_Shepherd_00003.jpg",
        "test/002.Bramble_Sheepdog/Bramble_Sheepdog_00003.jpg",
        "train/001.Waffle_Shepherd/Waffle_Shepherd_00001.jpg",
        "train/002.Bramble_Sheepdog/Bramble_Sheepdog_00001.jpg",
        "valid/001.Waffle_Shepherd/Waffle_Shepherd_00002.jpg",
        "valid/002.Bramble_Sheepdog/Bramble_Sheepdog_00002.jpg",
    ]


def test_without_splits_classes_lie_at_the_top(tmp_path):
    drawn = draw_dataset(tmp_path, breeds=2, pictures_per_breed=4, size_px=16, splits=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == list(drawn.classes)
    assert counts(tmp_path, "") == dict.fromkeys(drawn.classes, 4)


def test_pictures_are_rgb_jpegs_of_the_asked_size(tmp_path):
    draw_dataset(tmp_path, breeds=2, pictures_per_breed=3, size_px=40)
    for path in tmp_path.rglob("*.jpg"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (40, 40))


@settings(max_examples=8, deadline=None)
@given(breeds=st.integers(2, 4), pictures=st.integers(3, 9), splits=st.booleans())
def test_every_breed_has_its_pictures_in_every_split(breeds, pictures, splits):
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_dataset(
            folder, breeds=breeds, pictures_per_breed=pictures, size_px=16, splits=splits
        )
        assert counts(Path(folder), "") == dict.fromkeys(drawn.classes, pictures)
        for split in ("train", "valid", "test") if splits else ():
            assert min(counts(Path(folder), split)[name] for name in drawn.classes) >= 1


# -- Repeatability -----------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes_and_record(tmp_path):
    faults = Faults(truncated=2, duplicates=2, wrong_labels=2, imbalance=2.0)
    drawn = [
        draw_dataset(tmp_path / name, breeds=3, pictures_per_breed=8, size_px=16, faults=faults)
        for name in ("one", "two")
    ]
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    one, two = ({**asdict(record), "folder": None} for record in drawn)
    assert one == two


def test_another_seed_gives_other_pictures(tmp_path):
    for seed in (0, 1):
        draw_dataset(tmp_path / str(seed), breeds=2, pictures_per_breed=3, size_px=16, seed=seed)
    zero, one = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert zero.keys() == one.keys()
    assert not set(zero.values()) & set(one.values())


def test_a_picture_does_not_depend_on_how_many_others_are_drawn(tmp_path):
    draw_dataset(tmp_path / "few", breeds=2, pictures_per_breed=4, size_px=16)
    draw_dataset(tmp_path / "many", breeds=4, pictures_per_breed=9, size_px=16, splits=False)
    many = {Path(path).name: content for path, content in contents(tmp_path / "many").items()}
    for path, content in contents(tmp_path / "few").items():
        assert many[Path(path).name] == content


def test_pictures_of_a_breed_all_differ(tmp_path):
    draw_dataset(tmp_path, breeds=2, pictures_per_breed=20, size_px=16)
    assert len(set(contents(tmp_path).values())) == 40


def test_drawing_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()
    draw_dog(WAFFLE, np.random.default_rng(0), 16)
    assert (np.random.get_state()[1] == before).all()


# -- Faults ------------------------------------------------------------------------------------


def draw_with(folder, faults, **arguments):
    arguments = {"breeds": 3, "pictures_per_breed": 10, "size_px": 16, **arguments}
    return draw_dataset(folder, faults=faults, **arguments)


def test_nothing_is_planted_unless_asked(tmp_path):
    drawn = draw_with(tmp_path, None)
    assert [*drawn.truncated, *drawn.duplicates, *drawn.wrong_labels] == []


@pytest.mark.parametrize("size_px", [16, 96])
def test_exactly_the_truncated_files_fail_to_decode(tmp_path, size_px):
    drawn = draw_with(tmp_path / "cut", Faults(truncated=5), size_px=size_px)
    draw_with(tmp_path / "whole", None, size_px=size_px)
    whole, broken = contents(tmp_path / "whole"), []
    for path, content in contents(tmp_path / "cut").items():
        try:
            with Image.open(tmp_path / "cut" / path) as picture:
                picture.load()
            assert content == whole[path]
        except OSError:
            broken.append(path)
            assert whole[path].startswith(content)
            assert 0.29 <= len(content) / len(whole[path]) <= 0.8
    assert sorted(drawn.truncated) == broken
    assert len(broken) == 5
    assert all(path.startswith("train/") for path in broken)


def test_exactly_the_reported_duplicates_are_byte_copies(tmp_path):
    drawn = draw_with(tmp_path, Faults(duplicates=8))
    files = contents(tmp_path)
    assert len(files) == 30 + 8
    assert len(set(files.values())) == 30
    assert len(set(drawn.duplicates.values())) == 8
    for copy, original in drawn.duplicates.items():
        assert files[copy] == files[original]
        assert original.startswith("train/")


def test_duplicates_take_turns_between_class_and_split(tmp_path):
    drawn = draw_with(tmp_path, Faults(duplicates=8))
    places = [
        (copy.split("/")[1] == original.split("/")[1], copy.split("/")[0])
        for copy, original in drawn.duplicates.items()
    ]
    assert places == [
        *[(True, "train"), (True, "test"), (False, "train"), (False, "test")],
        *[(True, "train"), (True, "valid"), (False, "train"), (False, "valid")],
    ]


def test_duplicates_without_splits_take_turns_between_classes(tmp_path):
    drawn = draw_with(tmp_path, Faults(duplicates=4), splits=False)
    same = [
        copy.split("/")[0] == original.split("/")[0] for copy, original in drawn.duplicates.items()
    ]
    assert same == [True, False, True, False]


def test_exactly_the_reported_labels_are_wrong(tmp_path, monkeypatch):
    grey = {breed_traits(index).name: 60 * index for index in range(3)}
    monkeypatch.setattr(
        synthetic,
        "draw_dog",
        lambda breed, rng, size_px: Image.new("RGB", (size_px, size_px), (grey[breed.name],) * 3),
    )
    drawn = draw_with(tmp_path, Faults(wrong_labels=6))
    wrong = {}
    for path in contents(tmp_path):
        shown = drawn.classes[round(np.asarray(Image.open(tmp_path / path)).mean() / 60)]
        if shown != path.split("/")[1]:
            wrong[path] = shown
    assert drawn.wrong_labels == wrong
    assert len(wrong) == 6
    assert all(path.startswith("train/") for path in wrong)


def test_wrong_labels_change_no_other_picture(tmp_path):
    draw_with(tmp_path / "clean", None)
    drawn = draw_with(tmp_path / "wrong", Faults(wrong_labels=6))
    clean, wrong = contents(tmp_path / "clean"), contents(tmp_path / "wrong")
    assert clean.keys() == wrong.keys()
    assert {path for path in clean if clean[path] != wrong[path]} == set(drawn.wrong_labels)


@settings(max_examples=8, deadline=None)
@given(
    truncated=st.integers(0, 2),
    duplicates=st.integers(0, 2),
    wrong_labels=st.integers(0, 2),
    splits=st.booleans(),
    seed=st.integers(0, 2**64),
)
def test_planted_counts_are_the_asked_ones_and_never_overlap(
    truncated, duplicates, wrong_labels, splits, seed
):
    faults = Faults(truncated=truncated, duplicates=duplicates, wrong_labels=wrong_labels)
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_with(folder, faults, breeds=2, pictures_per_breed=5, seed=seed, splits=splits)
        planted = [*drawn.truncated, *drawn.duplicates.values(), *drawn.wrong_labels]
        assert len(drawn.truncated) == truncated
        assert len(drawn.duplicates) == duplicates
        assert len(drawn.wrong_labels) == wrong_labels
        assert len(set(planted)) == len(planted)
        assert set(planted) | set(drawn.duplicates) <= set(contents(Path(folder)))


def test_every_training_picture_may_carry_a_fault(tmp_path):
    drawn = draw_with(tmp_path, Faults(truncated=6, duplicates=6, wrong_labels=6))
    assert len({*drawn.truncated, *drawn.duplicates.values(), *drawn.wrong_labels}) == 18


@pytest.mark.parametrize(
    ("splits", "pictures", "expected"), [(True, 22, [16, 8, 4]), (False, 20, [20, 10, 5])]
)
def test_imbalance_thins_training_classes_geometrically(tmp_path, splits, pictures, expected):
    arguments = {"pictures_per_breed": pictures, "splits": splits}
    drawn = draw_with(tmp_path / "thin", Faults(imbalance=4.0), **arguments)
    draw_with(tmp_path / "full", None, **arguments)
    thin, full = contents(tmp_path / "thin"), contents(tmp_path / "full")
    sizes = counts(tmp_path / "thin", "train" if splits else "")
    assert [sizes[name] for name in drawn.classes] == expected
    assert thin.items() < full.items()
    assert all(path.startswith("train/") for path in full.keys() - thin.keys()) == splits


def test_largest_imbalance_leaves_one_picture(tmp_path):
    drawn = draw_with(tmp_path, Faults(imbalance=6.0))
    assert [counts(tmp_path, "train")[name] for name in drawn.classes] == [6, 2, 1]


# -- Breeds ------------------------------------------------------------------------------------


def test_all_breeds_have_their_own_traits_and_name():
    breeds = [breed_traits(index) for index in range(BREEDS_MAX)]
    assert len({traits(breed) for breed in breeds}) == BREEDS_MAX
    assert len({breed.name.lower() for breed in breeds}) == BREEDS_MAX
    assert all(re.fullmatch(r"[A-Z][a-z]+(_[A-Z][a-z]+){1,2}", breed.name) for breed in breeds)


@settings(deadline=None)
@given(st.integers(0, BREEDS_MAX - 2))
def test_neighbouring_breeds_differ_in_their_five_leading_traits(index):
    one, two = breed_traits(index), breed_traits(index + 1)
    for trait in ("coat", "ears", "pattern", "colour", "accent"):
        assert getattr(one, trait) != getattr(two, trait)


def test_the_first_dozen_breeds_are_easily_told_apart():
    for one, two in combinations([traits(breed_traits(index)) for index in range(12)], 2):
        assert sum(mine != other for mine, other in zip(one, two, strict=True)) >= 4


@pytest.mark.parametrize("index", [-1, BREEDS_MAX])
def test_an_index_beyond_the_breeds_is_refused(index):
    with pytest.raises(SettingError, match=f"breed index is {index}; it must be 0 to 4619"):
        breed_traits(index)


def test_an_unknown_trait_is_refused():
    with pytest.raises(SettingError, match="ears is 'square'; choose one of pricked, floppy"):
        Breed(**{**asdict(WAFFLE), "ears": "square"})


@pytest.mark.parametrize("trait", TRAITS)
def test_every_choice_of_a_trait_can_be_seen(trait):
    drawn = {
        draw_dog(
            Breed(**{**asdict(breed_traits(7)), trait: choice}), np.random.default_rng(3), 64
        ).tobytes()
        for choice in TRAITS[trait]
    }
    assert len(drawn) == len(TRAITS[trait])


# -- Pictures ----------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, BREEDS_MAX - 1), st.integers(0, 2**32), st.integers(16, 128))
def test_any_breed_is_drawn_at_any_size_and_repeatably(index, seed, size_px):
    breed = breed_traits(index)
    one, two = (draw_dog(breed, np.random.default_rng(seed), size_px) for _ in range(2))
    assert (one.mode, one.size) == ("RGB", (size_px, size_px))
    assert one.tobytes() == two.tobytes()


def test_the_largest_size_is_drawn():
    assert draw_dog(WAFFLE, np.random.default_rng(0), 1024).size == (1024, 1024)


def test_breeds_can_be_learnt_but_not_from_their_mean_colour():
    train = [(pixels(index, picture), index) for index in range(3) for picture in range(40)]
    held_out = [(pixels(index, picture), index) for index in range(3) for picture in range(40, 60)]

    def accuracy(features):
        """Of a ridge regression onto the classes."""
        inputs = np.stack([features(image).ravel() / 255 for image, _ in train])
        targets = np.eye(3)[[label for _, label in train]]
        centre = inputs.mean(axis=0)
        gram = (inputs - centre) @ (inputs - centre).T + 3 * np.eye(len(inputs))
        weights = (inputs - centre).T @ np.linalg.solve(gram, targets - 1 / 3)
        scores = (
            np.stack([features(image).ravel() / 255 - centre for image, _ in held_out]) @ weights
        )
        return np.mean(scores.argmax(axis=1) == [label for _, label in held_out])

    assert accuracy(lambda image: image.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))) > 0.8
    assert accuracy(lambda image: image.mean(axis=(0, 1))) < 0.8


# -- Refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"breeds": 1}, "breeds is 1; it must be 2 to 4620"),
        ({"breeds": 4621}, "breeds is 4621; it must be 2 to 4620"),
        ({"pictures_per_breed": 2}, "pictures_per_breed is 2; it must be at least 3"),
        ({"size_px": 15}, "size_px is 15; it must be 16 to 1024"),
        ({"size_px": 1025}, "size_px is 1025; it must be 16 to 1024"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"faults": Faults(truncated=-1)}, "truncated is -1; it must be 0 to 12"),
        ({"faults": Faults(wrong_labels=13)}, "wrong_labels is 13; it must be 0 to 12"),
        (
            {"faults": Faults(truncated=6, duplicates=7)},
            "the sum of truncated, wrong_labels, duplicates is 13; it must be 0 to 12",
        ),
        ({"faults": Faults(imbalance=0.5)}, "imbalance is 0.5; it must be 1 to 6"),
        ({"faults": Faults(imbalance=7.0)}, "imbalance is 7.0; it must be 1 to 6"),
        ({"faults": Faults(imbalance=float("nan"))}, "imbalance is nan; it must be 1 to 6"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(
    tmp_path, arguments, message
):
    arguments = {"breeds": 2, "pictures_per_breed": 10, "size_px": 16, **arguments}
    with pytest.raises(SettingError, match=re.escape(message)):
        draw_dataset(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not an empty folder"):
        draw_dataset(tmp_path, breeds=2, pictures_per_breed=3)
    with pytest.raises(DataError, match="is not an empty folder"):
        draw_dataset(tmp_path / "notes.txt", breeds=2, pictures_per_breed=3)
    assert list(contents(tmp_path)) == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Cannot write pictures to"):
        draw_dataset(tmp_path / "file" / "new", breeds=2, pictures_per_breed=3, size_px=16)
