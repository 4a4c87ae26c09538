"""What is captured, and when: collections and patterns, steps by mode, whole tensors.

Made once from what people type or pass, and checked there. Pure decisions: nothing here touches a
tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vizsla.debugging.format import COLLECTIONS, MODES
from vizsla.errors import SettingError, nearest

DEFAULT_COLLECTIONS = ("losses", "weights", "gradients", "labels", "predictions", "inputs")
DEFAULT_EVERY = 50
_EARLY = frozenset({1, 2, 5, 10, 20})
_TANH = (-9.4999, 9.4999)
_SIGMOID = (-23.0, 16.99999)
_RANGE = re.compile(r"(\d+)?:(\d+)?(?::(\d+))?")


@dataclass(frozen=True)
class Schedule:
    """Which steps of a mode are captured: listed ones, or every so many from `start` until before
    `stop`. The first step of a session is, if it lies in the range, and with `early` some soon
    after it, where most goes wrong."""

    every: int = 1
    start: int = 0
    stop: int | None = None
    listed: frozenset[int] | None = None
    early: bool = False

    def due(self, step: int, first: int = 0) -> bool:
        if self.listed is not None:
            return step in self.listed
        inside = self.start <= step and (self.stop is None or step < self.stop)
        soon = step == first or (self.early and step - first in _EARLY)
        return inside and ((step - self.start) % self.every == 0 or soon)


_DEFAULT = Schedule(DEFAULT_EVERY, early=True)


@dataclass(frozen=True)
class CapturePlan:
    """`patterns` are regular expressions for names of tensors beside those of `collections`;
    `whole` those whose values are kept whole, in half precision if `half`, until `budget_mb` are
    full. Bounds are what counts as saturated."""

    collections: frozenset[str] = frozenset(DEFAULT_COLLECTIONS)
    patterns: tuple[re.Pattern[str], ...] = ()
    whole: tuple[re.Pattern[str], ...] = ()
    whole_collections: frozenset[str] = frozenset()
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    half: bool = False
    budget_mb: float = 1024.0
    tanh_bounds: tuple[float, float] = _TANH
    sigmoid_bounds: tuple[float, float] = _SIGMOID

    def due(self, mode: str, step: int, first: int = 0) -> bool:
        return self.schedules.get(mode, _DEFAULT).due(step, first)

    def wants(self, name: str, collection: str | None = None) -> bool:
        """Whether a tensor is captured."""
        if collection in self.collections or any(one.search(name) for one in self.patterns):
            return True
        return self.wants_whole(name, collection)

    def wants_whole(self, name: str, collection: str | None = None) -> bool:
        return collection in self.whole_collections or any(one.search(name) for one in self.whole)

    def to_dict(self) -> dict[str, Any]:
        """The plan as the recording tells of it."""
        return {
            "collections": [name for name in COLLECTIONS if name in self.collections],
            "patterns": [one.pattern for one in self.patterns],
            "whole": sorted(self.whole_collections) + [one.pattern for one in self.whole],
            "tanh_bounds": list(self.tanh_bounds),
            "sigmoid_bounds": list(self.sigmoid_bounds),
        }


def make_plan(
    capture: str | Sequence[str] | None = None,
    every: int | str | Mapping[str, int] | None = None,
    steps: str | Iterable[int] | Mapping[str, Any] | None = None,
    whole: str | Sequence[str] | None = None,
    *,
    needed: Iterable[str] = (),
    half: bool = False,
    budget_mb: float = 1024.0,
    **options: Any,
) -> CapturePlan:
    """A plan from what a person says; `needed` collections, of rules, come to those of `capture`.

    Raises `SettingError` for anything that makes no sense, with the nearest names.
    """
    names, patterns = _divided("capture", capture)
    if capture is None:
        names = list(DEFAULT_COLLECTIONS)
    whole_names, whole_patterns = _divided("capture_whole", whole)
    refused = [name for name in whole_names if name in ("losses", "labels", "predictions")]
    return CapturePlan(
        collections=frozenset({*names, *needed, *refused}),
        patterns=tuple(patterns),
        whole=tuple(whole_patterns),
        whole_collections=frozenset(whole_names) - {*refused},
        schedules=_schedules(every, steps),
        half=half,
        budget_mb=budget_mb,
        **{name: tuple(bounds) for name, bounds in options.items()},
    )


def _divided(
    setting: str, given: str | Sequence[str] | None
) -> tuple[list[str], list[re.Pattern[str]]]:
    """Collections and patterns, told apart: a word that is nearly a collection is a misspelt one.

    >>> _divided("capture", "weights,fc")[0]
    ['weights']
    """
    pieces = _pieces(given) if isinstance(given, str) else list(given or ())
    names, patterns = [], []
    for piece in pieces:
        if piece in COLLECTIONS:
            names.append(piece)
            continue
        hint = nearest(piece, COLLECTIONS) if re.fullmatch(r"[A-Za-z_]+", piece) else ""
        if hint:
            raise SettingError(
                f"{setting}: there is no collection {piece!r}.{hint} There are "
                f"{', '.join(COLLECTIONS)}; anything else is a regular expression for names of "
                "tensors."
            )
        try:
            patterns.append(re.compile(piece))
        except re.error as error:
            raise SettingError(
                f"{setting}: {piece!r} is neither a collection nor a regular expression: {error}."
            ) from None
    return names, patterns


def _pieces(text: str) -> list[str]:
    """Split at commas that stand outside of brackets, since a pattern may say `{1,3}`.

    >>> _pieces("weights,conv[1,2],a{1,3}")
    ['weights', 'conv[1,2]', 'a{1,3}']
    """
    pieces, depth = [""], 0
    for character in text:
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(character, 0)
        if character == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def _schedules(
    every: int | str | Mapping[str, int] | None,
    steps: str | Iterable[int] | Mapping[str, Any] | None,
) -> dict[str, Schedule]:
    found = {mode: Schedule(_every(value)) for mode, value in _by_mode("every", every).items()}
    for mode, wanted in _by_mode("steps", steps).items():
        found[mode] = _listed(wanted, found.get(mode))
    return found


def _by_mode(setting: str, given: Any) -> dict[str, Any]:
    """A value a mode: of `train=50;eval=10`, a mapping, or one value, which is of training."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, str) and "=" in given:
        pairs = [part.partition("=") for part in re.split(r";|,(?=\s*[A-Za-z])", given)]
        found = {mode.strip(): value.strip() for mode, _, value in pairs}
    else:
        found = {"train": given}
    for mode in found:
        if mode not in MODES:
            raise SettingError(
                f"capture_{setting}: there is no mode {mode!r}.{nearest(str(mode), MODES)} There "
                f"are {', '.join(MODES)}."
            )
    return found


