"""Calling rules that may be users' own: what one raises, or returns that is no finding, becomes a
finding about the rule, and the others judge on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vizsla.errors import RunError, SettingError
from vizsla.findings import SEVERITIES, Facts, Finding, Rule, worst_first
from vizsla.runs.files import plain_number

# What a rule of a user's may raise: anything, and one that leaves the process is not to.
ANYTHING = (Exception, SystemExit)


def judge_safely(rules: Iterable[Rule[Facts]], record: Facts, verb: str) -> list[Finding]:
    """Everything that rules find in a record, worst first, and which of them failed; `verb` judges
    again. Raises `RunError` and `SettingError` where a rule was told of a run or setting that there
    is not."""
    found: list[Finding] = []
    for rule in rules:
        try:
            found += findings_of(rule, record)
        except (RunError, SettingError):
            raise
        except ANYTHING as error:
            found.append(failure_of(rule, error, verb))
    return worst_first(found)


def findings_of(rule: Rule[Facts], record: Facts) -> list[Finding]:
    """What a rule finds. Raises whatever it raises, and `TypeError` or `ValueError` where a finding
    of it cannot be written."""
    return [_checked(found) for found in rule.judge(record)]


def failure_of(rule: Rule[Any], error: BaseException, verb: str) -> Finding:
    """A finding about a rule that raised."""
    return Finding(
        rule.name,
        "warning",
        "rule",
        f"The rule {rule.name} failed and judges no more: {type(error).__name__}: {error}",
        f"Mend the rule, and judge the run again with vizsla {verb}.",
        evidence={"cause": "failed"},
    )


def _checked(found: Any) -> Finding:
    """The finding, of plain numbers, once it can be written, told and sorted."""
    if not isinstance(found, Finding):
        raise TypeError(f"it must give findings, and gave {found!r:.100}")
    if found.severity not in SEVERITIES:
        raise ValueError(f"the severity {found.severity!r} is none of {', '.join(SEVERITIES)}")
    for name in ("rule", "where", "meaning", "advice"):
        if not isinstance(getattr(found, name), str):
            raise TypeError(f"{name} must be a text, and is {getattr(found, name)!r:.100}")
    if not isinstance(found.evidence, Mapping):
        raise TypeError(f"evidence must be a mapping, and is {found.evidence!r:.100}")
    plain = replace(found, measured=_plain(found.measured), threshold=_plain(found.threshold))
    json.dumps(plain.to_dict(), default=plain_number)
    return plain


def _plain(value: Any) -> float | None:
    return None if value is None else float(value)
