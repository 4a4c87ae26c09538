"""Settings: what is refused and in which words, and that nothing is lost on the way to a file."""

from __future__ import annotations

import math
import tempfile
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizsla.errors import InputError, SettingError
from vizsla.settings import OptimizerSettings, Recipe, read_recipe

FIELDS = Recipe.model_fields


def _kind(name: str) -> tuple[Any, bool]:
    """A field's type without its None, and whether it may be None."""
    annotation = FIELDS[name].annotation
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        return inner[0], True
    return annotation, False


def _bounds(name: str) -> dict[str, float]:
    return {
        key: getattr(constraint, key)
        for constraint in FIELDS[name].metadata
        for key in ("gt", "ge", "lt", "le")
        if getattr(constraint, key, None) is not None
    }


def _outside() -> list[tuple[str, float]]:
    """For every bound of every setting, a value just beyond it."""
    cases: list[tuple[str, float]] = []
    for name in FIELDS:
        step = 1 if _kind(name)[0] is int else 0.5
        for key, bound in _bounds(name).items():
            beyond = {"gt": bound, "lt": bound, "ge": bound - step, "le": bound + step}[key]
            cases.append((name, beyond))
    return cases


def _choices() -> list[str]:
    return [name for name in FIELDS if get_origin(_kind(name)[0]) is Literal]


@pytest.mark.parametrize(("name", "value"), _outside())
def test_value_out_of_range_is_told_with_name_value_and_range(name: str, value: float) -> None:
    with pytest.raises(SettingError) as caught:
        Recipe(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is {value}, but must be ")
    assert message.count(". ") == 0  # one sentence
    assert message.endswith(").")
    for bound in _bounds(name).values():
        assert f"{bound}" in message[message.index("(range ") :]


@pytest.mark.parametrize("name", _choices())
def test_unknown_choice_is_told_with_the_choices(name: str) -> None:
    with pytest.raises(SettingError) as caught:
        Recipe(**{name: "nonsense"})
    message = str(caught.value)
    assert message.startswith(f"{name} is 'nonsense', but must be one of ")
    assert all(repr(choice) in message for choice in get_args(_kind(name)[0]))


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("optimiser", "optimizer"), ("batchsize", "batch_size"), ("learning_epochs", "epochs")],
)
def test_misspelt_setting_is_told_with_the_nearest(misspelt: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"no setting '{misspelt}'.*Did you mean.*{meant}"):
        Recipe(**{misspelt: 1})


def test_setting_like_no_other_is_told_without_a_guess() -> None:
    with pytest.raises(SettingError) as caught:
        Recipe(xyzzy=1)
    assert str(caught.value) == "There is no setting 'xyzzy'."


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0}]
)
def test_nesterov_without_sgd_and_momentum_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="nesterov needs the optimizer sgd with a momentum"):
        Recipe(nesterov=True, **changes)


def test_nesterov_with_sgd_is_accepted() -> None:
    assert Recipe(nesterov=True, optimizer="sgd").nesterov


@pytest.mark.parametrize("warmup_epochs", [3, 3.5])
def test_warmup_as_long_as_the_training_is_refused(warmup_epochs: float) -> None:
    with pytest.raises(SettingError, match=rf"warmup_epochs \({warmup_epochs}\).*epochs \(3\)"):
        Recipe(epochs=3, warmup_epochs=warmup_epochs)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan"])
@pytest.mark.parametrize("name", [name for name in FIELDS if _kind(name)[0] in (int, float)])
def test_values_that_are_no_numbers_are_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name} is "):
        Recipe(**{name: value})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epochs": 1.5}, "epochs is 1.5, but must be a valid integer."),
        ({"epochs": "many"}, "epochs is 'many', but must be a valid integer."),
        ({"lr": "fast"}, "lr is 'fast', but must be a valid number."),
        ({"model": 3}, "model is 3, but must be a valid string."),
        ({"compile": "maybe"}, "compile is 'maybe', but must be a valid boolean."),
    ],
)
def test_value_of_another_type_is_told(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingError) as caught:
        Recipe(**values)
    assert str(caught.value) == expected


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(SettingError, match=r"(?s)lr is -1.*epochs is 0"):
        Recipe(lr=-1, epochs=0)


