"""One report for every run, whatever was recorded of it, and one for several."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import vizsla
from vizsla.cli import run
from vizsla.errors import RunError
from vizsla.profiling import profile
from vizsla.tuning.study import Study

OF_THE_RUN = ["Summary", "Learning curves", "Classes", "Confusion matrix", "Most wrong pictures"]
AT_THE_END = ["Data", "Settings", "Versions and hardware", "Reproduce"]
DEBUGGED = ["Losses", "Gradients", "Weights", "Recorded"]
PROFILED = ["Profile findings", "Where the time went", "Machine over time", "Steps", "Cost"]
MOST_BYTES = 6_000_000


def page_of(path: Path, output: Path, **more: Any) -> str:
    written = vizsla.report(path, output=output / "page.html", **more)
    assert written.stat().st_size < MOST_BYTES
    return written.read_text(encoding="utf-8")


def titles(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>\s*([^<]*?)\s*<", page)


def test_report_of_a_run_with_everything(profiled_run: Any, tmp_path: Path) -> None:
    found = titles(page_of(profiled_run.path, tmp_path))
    wanted = [*OF_THE_RUN, *DEBUGGED, *PROFILED, *AT_THE_END]
    assert [title for title in found if title in wanted] == wanted
    assert len(found) == len(set(found))


def test_report_of_a_plain_run_says_how_to_get_the_rest(finished_run: Any, tmp_path: Path) -> None:
    page = page_of(finished_run.path, tmp_path)
    found = titles(page)
    assert {*OF_THE_RUN, *AT_THE_END, "Debugger", "Profile"} <= set(found)
    assert "vizsla train --debug" in page
    assert "vizsla train --profile" in page


def test_report_lies_in_the_run_unless_told_otherwise(finished_run: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run.path, copy)
    assert vizsla.report(copy) == copy / "report.html"


def test_cost_is_told_where_a_price_is_given(profiled_run: Any, tmp_path: Path) -> None:
    assert "3.6 an hour" in page_of(profiled_run.path, tmp_path, price="3.6")
    assert "3.6 an hour" not in page_of(profiled_run.path, tmp_path)


@pytest.mark.parametrize("price", ["cheap", "-1", "nan", "inf", "1,2"])
def test_price_that_is_none_is_refused(
    finished_run: Any, price: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(finished_run.path), f"--price={price}"]) == 2
    said = capsys.readouterr().err
    assert price in said
    assert "a number" in said


def test_run_that_still_trains_is_reported_so_far(profiled_run: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(profiled_run.path, copy, ignore=shutil.ignore_patterns("bundle", "evaluation*"))
    with vizsla.RunFolder(copy).locked():
        page = page_of(copy, tmp_path)
    assert "so far" in page
    assert "still training" in page


def test_damaged_lines_are_left_out_and_counted(profiled_run: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(profiled_run.path, copy)
    for name in ("metrics.jsonl", "steps.jsonl", "profile-algo-1.jsonl", "timeline.jsonl"):
        with (copy / name).open("ab") as file:
            file.write(b'{"step": \xff}\n[1]\n{"kind":"sample","time":"soon"}\n{}\n')
    page = page_of(copy, tmp_path)
    assert titles(page) == titles(page_of(profiled_run.path, tmp_path))
    assert re.search(r"could not be read|damaged", page)


def test_report_of_a_loop_of_ones_own(tmp_path: Path) -> None:
    with profile(tmp_path / "mine", interval_ms=100) as profiler:
        for _ in profiler.loading(range(5)):
            with profiler.phase("forward"):
                time.sleep(0.03)
            profiler.step()
    found = titles(page_of(tmp_path / "mine", tmp_path))
    assert {"Summary", "Debugger", "Where the time went", "Machine over time"} <= set(found)


def test_findings_of_all_observers_are_in_the_summary(profiled_run: Any, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(profiled_run.path, copy)
    line = {
        "rule": "onnx", "severity": "error", "where": "bundle", "meaning": "It answers otherwise.",
        "advice": "Export again.", "measured": None, "threshold": None, "evidence": {},
    }  # fmt: skip
    with (copy / "findings.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    page = page_of(copy, tmp_path)
    assert page.count("It answers otherwise.") >= 2  # in the summary, and among the findings


def test_several_runs_are_compared_beside_them(
    profiled_run: Any, finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, one in (("a", finished_run), ("b", profiled_run)):
        shutil.copytree(one.path, tmp_path / "runs" / name)
    assert run(["report", str(tmp_path / "runs" / "a"), str(tmp_path / "runs" / "b")]) == 0
    page = tmp_path / "runs" / "comparison.html"
    assert page.name in capsys.readouterr().out
    assert page.stat().st_size < MOST_BYTES
    assert "Settings" in titles(page.read_text(encoding="utf-8"))


def test_study_is_reported_as_before(finished_study: Study, tmp_path: Path) -> None:
    assert "All trials" in titles(page_of(finished_study.folder.path, tmp_path))


def test_folder_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run.toml"):
        vizsla.report(tmp_path)
