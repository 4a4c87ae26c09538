"""What is wrong with a data set, as findings: before training from the catalogue alone, after it
from the pictures that did not decode. No picture is opened here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vizsla.data.catalogue import Catalogue
from vizsla.findings import Finding
from vizsla.records import PictureProblem

_SHOWN = 20


@dataclass(frozen=True)
class MissingClass:
    """A class that an evaluation split lacks: its figures say nothing about that class."""

    name: str = "missing_class"

    def judge(self, facts: Catalogue) -> Iterable[Finding]:
        for split in ("valid", "test"):
            if len(facts.rows(split)) == 0:
                continue
            absent = [facts.classes[at].folder for at in np.flatnonzero(facts.counts(split) == 0)]
            if absent:
                yield Finding(
                    rule=self.name,
                    severity="warning",
                    where=split,
                    measured=len(absent),
                    threshold=0,
                    meaning=f"{len(absent)} of {len(facts.classes)} classes have no picture in "
                    f"the {split} split, so its figures do not judge them.",
                    advice=f"Add pictures of {', '.join(absent[:5])} to it.",
                    evidence={"classes": absent[:_SHOWN]},
                )


@dataclass(frozen=True)
class ClassImbalance:
    """The largest class has far more training pictures than the smallest.

    The default threshold of 10 is that of SageMaker Debugger's rule of the same name.
    """

    threshold: float = 10.0
    name: str = "class_imbalance"

    def judge(self, facts: Catalogue) -> Iterable[Finding]:
        counts = facts.counts("train")
        ratio = float(counts.max() / max(counts.min(), 1))
        if ratio > self.threshold:
            rare, common = (
                facts.classes[int(at)].folder for at in (counts.argmin(), counts.argmax())
            )
            yield Finding(
                rule=self.name,
                severity="warning",
                where="train",
                measured=ratio,
                threshold=self.threshold,
                meaning=f"{common} has {counts.max()} training pictures and {rare} only "
                f"{counts.min()}; rare classes may hardly be learned.",
                advice="Set class_balance to loss or sampling, and read macro F1 beside accuracy.",
            )


CATALOGUE_RULES = (MissingClass(), ClassImbalance())


@dataclass(frozen=True)
class CorruptPictures:
    """Pictures that did not decode, or only in part."""

    name: str = "corrupt_pictures"

    def judge(self, facts: list[PictureProblem]) -> Iterable[Finding]:
        for action in ("skipped", "repaired"):
            paths = sorted({problem.path for problem in facts if problem.action == action})
            if paths:
                yield Finding(
                    rule=self.name,
                    severity="warning",
                    where=paths[0],
                    measured=len(paths),
                    threshold=0,
                    meaning=f"{len(paths)} pictures could not be decoded and were {action}.",
                    advice="Replace or remove them; corrupt_pictures.csv in the run lists them.",
                    evidence={"paths": paths[:_SHOWN]},
                )
