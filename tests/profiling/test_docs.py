"""The page on profiling has every rule, with its parameters and defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vizsla.profiling.rules import DEFAULT_RULES, RULES
from vizsla.profiling.rules.choosing import choose_rules

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "profiling.md").read_text(encoding="utf-8")


def table_under(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    _, _, below = PAGE.partition(f"\n{heading}\n")
    rows = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert rows is not None
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:]
    ]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def defaults(name: str) -> dict[str, Any]:
    return {key: one.default for key, one in RULES[name].model_fields.items()}


def written(name: str, parameters: str) -> dict[str, Any]:
    """Parameters and defaults of a row, as the rule itself reads them."""
    found: dict[str, Any] = {}
    for text in code_in(parameters):
        (rule,) = choose_rules(f"{name}:{text}")
        key = text.partition("=")[0]
        found[key] = getattr(rule, key)
    return found


def test_the_table_has_every_rule_in_order() -> None:
    assert [code_in(row[0])[0] for row in table_under("## Rules")] == list(RULES)


@pytest.mark.parametrize("row", table_under("## Rules"), ids=lambda row: row[0])
def test_a_row_tells_parameters_defaults_and_whether_it_is_a_default_rule(row: list[str]) -> None:
    name = code_in(row[0])[0]
    assert written(name, row[3]) == defaults(name)
    assert row[4] == ("yes" if name in DEFAULT_RULES else "no")
