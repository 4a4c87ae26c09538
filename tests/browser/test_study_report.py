"""The report of a real study, opened as its reader would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vizsla import report
from vizsla.tuning.study import Study


@pytest.fixture(scope="module")
def page_of_study(finished_study: Study) -> Path:
    return report(finished_study.folder.path)


@pytest.mark.parametrize("width", [1280, 390])
def test_every_section_of_a_study_is_drawn(
    page_of_study: Path, finished_study: Study, open_page: Any, width: int
) -> None:
    page = open_page(page_of_study, width)
    headings = page.locator("main h2").all_inner_texts()
    wanted = {
        "Best trials", "Top 10", "History", "Importances", "Parallel coordinates", "Slices",
        "Contour", "Curves", "All trials", "How it was searched",
    }  # fmt: skip
    assert wanted <= set(headings)
    assert page.locator(".figure").count() == 7
    assert page.locator(".figure.failed").count() == 0
    best = finished_study.best
    assert f"{best.values['accuracy']:.4f}" in page.locator("header, main").first.inner_text()
    rows = page.locator("section", has=page.locator("h2", has_text="All trials")).locator(
        "tbody tr"
    )
    assert rows.count() == 6
    first = rows.first.inner_text().split()
    assert first[:2] == ["1", str(best.number)]
    assert first[-1] == "finished"
