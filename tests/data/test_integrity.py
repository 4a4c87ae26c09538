"""Every rule speaks of the illness that it is for, and is silent on a healthy data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from vizsla.data.catalogue import Catalogue, build
from vizsla.data.integrity import (
    CATALOGUE_RULES,
    ClassImbalance,
    CorruptPictures,
    MissingClass,
)
from vizsla.data.sources import open_source
from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.findings import Finding, Rule, judge_all
from vizsla.records import SPLITS, PictureProblem


def catalogue_of(**counts: dict[str, int]) -> Catalogue:
    """Pictures by split and class: `train={"a": 3}`."""
    rows = [
        (f"{split}/{name}/{number}.jpg", name, SPLITS.index(split))
        for split, classes in counts.items()
        for name, count in classes.items()
        for number in range(count)
    ]
    return build(Path("root"), *([row[at] for row in rows] for at in range(3)))


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    assert all((findings[0].meaning, findings[0].advice, findings[0].rule))
    return findings[0]


def test_a_healthy_data_set_gives_no_findings(dogs: DrawnDataset) -> None:
    assert judge_all(CATALOGUE_RULES, open_source(dogs.folder)) == []
    assert judge_all([CorruptPictures()], []) == []


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_class_missing_from_a_split_is_named(split: str) -> None:
    classes = {"a": 2, "b": 2, "c": 2}
    catalogue = catalogue_of(train=classes, **{split: {"a": 1, "c": 1}})
    finding = only(judge_all([MissingClass()], catalogue))
    assert (finding.severity, finding.where, finding.measured) == ("warning", split, 1)
    assert finding.evidence == {"classes": ["b"]}
    assert "1 of 3 classes" in finding.meaning
    assert "pictures of b" in finding.advice


def test_a_split_that_does_not_exist_misses_nothing() -> None:
    catalogue = catalogue_of(train={"a": 2, "b": 2}, valid={"a": 1, "b": 1})
    assert judge_all([MissingClass()], catalogue) == []


def test_imbalance_is_measured_in_the_training_split(tmp_path: Path) -> None:
    drawn = draw_dataset(
        tmp_path, breeds=2, pictures_per_breed=36, size_px=16, faults=Faults(imbalance=12.0)
    )
    finding = only(judge_all(CATALOGUE_RULES, open_source(drawn.folder)))
    assert (finding.rule, finding.where) == ("class_imbalance", "train")
    assert finding.measured == pytest.approx(12, rel=0.15)
    assert finding.threshold == 10
    assert drawn.classes[0] in finding.meaning
    assert drawn.classes[1] in finding.meaning


@pytest.mark.parametrize(("common", "fires"), [(10, False), (11, True)])
def test_imbalance_fires_above_its_threshold(common: int, fires: bool) -> None:
    catalogue = catalogue_of(train={"a": common, "b": 1}, valid={"a": 1, "b": 1})
    assert bool(judge_all([ClassImbalance()], catalogue)) == fires


def test_an_imbalanced_validation_split_is_no_imbalance() -> None:
    catalogue = catalogue_of(train={"a": 3, "b": 3}, valid={"a": 50, "b": 1})
    assert judge_all([ClassImbalance()], catalogue) == []


def test_corrupt_pictures_are_counted_once_by_what_was_done() -> None:
    problems = [
        PictureProblem("b.jpg", "broken", "skipped"),
        PictureProblem("a.jpg", "broken", "skipped"),
        PictureProblem("a.jpg", "broken", "skipped"),  # again, in the next epoch
        PictureProblem("c.jpg", "cut off", "repaired"),
    ]
    skipped, repaired = judge_all([CorruptPictures()], problems)
    assert (skipped.measured, skipped.evidence) == (2, {"paths": ["a.jpg", "b.jpg"]})
    assert (repaired.measured, repaired.where) == (1, "c.jpg")


def test_evidence_stays_short() -> None:
    problems = [PictureProblem(f"{number}.jpg", "broken", "skipped") for number in range(500)]
    finding = only(judge_all([CorruptPictures()], problems))
    assert finding.measured == 500
    assert len(finding.evidence["paths"]) == 20


@pytest.mark.parametrize("rule", [*CATALOGUE_RULES, CorruptPictures()])
def test_rules_have_names_and_findings_become_plain_facts(rule: Rule[object]) -> None:
    ill: object = catalogue_of(train={"a": 30, "b": 1}, valid={"a": 1})
    if isinstance(rule, CorruptPictures):
        ill = [PictureProblem("a.jpg", "broken", "skipped")]
    finding = only(list(rule.judge(ill)))
    assert finding.to_dict()["rule"] == rule.name
    assert list(rule.judge(ill)) == [finding]  # no state between calls
