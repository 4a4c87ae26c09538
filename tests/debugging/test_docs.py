"""The page on debugging says what the code has, and its Python does what the page says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vizsla
from vizsla.debugging.format import COLLECTIONS, REDUCTIONS
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules import DEFAULT_RULES, RULES
from vizsla.debugging.rules.choosing import choose_rules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "debugging.md").read_text(encoding="utf-8")
REQUIRED = "required"


def table_under(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    _, _, below = PAGE.partition(f"\n{heading}\n")
    rows = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert rows is not None
    return [
        re.split(r" \|(?: |$)", line.removeprefix("| "))[:-1] for line in rows[0].splitlines()[2:]
    ]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def block(beginning: str) -> str:
    """The indented block that begins so."""
    lines = PAGE[PAGE.index(f"    {beginning}") :].splitlines()
    end = next((at for at, line in enumerate(lines) if line and line[:4] != "    "), len(lines))
    return "\n".join(line.removeprefix("    ") for line in lines[:end])


def defaults(name: str) -> dict[str, Any]:
    fields = RULES[name].model_fields
    return {key: REQUIRED if one.is_required() else one.default for key, one in fields.items()}


def written(name: str, parameters: str) -> dict[str, Any]:
    """Parameters and defaults of a row, as the rule itself reads them."""
    required = "".join(f":{key}=x" for key, value in defaults(name).items() if value == REQUIRED)
    found: dict[str, Any] = {}
    for text in code_in(parameters):
        key, given, value = text.partition("=")
        if not given:
            found[key] = REQUIRED
        elif value == "none":
            found[key] = None
        else:
            (rule,) = choose_rules(f"{name}{required}:{text}")
            found[key] = getattr(rule, key)
    return found


def test_the_table_has_every_rule_in_order() -> None:
    assert [code_in(row[0])[0] for row in table_under("## Rules")] == list(RULES)


@pytest.mark.parametrize("row", table_under("## Rules"), ids=lambda row: row[0])
def test_a_row_tells_parameters_defaults_and_whether_it_is_a_default_rule(row: list[str]) -> None:
    name = code_in(row[0])[0]
    assert written(name, row[2]) == defaults(name)
    assert row[3] == ("yes" if name in DEFAULT_RULES else "no")


def test_collections_and_reductions_are_all_told() -> None:
    told = [name for row in table_under("## What is captured") for name in code_in(row[0])]
    assert sorted(told) == sorted(COLLECTIONS)
    rows = table_under("### What is exact and what is sampled")
    assert {name for row in rows for name in code_in(row[1])} == set(REDUCTIONS)


def test_loop_of_the_page_finds_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block("import torch"), "debugging.md", "exec"), {})
    (found,) = vizsla.debug("runs/mine")
    assert found.rule == "check_input_images"
    assert f"{found.rule} ({found.where}): {found.meaning[:30]}" in PAGE


def test_own_rules_of_the_page_judge(
    make_record: Callable[..., TrainingRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_rules.py").write_text(block("# my_rules.py"), encoding="utf-8")
    large, huge = choose_rules("my_rules.py:LargeGradient:limit=5,my_rules.py:loss_is_huge")
    well = make_record(losses=[1.0, 1.0], tensors={"gradient/fc.weight": {"l2": [1.0, 1.0]}})
    ill = make_record(losses=[1.0, 101.0], tensors={"gradient/fc.weight": {"l2": [1.0, 6.0]}})
    assert not [*large.judge(well), *huge.judge(well)]
    assert [one.measured for one in [*large.judge(ill), *huge.judge(ill)]] == [6.0, 101.0]
