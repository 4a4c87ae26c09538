"""Rules from what people type, and from their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizsla.debugging.rules import DEFAULT_RULES, RULES
from vizsla.debugging.rules.choosing import choose_rules, needed_collections
from vizsla.errors import SettingError
from vizsla.rulebook import built_in_alone, divided

OWN = """
from vizsla.debugging import DebugRule
from vizsla.findings import Finding


class GradientRatio(DebugRule):
    name = "gradient_ratio"
    needs = ("gradients",)
    most: float = 10.0

    def judge(self, record):
        norms = record.tensors.matrix("l2", collection="gradients").values
        ratio = norms.max() / norms.min()
        if ratio > self.most:
            yield self.finding("Gradients differ.", "Look.", measured=ratio, threshold=self.most)


def too_short(record):
    if len(record.tensors.losses()) < 100:
        return [Finding("too_short", "info", "run", "It is short.", "Go on.")]


class Unfinished(DebugRule):
    name = "unfinished"


answer = 42
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(OWN)
    return path


def test_default_rules_are_known_rules() -> None:
    assert {rule.name for rule in choose_rules(None)} == set(DEFAULT_RULES)
    assert set(DEFAULT_RULES) <= set(RULES)
    assert len(RULES) >= 23


def test_settings_come_after_colons_or_commas() -> None:
    overfit, vanishing = choose_rules(
        "overfit:ratio_threshold=0.05:patience=2,VanishingGradient:threshold=1e-8"
    )
    assert (overfit.ratio_threshold, overfit.patience) == (0.05, 2)
    assert vanishing.threshold == 1e-8
    (same,) = choose_rules("overfit:ratio_threshold=0.05,patience=2")
    assert same == overfit


def test_rule_that_is_named_again_has_its_later_settings() -> None:
    rules = {rule.name: rule for rule in choose_rules("default,overfit:patience=7")}
    assert set(rules) == set(DEFAULT_RULES) | {"overfit"}
    assert rules["overfit"].patience == 7


def test_rules_say_what_capture_must_record() -> None:
    assert "relu_output" in needed_collections(choose_rules("dead_relu"))
    assert choose_rules("none") == []


def test_class_in_a_file_is_a_rule(own: Path, make_record: Any) -> None:
    (rule,) = choose_rules(f"{own}:GradientRatio:most=2")
    assert rule.name == "gradient_ratio"
    assert needed_collections([rule]) == ["gradients"]
    record = make_record(tensors={"gradient/a": {"l2": [9.0]}, "gradient/b": {"l2": [1.0]}})
    (found,) = rule.judge(record)
    assert found.measured == 9.0


def test_function_in_a_file_is_a_rule(own: Path, make_record: Any) -> None:
    (rule,) = choose_rules(f"{own}:too_short")
    assert [one.rule for one in rule.judge(make_record(losses=[1.0]))] == ["too_short"]
    assert list(rule.judge(make_record(losses=[1.0] * 100))) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("overfitt", "Did you mean overfit"),
        ("overfit:ratio=1", "no setting 'ratio'"),
        ("overfit:ratio_threshold=much", "ratio_threshold is 'much'"),
        ("overfit:patience=0", "patience is 0"),
        ("overfit:patience", "no setting; write"),
        ("nowhere.py:Mine", "does not exist"),
        ("similar_across_runs", "other_runs"),
    ],
)
def test_what_is_unknown_is_said(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        choose_rules(text)


def test_faults_in_a_file_are_said(own: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Did you mean GradientRatio"):
        choose_rules(f"{own}:GradientRatios")
    with pytest.raises(SettingError, match="is no rule"):
        choose_rules(f"{own}:answer")
    with pytest.raises(SettingError, match="Unfinished is no rule.*judge"):
        choose_rules(f"{own}:Unfinished")
    with pytest.raises(SettingError, match="no setting 'least'"):
        choose_rules(f"{own}:GradientRatio:least=1")
    with pytest.raises(SettingError, match="takes no settings"):
        choose_rules(f"{own}:too_short:least=1")
    leaving = tmp_path / "leaving.py"
    leaving.write_text("raise SystemExit(3)\n")
    with pytest.raises(SettingError, match="SystemExit"):
        choose_rules(f"{leaving}:x")
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\nx.y\n")
    with pytest.raises(SettingError, match=r"AttributeError.*line 2"):
        choose_rules(f"{broken}:x")


@given(st.text(alphabet="own.py:,=f1 /", max_size=30))
def test_what_is_left_of_rules_names_no_file(text: str) -> None:
    built_in, own = built_in_alone(text)
    assert len(built_in) + len(own) == len(divided(text))
    assert built_in_alone(",".join(built_in)) == (built_in, [])


@given(st.text(max_size=40))
def test_any_text_is_rules_or_a_sentence(text: str) -> None:
    try:
        rules = choose_rules(text)
    except SettingError:
        return
    assert all(rule.name for rule in rules)
