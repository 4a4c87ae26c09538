"""The whole report of a run: every section in order. What a debugger or profiler recorded is told
by sections of theirs, which the caller brings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vizsla.findings import Finding
from vizsla.notes import notes_of
from vizsla.records import Section, Tile
from vizsla.reports import classes, confusion, curves, dataset, mistakes, recipe, summary
from vizsla.reports.reading import Reading, as_findings, read_run
from vizsla.runs.folder import RunFolder


def compose(
    run: RunFolder,
    findings: Sequence[Finding | Mapping[str, Any]],
    debug: Sequence[Section],
    profile: Sequence[Section],
    tiles: Sequence[Tile],
) -> tuple[str, list[Section]]:
    """The sentences under the title, and all sections of the page.

    `findings` are all that is known of the run, worst first; those that neither `debug` nor
    `profile` tells of get a section. `tiles` are more figures for the summary. Raises
    `RunError` where the folder's `run.toml` cannot be read; whatever else is missing or damaged
    leaves a section that says so.
    """
    reading = read_run(run)
    known = as_findings(findings)
    if reading.command:
        return summary.lead_of(reading, known), _of_command(reading, known, debug, profile, tiles)
    parts = {
        "Result": [
            summary.section_of(reading, known, tiles),
            curves.section_of(reading),
            classes.section_of(reading),
            *confusion.sections_of(reading),
            mistakes.section_of(reading),
        ],
        "Training": debug,
        "Time and machine": profile,
        "Run": [
            *dataset.sections_of(reading),
            *_untold(known, [*debug, *profile]),
            *recipe.sections_of(reading),
        ],
    }
    return summary.lead_of(reading, known), list(_of_parts(parts))


def _of_command(
    reading: Reading,
    known: Sequence[Finding],
    debug: Sequence[Section],
    profile: Sequence[Section],
    tiles: Sequence[Tile],
) -> list[Section]:
    """Of any command that was profiled there are neither classes nor settings to tell of."""
    _, *made_with = recipe.sections_of(reading)
    return [
        summary.section_of(reading, known, tiles),
        *profile,
        *debug,
        *_untold(known, [*debug, *profile]),
        *made_with,
    ]


def _of_parts(parts: Mapping[str, Sequence[Section]]) -> Iterator[Section]:
    for part, sections in parts.items():
        yield from (replace(section, part=part) for section in sections)


def _untold(findings: Sequence[Finding], sections: Sequence[Section]) -> list[Section]:
    """The findings that no section tells of, such as those on the data and on the export."""
    notes = [f"{note.head}\n{note.text}" for section in sections for note in section.notes]
    left = [one for one in findings if not any(one.meaning in note for note in notes)]
    if not left:
        return []
    text = "On the data, the training and the export."
    return [Section("Other findings", text, notes=notes_of(left))]
