"""The profiler's rules from what people type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from vizsla.findings import Finding, Rule
from vizsla.profiling.record import ProfileRecord
from vizsla.profiling.rules import DEFAULT_RULES, RULES
from vizsla.profiling.rules.base import ProfileRule
from vizsla.rulebook import RuleBook

AnyRule = Rule[ProfileRecord]
RuleLike = str | AnyRule | Callable[[ProfileRecord], Iterable[Finding]] | type

_BOOK = RuleBook(RULES, DEFAULT_RULES, ProfileRule)


def choose_rules(wanted: str | Sequence[RuleLike] | None) -> list[AnyRule]:
    """The rules that were asked for, by text or as they are; the default ones for None.

    Raises `SettingError` for an unknown rule or setting, with the nearest names.
    """
    return _BOOK.choose(wanted)