def _every(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(
            f"capture_every is {value!r}, but must be a number of steps from 1 on, or one for each "
            "mode, such as train=50;eval=10."
        )
    return value


def _listed(wanted: Any, before: Schedule | None) -> Schedule:
    """A range `first:end` or `first:end:every`, or listed steps `0,10,100`."""
    if isinstance(wanted, range) and wanted.step > 0 and len(wanted) and wanted.start >= 0:
        return Schedule(wanted.step, wanted.start, wanted.stop)
    if isinstance(wanted, str):
        match = _RANGE.fullmatch(wanted.strip())
        if match:
            start, stop, every = (None if part is None else int(part) for part in match.groups())
            chosen = every if every is not None else before.every if before is not None else 1
            if chosen < 1 or (stop is not None and stop <= (start or 0)):
                raise SettingError(f"capture_steps is {wanted!r}, which is an empty range.")
            return Schedule(chosen, start or 0, stop)
        wanted = [part.strip() for part in wanted.split(",") if part.strip()]
    try:
        listed = frozenset(int(step) for step in wanted)
    except (TypeError, ValueError):
        listed = frozenset()
    if not listed or min(listed) < 0:
        raise SettingError(
            f"capture_steps is {wanted!r}, but must be a range such as 0:200 or 0:200:10, or steps "
            "such as 0,10,100."
        )
    return Schedule(listed=listed)
