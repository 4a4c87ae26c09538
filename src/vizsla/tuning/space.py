"""The search space: which settings are searched, and over what.

Written as `lr=1e-5..1e-2:log`, `batch_size=16..64`, `batch_size=16..64:step=16` or
`optimizer=adam,sgd` on the command line, what follows the equals sign or a list in a recipe's
`[search]` table and in Python. Every bound and every choice is checked as the setting itself is.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, Union, get_args, get_origin

from vizsla.errors import SettingError, nearest
from vizsla.settings import Settings

# Searching over these would compare what cannot be compared.
_FIXED = {"seed": "it decides which pictures are judged, so the trials would not compare"}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included: on a logarithmic scale, or in steps."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False  # of whole numbers

    def __str__(self) -> str:
        manner = ":log" if self.log else f":step={_exact(self.step)}" if self.step else ""
        return f"{_exact(self.low)}..{_exact(self.high)}{manner}"

    def grid(self) -> tuple[float, ...] | None:
        """Every value, or None where they are not finitely many."""
        if self.log or (self.step is None and not self.whole):
            return None
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        values = [self.low + step * at for at in range(count)]
        return tuple(int(value) if self.whole else value for value in values)

    def holds(self, value: Any) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not self.low <= value <= self.high:
            return False
        if self.whole and value != int(value):
            return False
        step = self.step or (1 if self.whole else None)
        return step is None or self.log or abs((value - self.low) / step % 1) < 1e-9

    def edge(self, value: Any) -> str | None:
        """`lower` or `upper` where the value lies within a fiftieth of that end."""
        if self.low >= self.high:
            return None
        position = _position(float(value), self)
        return "lower" if position <= 0.02 else "upper" if position >= 0.98 else None


@dataclass(frozen=True)
class Choices:
    """Some values of a setting."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return ",".join(_written(value) for value in self.values)

    def grid(self) -> tuple[Any, ...]:
        return self.values

    def holds(self, value: Any) -> bool:
        return value in self.values

    def edge(self, value: Any) -> str | None:
        return None


Dimension: TypeAlias = "Range | Choices"
Space: TypeAlias = dict[str, Dimension]


def parse_search(items: Iterable[str]) -> dict[str, str]:
    """`NAME=VALUES` as typed, each name once."""
    found: dict[str, str] = {}
    for item in items:
        name, equals, values = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name or not values.strip():
            raise SettingError(
                f"{item!r} is no search; write a setting and its values, such as "
                "lr=1e-5..1e-2:log or batch_size=16,32,64."
            )
        if name in found:
            raise SettingError(f"{name} is searched twice: {found[name]} and {values}.")
        found[name] = values.strip()
    return found


def read_space(search: Mapping[str, Any]) -> Space:
    """The space of settings and their values, each a text, a sequence, a `Range` or `Choices`.

    Raises `SettingError` for a name that is no setting, with the nearest, and for values that the
    setting does not take.

    >>> space = read_space({"lr": "1e-5..1e-2:log", "optimizer": ["adam", "sgd"]})
    >>> print(space["lr"], space["optimizer"])
    1e-05..0.01:log adam,sgd
    """
    if not search:
        raise SettingError(
            "Nothing to search: name settings and their values, such as "
            "--search lr=1e-5..1e-2:log batch_size=16..64, or a [search] table in the recipe."
        )
    names = {name: name.replace("-", "_") for name in search}
    return {names[name]: _dimension(names[name], values) for name, values in search.items()}


def _dimension(name: str, values: Any) -> Dimension:
    if name not in Settings.model_fields:
        raise SettingError(
            f"There is no setting {name!r} to search.{nearest(name, Settings.model_fields)}"
        )
    if name in _FIXED:
        raise SettingError(f"{name} cannot be searched: {_FIXED[name]}.")
    if isinstance(values, Range):
        return _checked_range(name, values)
    if isinstance(values, Choices):
        return _checked_choices(name, values.values)
    if isinstance(values, str):
        return _parsed(name, values)
    if isinstance(values, Sequence):
        return _checked_choices(name, values)
    return _checked_choices(name, [values])


def _parsed(name: str, text: str) -> Dimension:
    if ".." not in text or _kinds(name).isdisjoint((int, float)):
        return _checked_choices(name, [part.strip() for part in text.split(",")])
    bounds, *manners = text.split(":")
    low, _, high = bounds.partition("..")
    log, step = False, None
    for manner in manners:
        key, _, value = manner.partition("=")
        if manner == "log":
            log = True
        elif key == "step":
            step = _number(name, value, text)
        else:
            raise SettingError(
                f"{name}={text}: {manner!r} means nothing; a range may end in :log or :step=NUMBER."
            )
    return _checked_range(
        name, Range(_number(name, low, text), _number(name, high, text), log, step)
    )


def _checked_range(name: str, given: Range) -> Range:
    kinds = _kinds(name)
    if kinds.isdisjoint((int, float)):
        raise SettingError(f"{name} has no range of numbers; name its values, such as {name}=a,b.")
    whole = float not in kinds
    low, high = (_cast(name, bound) for bound in (given.low, given.high))
    what = f"{name}={given}"
    if low >= high:
        raise SettingError(f"{what}: the range must rise, from a lower to a higher number.")
    if given.log and low <= 0:
        raise SettingError(f"{what}: a logarithmic range must begin above 0.")
    if given.step is not None:
        if given.log:
            raise SettingError(f"{what}: a range has a step or is logarithmic, not both.")
        if given.step <= 0 or given.step > high - low or (whole and given.step % 1):
            raise SettingError(f"{what}: the step must be {'whole and ' * whole}within the range.")
        high = low + given.step * int((high - low) / given.step + 1e-9)  # the last step
    return Range(low, int(high) if whole else high, given.log, given.step, whole)


def _checked_choices(name: str, values: Sequence[Any]) -> Choices:
    chosen = tuple(dict.fromkeys(_cast(name, value) for value in values))
    if not chosen:
        raise SettingError(f"{name} is to be searched over nothing; name its values.")
    return Choices(chosen)


def _cast(name: str, value: Any) -> Any:
    """The value as the setting takes it. Raises `SettingError` where it does not."""
    optional = type(None) in _kinds(name)
    if optional and isinstance(value, str) and value.lower() == "none":
        return None
    if name == "weights" and value not in ("pretrained", "none"):
        value = str(Path(str(value)).expanduser().resolve())  # to be found from any folder
    whole = float not in _kinds(name) and isinstance(value, float) and value.is_integer()
    return getattr(Settings(**{name: int(value) if whole else value}), name)


def _kinds(name: str) -> set[Any]:
    """The types that a setting takes, without wrappings; a Literal's is str."""
    annotation = Settings.model_fields[name].annotation
    wrapped = get_origin(annotation) in (Union, types.UnionType)
    parts = get_args(annotation) if wrapped else (annotation,)
    return {part if isinstance(part, type) else str for part in parts}


def _number(name: str, text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(
            f"{name}={whole}: {text.strip()!r} is no number; write LOW..HIGH, such as 1e-5..1e-2."
        ) from None


def _position(value: float, span: Range) -> float:
    """Where a value lies in its range, 0 to 1, on the range's own scale."""
    if span.log:
        value, low, high = math.log(value), math.log(span.low), math.log(span.high)
        return (value - low) / (high - low)
    return (value - span.low) / (span.high - span.low)


def _exact(value: float) -> str:
    """The number in few digits, or in as many as tell it from every other."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
