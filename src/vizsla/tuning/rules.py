"""Rules that judge a study: what its trials say about the search itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vizsla.findings import Finding
from vizsla.tuning.space import Space
from vizsla.tuning.trials import TrialRecord, best_of


@dataclass(frozen=True)
class StudyFacts:
    """What is known of a study: its space, its trials, and what they are judged by."""

    space: Space
    records: Sequence[TrialRecord]
    objective: str


class BestAtTheEdge:
    """The best trial's value of a setting lies at an end of its range: beyond may be better."""

    name = "best_at_the_edge"

    def judge(self, facts: StudyFacts) -> Iterable[Finding]:
        best = best_of(facts.records, facts.objective)
        if best is None:
            return
        for name, dimension in facts.space.items():
            value = best.params.get(name)
            edge = None if value is None else dimension.edge(value)
            if edge is not None:
                yield Finding(
                    self.name,
                    "warning",
                    name,
                    f"The best trial's {name}, {value:.4g}, lies at the {edge} end of {dimension}.",
                    f"A study with a wider range of {name} may find better.",
                    float(best.params[name]),
                )


class ManyFailures:
    """Half of the trials failed or more: the search wastes its time."""

    name = "many_failures"
    threshold = 0.5

    def judge(self, facts: StudyFacts) -> Iterable[Finding]:
        over = [record for record in facts.records if record.is_over]
        failed = [record for record in over if record.status == "failed"]
        if failed and len(failed) >= self.threshold * len(over):
            yield Finding(
                self.name,
                "warning",
                "trials",
                f"{len(failed)} of {len(over)} trials failed, the last because {failed[-1].reason}",
                "Narrow the search to settings that train; a rate too high diverges.",
                len(failed) / len(over),
                self.threshold,
            )


STUDY_RULES = (BestAtTheEdge(), ManyFailures())
