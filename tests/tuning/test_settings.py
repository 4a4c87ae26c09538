"""The settings of a study are checked as those of a training are."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.errors import SettingError
from vizsla.tuning.settings import StudySettings, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("45", 45), ("1.5s", 1.5),
     ("1H2M3S", 3723)],
)  # fmt: skip
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert StudySettings(timeout=text).timeout_s == seconds


@pytest.mark.parametrize("text", ["", "soon", "30x", "m30", "0s", "-5m", "1m1h", "1e3s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="timeout"):
        StudySettings(timeout=text)


@given(st.text(max_size=12))
def test_any_text_is_a_time_above_zero_or_refused(text: str) -> None:
    with contextlib.suppress(SettingError):
        assert seconds_of(text) > 0


def test_ten_trials_unless_time_decides() -> None:
    assert StudySettings().trial_limit == 10
    assert StudySettings(timeout="5m").trial_limit is None
    assert StudySettings(timeout="5m", trials=3).trial_limit == 3


def test_objectives_begin_with_a_figure_of_validation() -> None:
    assert StudySettings().objectives("loss") == ("loss",)
    assert StudySettings(objective="accuracy, latency_ms").objectives("loss") == (
        "accuracy",
        "latency_ms",
    )
    for text, words in [
        ("acuracy", "Did you mean accuracy"),
        ("latency_ms,accuracy", "begin with"),
        ("accuracy,accuracy", "twice"),
    ]:
        with pytest.raises(SettingError, match=words):
            StudySettings(objective=text)


@pytest.mark.parametrize(
    ("setting", "value"), [("trials", 0), ("jobs", 0), ("sampler", "best"), ("screen", 0),
                           ("name", "a/b"), ("name", "")]
)  # fmt: skip
def test_values_out_of_range_name_the_setting(setting: str, value: object) -> None:
    with pytest.raises(SettingError, match=setting):
        StudySettings(**{setting: value})
