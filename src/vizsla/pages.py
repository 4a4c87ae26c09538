"""The pages of runs and studies: each part tells of its own, and here they are put together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vizsla.debugging.judging import judge_run
from vizsla.debugging.report import lead_of, section_without, sections_of
from vizsla.debugging.rules import RULES as DEBUG_RULES
from vizsla.debugging.tensors import NothingCaptured
from vizsla.errors import SettingError
from vizsla.findings import Finding, worst_first
from vizsla.profiling import report as profiling
from vizsla.profiling.judging import judge_profile
from vizsla.profiling.recorded import NotProfiled
from vizsla.profiling.rules import RULES as PROFILE_RULES
from vizsla.records import Section, Tile
from vizsla.reports import comparison
from vizsla.reports.page import write_page
from vizsla.reports.reading import as_findings
from vizsla.reports.run_page import compose
from vizsla.runs.folder import RunFolder
from vizsla.tuning import report as tuning
from vizsla.tuning.study import Study

_COMPARISON = "comparison.html"


@dataclass(frozen=True)
class _Told:
    """What one observer tells of a run: sections, findings as they are now, figures."""

    sections: Sequence[Section]
    findings: Sequence[Finding] = ()
    tiles: Sequence[Tile] = ()


def write_run(run: RunFolder, page: Path, price: float | None = None) -> None:
    """Write the page of all that is known of a run."""
    debugged, profiled = _debugged(run), _profiled(run, price)
    known = [*debugged.findings, *profiled.findings, *_others(run)]
    lead, sections = compose(
        run, worst_first(known), debugged.sections, profiled.sections, profiled.tiles
    )
    write_page(page, run.name, lead, sections)


def write_debugged(run: RunFolder, page: Path) -> None:
    """Write the page of what a run's debugger captured. Raises `RunError` if nothing."""
    judged = judge_run(run)
    about = judged.record.tensors, judged.findings
    write_page(page, run.name, lead_of(*about), sections_of(*about))


def write_comparison(runs: Sequence[RunFolder], page: Path | None = None) -> Path:
    """Write the page of several runs, beside them unless told where."""
    parents = {run.path.absolute().parent for run in runs}
    beside = Path(os.path.relpath(parents.pop())) if len(parents) == 1 else Path()
    page = page or beside / _COMPARISON
    lead, sections = comparison.sections_of(runs)
    write_page(page, "Comparison of runs", lead, sections)
    return page


def write_study(study: Study, page: Path) -> None:
    """Write the page of a study."""
    write_page(page, study.folder.name, tuning.lead_of(study), tuning.sections_of(study))


def as_price(text: str | float | None) -> float | None:
    """A price an hour as it is typed. Raises `SettingError` for what is none."""
    if text is None:
        return None
    try:
        price = float(text)
    except ValueError:
        price = float("nan")
    if not 0 <= price < float("inf"):
        raise SettingError(
            f"price is {text!r}, but must be a number, 0 or more: what the machine costs an hour, "
            "such as 1.2"
        )
    return price


def _debugged(run: RunFolder) -> _Told:
    try:
        judged = judge_run(run)
    except NothingCaptured:
        return _Told([section_without()])
    return _Told(sections_of(judged.record.tensors, judged.findings), judged.findings)


def _profiled(run: RunFolder, price: float | None) -> _Told:
    try:
        judged = judge_profile(run)
    except NotProfiled:
        return _Told([profiling.section_without()])
    profile, running = judged.record.profile, run.status() == "running"
    sections = profiling.sections_of(profile, judged.findings, price, running)
    return _Told(sections, judged.findings, profiling.tiles_of(profile, price))


def _others(run: RunFolder) -> list[Finding]:
    """Findings that nobody has judged anew: of the data, of the export, of users' own rules."""
    judged = {**DEBUG_RULES, **PROFILE_RULES}
    return as_findings([line for line in run.findings() if line["rule"] not in judged])
