"""The debugger's rules from what people type, and what capture must record for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules import DEFAULT_RULES, RULES
from vizsla.debugging.rules.base import DebugRule
from vizsla.findings import Finding, Rule
from vizsla.rulebook import RuleBook

AnyRule = Rule[TrainingRecord]
RuleLike = str | AnyRule | Callable[[TrainingRecord], Iterable[Finding]] | type

_BOOK = RuleBook(RULES, DEFAULT_RULES, DebugRule)


def choose_rules(wanted: str | Sequence[RuleLike] | None) -> list[AnyRule]:
    """The rules that were asked for, by text or as they are; the default ones for None.

    Raises `SettingError` for an unknown rule or setting, with the nearest names.
    """
    return _BOOK.choose(wanted)


def needed_collections(rules: Iterable[AnyRule]) -> list[str]:
    """What capture must record for these rules."""
    return list(dict.fromkeys(one for rule in rules for one in getattr(rule, "needs", ())))


def capture_options(rules: Iterable[AnyRule]) -> dict[str, Any]:
    """Options of capture that these rules decide."""
    options: dict[str, Any] = {}
    for rule in rules:
        options |= getattr(rule, "asks", dict)()
    return options
