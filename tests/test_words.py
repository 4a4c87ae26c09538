"""Numbers and names in words, and names in figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.figures import axis_names, in_figure
from vizsla.words import apart, duration, percent, shortened, size, some_of


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.0042, "4.2 ms"), (0.44, "440 ms"), (9.96, "9.96 s"), (59.6, "59.6 s"),
     (200, "3 min 20 s"), (7500, "2 h 5 min"), (400_000, "111 h 6 min")],
)  # fmt: skip
def test_durations_are_told_in_units_that_suit_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_bytes_are_told_in_units_that_suit_them() -> None:
    assert [size(one) for one in (512, 8_242_000, 999.9e9)] == ["512 B", "8.24 MB", "1 TB"]


def test_a_share_that_is_not_known_is_a_gap() -> None:
    assert (percent(0.9126), percent(None)) == ("91.3 %", "–")


def test_a_share_is_told_as_nothing_or_all_only_where_it_is() -> None:
    told = [percent(one) for one in (0.0, 0.0004, 0.9996, 1.0)]
    assert told == ["0.0 %", "<0.1 %", ">99.9 %", "100.0 %"]


@given(st.lists(st.sampled_from(["a", "a (2)", "a (3)", "b"]), max_size=8))
def test_names_that_come_again_are_told_apart(names: list[str]) -> None:
    told = apart(names)
    assert len(set(told)) == len(names)
    assert all(one.startswith(name) for one, name in zip(told, names))


@given(st.lists(st.text(max_size=60), max_size=6))
def test_names_of_an_axis_are_as_many_as_there_were(names: list[str]) -> None:
    assert len(set(axis_names(names))) == len(names)


def test_markup_in_a_figure_is_text() -> None:
    assert in_figure("<b>x</b> & 'y'") == "&lt;b&gt;x&lt;/b&gt; &amp; 'y'"


def test_long_names_lose_their_middle() -> None:
    assert shortened("Alaskan malamute") == "Alaskan malamute"
    short = shortened("Nova Scotia duck tolling retriever")
    assert len(short) <= 26
    assert (short[:4], short[-4:]) == ("Nova", "ever")


def test_many_names_are_told_in_part() -> None:
    assert some_of(["a", "b"]) == "a and b"
    assert some_of(list("abcdefg")) == "a, b, c, d, e and 2 more"
