"""A search space says what it searches, and refuses what a setting does not take."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.errors import SettingError
from vizsla.settings import Settings, read_recipe, read_search
from vizsla.tuning.samplers import distribution, grid_size
from vizsla.tuning.space import Choices, Range, parse_search, read_space

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def space_of(*items: str) -> dict[str, Range | Choices]:
    return read_space(parse_search(items))


def test_ranges_and_choices_are_read_as_typed() -> None:
    space = space_of(
        "lr=1e-5..1e-2:log", "batch-size=16..64", "optimizer=adam,sgd", "nesterov=true,false",
        "patience=none,3", "label_smoothing=0..0.2:step=0.1",
    )  # fmt: skip
    assert space == {
        "lr": Range(1e-5, 1e-2, log=True),
        "batch_size": Range(16, 64, whole=True),
        "optimizer": Choices(("adam", "sgd")),
        "nesterov": Choices((True, False)),
        "patience": Choices((None, 3)),
        "label_smoothing": Range(0.0, 0.2, step=0.1),
    }


def test_a_recipes_lists_and_texts_mean_the_same() -> None:
    assert read_space({"batch_size": [16, 32], "lr": "1e-4..1e-2:log"}) == space_of(
        "batch_size=16,32", "lr=1e-4..1e-2:log"
    )
    assert read_space({"lr": Range(1e-4, 1e-2, log=True)}) == space_of("lr=1e-4..1e-2:log")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_brings_its_search(recipe: Path) -> None:
    space = read_space(read_search(recipe))
    assert {"lr", "batch_size"} <= set(space)
    assert read_recipe(recipe).model  # the search does not stand in the way of the settings


def test_a_written_space_is_read_back() -> None:
    space = space_of("lr=1.5e-05..0.01:log", "epochs=4..20:step=8", "mixup=0,0.2", "hflip=0..1")
    assert read_space({name: str(one) for name, one in space.items()}) == space


def test_the_last_step_ends_a_range() -> None:
    assert space_of("epochs=4..21:step=8")["epochs"] == Range(4, 20, step=8, whole=True)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("lrr=1..2", "Did you mean lr?"),
        ("lr=2..1", "must rise"),
        ("lr=0..1:log", "above 0"),
        ("lr=-1..1", "above 0"),
        ("lr=1..x", "'x' is no number"),
        ("lr=1..2:logg", "'logg' means nothing"),
        ("lr=nan..1", "lr is nan"),
        ("weight_decay=0..1:log", "must begin above 0"),
        ("batch_size=16..64:step=0.5", "whole"),
        ("batch_size=16..64:step=100", "within the range"),
        ("lr=1e-5..1e-2:log:step=1e-3", "not both"),
        ("batch_size=1.5..3", "batch_size is 1.5"),
        ("epochs=1..1e9", "at most 100000"),
        ("optimizer=adm", "'adam'"),
        ("nesterov=maybe", "nesterov is 'maybe'"),
        ("seed=1,2", "cannot be searched"),
        ("lr", "such as"),
        ("=3", "such as"),
        ("lr=", "such as"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(item: str, words: str) -> None:
    with pytest.raises(SettingError) as refused:
        space_of(item)
    assert words in str(refused.value)


def test_a_name_is_searched_once_and_something_must_be() -> None:
    with pytest.raises(SettingError, match="twice"):
        parse_search(["lr=1..2", "lr=2..3"])
    with pytest.raises(SettingError, match="Nothing to search"):
        read_space({})
    with pytest.raises(SettingError, match="over nothing"):
        read_space({"batch_size": []})


@given(st.text(max_size=30))
def test_any_text_is_a_search_or_a_sentence(text: str) -> None:
    with contextlib.suppress(SettingError):
        assert set(space_of(text)) <= set(Settings.model_fields)


@given(st.sampled_from(sorted(Settings.model_fields)), st.text(max_size=20))
def test_any_values_of_a_setting_are_a_search_or_a_sentence(name: str, values: str) -> None:
    with contextlib.suppress(SettingError):
        (dimension,) = read_space({name: values}).values()
        assert distribution(dimension) is not None


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e4), st.booleans(), st.floats(0, 1))
def test_a_range_holds_what_lies_in_it_and_knows_its_ends(
    low: float, factor: float, log: bool, share: float
) -> None:
    high = low * factor
    span = Range(low, high, log=log)
    value = low * factor**share if log else low + (high - low) * share
    value = min(max(value, low), high)
    assert span.holds(value)
    assert not span.holds(high * 1.01)
    assert not span.holds(low * 0.99)
    assert span.edge(low) == "lower"
    assert span.edge(high) == "upper"
    middle = math.sqrt(low * high) if log else (low + high) / 2
    assert span.edge(middle) is None


def test_a_grid_has_every_combination() -> None:
    space = space_of("epochs=4..20:step=8", "optimizer=adam,sgd", "batch_size=16..18")
    assert space["epochs"].grid() == (4, 12, 20)
    assert grid_size(space) == 3 * 2 * 3
    with pytest.raises(SettingError, match="has no end"):
        grid_size(space_of("lr=1e-5..1e-2:log"))
