"""Sections of a profile, as a report has them."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vizsla.findings import Finding
from vizsla.profiling.recorded import Profile
from vizsla.profiling.report import section_without, sections_of, tiles_of
from vizsla.records import Section

BEGAN = 1_700_000_000.0
HOSTILE = "<script>alert(1)</script>"
FOUND = [
    Finding("mild", "info", "steps", "It is so.", "Leave it."),
    Finding("step_outlier", "warning", "step 20", "A step is slow.", "Look.", 9.0, 3.0),
]


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_steps(run: Path, rank: int = 0) -> None:
    """A start of 2 s and its first step, 20 steps of which the last is slow, an evaluation."""
    seconds = [0.5, *[0.1] * 18, 2.0]
    times = [BEGAN + 2 + sum(seconds[:at]) for at in range(len(seconds))]
    shares = {"data_wait": 0.5, "forward": 0.3, "other": 0.2}
    phases = {name: [share * one for one in seconds] for name, share in shares.items()}
    steps = {"step": list(range(1, 21)), "time": times, "seconds": seconds, "phases": phases}
    spans = [("import", 0.0, 1.5), ("weights", 1.5, 0.5), ("first_step", 2.0, 0.5),
             ("evaluation", 2 + sum(seconds), 1.0)]  # fmt: skip
    operators = [{"name": f"aten::{HOSTILE}", "self_ms": 12.5, "calls": 1200}]
    write(
        run / (f"timeline-rank{rank}.jsonl" if rank else "timeline.jsonl"),
        [
            {"kind": "session", "time": BEGAN, "node": "algo-1", "rank": rank},
            *(
                {"kind": "span", "name": name, "time": BEGAN + at, "seconds": took}
                for name, at, took in spans
            ),
            {"kind": "steps", **steps},
            {"kind": "fact", "name": "trace", "steps": "5:7", "operators": operators},
        ],
    )


def write_samples(run: Path, node: str = "algo-1", cores: int = 4) -> None:
    about = {"kind": "about", "node": node, "host": HOSTILE, "cores": cores, "interval_ms": 500,
             "memory_bytes": 16e9, "processor": "Abacus 7", "missing": ["temperature"],
             "gpus": [{"name": "Loom", "memory_bytes": 24e9}]}  # fmt: skip
    samples = [
        {"kind": "sample", "time": BEGAN + at / 2, "cpu": [40.0] * cores, "memory_bytes": 8e9,
         "tree_cpu": 120.0, "gpus": [{"utilization": 55, "memory_bytes": 6e9, "watts": 100}]}
        for at in range(16)
    ]  # fmt: skip
    write(run / f"profile-{node}.jsonl", [about, *samples])


def titled(sections: list[Section]) -> dict[str, Section]:
    assert len({one.title for one in sections}) == len(sections)
    return {one.title: one for one in sections}


def words_of(section: Section) -> str:
    return " ".join(cell for row in section.rows for cell in row)


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    write_steps(tmp_path)
    write_samples(tmp_path)
    with gzip.open(tmp_path / "trace-5-7.json.gz", "wt") as file:
        file.write("{}")
    return Profile(tmp_path)


def test_every_part_of_a_profile_has_its_section(profile: Profile) -> None:
    sections = titled(sections_of(profile, FOUND, 1.2))
    assert list(sections) == [
        "Profile findings", "Where the time went", "Start-up", "Machine over time", "Cores",
        "Steps", "Trace", "Cost", "Machine",
    ]  # fmt: skip
    drawn = [one.title for one in sections.values() if one.figure is not None]
    assert drawn == ["Where the time went", "Machine over time", "Cores", "Steps"]
    assert [note.tone for note in sections["Profile findings"].notes] == ["warning", "info"]
    assert "measured 9 (threshold 3)" in sections["Profile findings"].notes[0].head
    assert not any(one.mark for one in sections.values())


def test_time_is_told_by_part_and_its_share(profile: Profile) -> None:
    sections = titled(sections_of(profile, []))
    rows = {row[0]: row for row in sections["Where the time went"].rows}
    assert float(rows["start-up"][1]) == pytest.approx(2.5)
    assert float(rows["steps"][1]) == pytest.approx(3.8)
    assert float(rows["– waiting for data"][1]) == pytest.approx(1.9)
    assert [row[0] for row in sections["Start-up"].rows] == ["imports", "weights", "first step"]
    assert sections["Steps"].rows[0][:2] == ("20", "2.000")


def test_machine_is_described_with_what_it_does_not_count(profile: Profile) -> None:
    machine = words_of(titled(sections_of(profile, []))["Machine"])
    for words in ("Abacus 7", HOSTILE, "Loom", "1.2 of 4 cores", "55 % busy", "temperature"):
        assert words in machine


def test_cost_is_energy_and_money_where_there_is_a_price(profile: Profile) -> None:
    free, priced = (titled(sections_of(profile, [], one))["Cost"].text for one in (None, 3600.0))
    assert "kWh" in free or "Wh" in free
    assert "--price" in free
    assert "at 3600 an hour" in priced
    assert "Money: 8" in priced
    tiles = {tile.name: tile for tile in tiles_of(profile, 3600.0)}
    assert {"Step", "Waiting for data", "Energy", "Cost"} == set(tiles)
    assert tiles["Step"].value == "100 ms"
    assert tiles["Cost"].words == "at 3600 an hour"


def test_each_of_several_machines_has_its_price_and_each_process_a_row(tmp_path: Path) -> None:
    for rank in (0, 1):
        write_steps(tmp_path, rank)
        write_samples(tmp_path, f"algo-{rank + 1}")
    profile = Profile(tmp_path)
    sections = titled(sections_of(profile, [], 1.0))
    assert "for each of 2 machines" in sections["Cost"].text
    assert [row[:3] for row in sections["Processes"].rows] == [
        ("0", "algo-1", "20"), ("1", "algo-1", "20"),
    ]  # fmt: skip
    assert "algo-2" in sections["Machine over time"].text


def test_run_that_goes_on_is_marked_so(profile: Profile) -> None:
    sections = titled(sections_of(profile, [], running=True))
    assert {sections[one].mark for one in ("Where the time went", "Steps", "Cost")} == {"so far"}


def test_samples_alone_say_how_to_see_steps(tmp_path: Path) -> None:
    write_samples(tmp_path, cores=2)
    sections = titled(sections_of(Profile(tmp_path), []))
    assert list(sections) == [
        "Profile findings", "Where the time went", "Machine over time", "Cost", "Machine",
    ]  # fmt: skip
    assert "vizsla.profiling.profile" in sections["Where the time went"].text


def test_steps_alone_are_told_too(tmp_path: Path) -> None:
    write_steps(tmp_path)
    sections = titled(sections_of(Profile(tmp_path), []))
    assert "Machine over time" not in sections
    assert sections["Steps"].figure is not None
    assert "not known" in sections["Cost"].text
    assert "Energy" not in {tile.name for tile in tiles_of(Profile(tmp_path))}


def test_damaged_lines_are_counted_and_the_rest_is_told(profile: Profile) -> None:
    with (profile.run / "timeline.jsonl").open("a") as file:
        file.write('{"kind":"span","na\n')
    again = Profile(profile.run)
    assert "1 line of the recording" in titled(sections_of(again, []))["Profile findings"].text


def test_trace_lists_its_operators_and_how_to_open_it(profile: Profile) -> None:
    trace = titled(sections_of(profile, []))["Trace"]
    assert "trace-5-7.json.gz" in trace.text
    assert "ui.perfetto.dev" in trace.text
    assert trace.rows == ((f"aten::{HOSTILE}", "12.5", "1,200"),)


def test_profile_that_has_only_begun_is_no_error(tmp_path: Path) -> None:
    write(tmp_path / "profile-algo-1.jsonl", [{"kind": "about", "node": "algo-1"}])
    write(tmp_path / "timeline.jsonl", [{"kind": "session", "time": BEGAN, "rank": 0}])
    sections = titled(sections_of(Profile(tmp_path), [], 1.0, running=True))
    assert "Where the time went" in sections
    assert tiles_of(Profile(tmp_path)) == []


def test_report_of_a_run_without_profile_says_how_to_get_one() -> None:
    section = section_without()
    assert "not profiled" in section.text
    assert "vizsla train --profile" in section.code
    assert "vizsla profile --" in section.code


def test_reading_a_profile_needs_no_torch() -> None:
    code = (
        "import sys, vizsla.profiling.report, vizsla.cli.profile_summary, vizsla.profiling.judging,"
        "vizsla.profiling.command; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
