"""What every rule of the profiler shares: that it may not apply, and says why."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

from vizsla.findings import Finding
from vizsla.profiling.record import ProfileRecord
from vizsla.rulebook import BaseRule

# How many steps or ranges of time a finding names at most, the worst of them.
SHOWN = 10


class ProfileRule(BaseRule):
    """Base of the built-in rules and of users' own.

    `judge` finds nothing, and raises nothing, where the rule does not apply or too little was
    recorded. Two names of evidence are for whoever draws it: `steps`, a list of numbers, and
    `seconds_from_start`, a list of moments or of pairs (from, to), counted by the `RunClock`.
    """

    @abstractmethod
    def judge(self, record: ProfileRecord) -> Iterable[Finding]:
        """Findings, none when all is well. Keeps no state and writes nothing."""

    def applies(self, record: ProfileRecord) -> str | None:
        """Why this rule cannot judge this run, as a clause; None where it can."""
        return None