def test_setting_error_is_an_input_error_and_a_value_error() -> None:
    with pytest.raises(SettingError) as caught:
        OptimizerSettings(lr=0)
    assert isinstance(caught.value, InputError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_described(name: str) -> None:
    description = FIELDS[name].description or ""
    assert len(description) > 5
    assert description.endswith(".")


def test_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().epochs = 3  # type: ignore[misc]


def test_replace_keeps_what_was_set_and_only_that() -> None:
    first = Recipe(model="resnet18", epochs=7)
    second = first.replace(lr=0.1)
    assert (second.model, second.epochs, second.lr) == ("resnet18", 7, 0.1)
    assert second.model_fields_set == {"model", "epochs", "lr"}
    assert first.lr is None


def test_replace_checks_anew() -> None:
    with pytest.raises(SettingError, match="warmup_epochs"):
        Recipe(epochs=10, warmup_epochs=5).replace(epochs=4)


def _values_of(name: str) -> st.SearchStrategy[Any]:
    kind, optional = _kind(name)
    bounds = _bounds(name)
    if get_origin(kind) is Literal:
        strategy: st.SearchStrategy[Any] = st.sampled_from(get_args(kind))
    elif kind is bool:
        strategy = st.booleans()
    elif kind is int:
        highest = bounds["lt"] - 1 if "lt" in bounds else bounds.get("le", 2**62)
        strategy = st.integers(int(bounds["ge"]), int(highest))
    elif kind is float:
        strategy = st.floats(
            bounds.get("gt", bounds.get("ge")),
            bounds.get("lt", bounds.get("le", 1e300)),
            exclude_min="gt" in bounds,
            exclude_max="lt" in bounds,
        )
    else:
        assert kind is str
        strategy = st.text()
    return st.one_of(st.none(), strategy) if optional else strategy


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    values = {name: draw(_values_of(name)) for name in draw(st.sets(st.sampled_from([*FIELDS])))}
    if values.get("nesterov"):
        values["optimizer"] = "sgd"
        values["momentum"] = 0.9
    if values.get("warmup_epochs", 0) >= values.get("epochs", 10):
        del values["warmup_epochs"]
    if values.get("solver") == "lbfgs":  # which contradicts much
        values = {
            name: values[name] for name in ("solver", "model", "lr", "hflip") if name in values
        }
    return Recipe(**values)


@given(recipe=recipes())
@settings(max_examples=60, deadline=None)
def test_recipe_survives_the_way_through_a_file(recipe: Recipe) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.toml")
        path.write_text(recipe.to_toml(), encoding="utf-8")
        assert read_recipe(path).model_dump() == recipe.model_dump()


def test_every_setting_with_a_value_is_written() -> None:
    full = Recipe(**{name: _example(name) for name in FIELDS if FIELDS[name].default is None})
    assert all(f"{name} = " in full.to_toml() for name in FIELDS)


def _example(name: str) -> float:
    return 16 if _kind(name)[0] is int else 0.5


def test_tables_of_a_recipe_are_left_to_others(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('epochs = 3\n[space]\nlr = "log 1e-5 1e-1"\n', encoding="utf-8")
    assert read_recipe(path) == Recipe(epochs=3)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "does not exist"),
        (b"epochs = ", "cannot be read as TOML"),
        (b"\xff\xfe\x00", "cannot be read as TOML"),
        (b"epochs = 0", "In the recipe .*epochs is 0, but must be at least 1"),
        (b"epoch = 3", "In the recipe .*no setting 'epoch'. Did you mean epochs"),
        (b"lr = nan", "In the recipe .*lr is nan"),
        (b"epochs = 2026-11-21", "In the recipe .*epochs is "),
    ],
)
def test_unusable_recipe_is_told_with_its_path(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=expected) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


@given(content=st.binary(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_a_recipe_or_an_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.toml")
        path.write_bytes(content)
        try:
            read_recipe(path)
        except SettingError as error:
            told = str(error)
        else:
            return
    assert str(path) in told
