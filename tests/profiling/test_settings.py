"""Settings of the profiler: what is refused, and how."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.errors import SettingError
from vizsla.profiling.settings import ProfileSettings, parse_steps


@pytest.mark.parametrize(
    ("text", "steps"), [("20:25", range(20, 25)), (" 7 ", range(7, 8)), ("1: 3", range(1, 3))]
)
def test_steps_as_they_are_typed(text: str, steps: range) -> None:
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "a", "5:5", "9:3", "0:4", "-1:4", "1:2:3", "1.5", "20-25"])
def test_other_steps_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingError, match="20:25"):
        ProfileSettings(trace_steps=text)


@given(st.text(max_size=20))
def test_any_text_is_steps_or_refused(text: str) -> None:
    steps = None
    with contextlib.suppress(SettingError):
        steps = parse_steps(text)
    assert steps is None or (steps.start >= 1 and len(steps) >= 1)


@pytest.mark.parametrize("interval", [99, 60_001, -5])
def test_interval_that_is_not_offered_is_refused(interval: int) -> None:
    with pytest.raises(SettingError, match=f"{interval}"):
        ProfileSettings(profile_interval_ms=interval)


@pytest.mark.parametrize(
    ("given", "is_on"),
    [({}, False), ({"profile": False}, False), ({"profile": True}, True),
     ({"trace_steps": "3:5"}, True), ({"profile": False, "trace_steps": "3"}, False)],
)  # fmt: skip
def test_asking_for_a_part_of_the_profiler_asks_for_it(given: dict, is_on: bool) -> None:  # type: ignore[type-arg]
    assert ProfileSettings(**given).is_on is is_on
