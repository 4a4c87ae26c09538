"""Reports of trainings on real photographs, a healthy one and sick ones, opened as their reader
would."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import vizsla
from vizsla import Recipe
from vizsla.data.sources import open_source
from vizsla.debugging import DebugSettings
from vizsla.profiling import ProfileSettings

SECTIONS = {
    "Summary", "Learning curves", "Classes", "Confusion matrix", "Most wrong pictures", "Losses",
    "Gradients", "Weights", "Recorded", "Profile findings", "Where the time went", "Start-up",
    "Machine over time", "Steps", "Cost", "Machine", "Data", "Settings", "Versions and hardware",
    "Reproduce",
}  # fmt: skip
WITHIN = "() => document.documentElement.scrollWidth <= innerWidth"
QUICK = ProfileSettings(profile_interval_ms=100)
# A network for photographs of 64 pixels, from nothing.
SMALL = {
    "model": "test_resnet", "weights": "none", "unfreeze": "all", "size_px": 64, "workers": 0,
    "precision": "fp32",
}  # fmt: skip


def _some(archive: Path, each: int, manifest: Path) -> Path:
    """A manifest of so many photographs of each class."""
    catalogue = open_source(archive)
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for label, name in enumerate(catalogue.classes):
            rows = [row for row in range(len(catalogue)) if catalogue.labels[row] == label]
            writer.writerows((catalogue.path(row), name.folder) for row in rows[:each])
    return manifest


@pytest.fixture(scope="module")
def reports(
    photographs: Path, real_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The report of a healthy training, and of three that are not."""
    folder = tmp_path_factory.mktemp("photographs")
    pets = _some(photographs / "pets5.zip", 80, folder / "pets.csv")
    trash = _some(photographs / "trash6.zip", 80, folder / "trash.csv")
    few = _some(photographs / "trash6.zip", 20, folder / "few.csv")
    head = Recipe(model="mobilenetv2_100", weights=str(real_weights), size_px=96, epochs=3)
    small = Recipe(**SMALL, epochs=3)
    trainings: dict[str, tuple[Path, Recipe, DebugSettings | bool]] = {
        "healthy": (pets, head, True),
        "unsteady": (pets, head.replace(lr=30.0), True),
        "overfit": (few, small.replace(epochs=40, lr=2e-3, batch_size=16), True),
        "starved": (trash, small.replace(unfreeze="head", cache="off", epochs=5), True),
    }
    return {
        name: vizsla.report(
            vizsla.train(data, recipe, runs=folder / name, debug=debug, profile=QUICK).path,
            price=1.2,
        )
        for name, (data, recipe, debug) in trainings.items()
    }


def _rules(page: Any, tones: tuple[str, ...] = ("error", "warning")) -> set[str]:
    """The rules that a page tells of, as its findings name them."""
    heads = page.locator(", ".join(f".notes li.{tone} h3" for tone in tones)).all_inner_texts()
    return {head.split("·")[0].split()[1] for head in heads if "·" in head}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["healthy", "unsteady", "overfit", "starved"])
def test_report_has_every_section_and_fits(
    reports: dict[str, Path], open_page: Any, name: str, width: int
) -> None:
    page = open_page(reports[name], width, dark=width == 390)
    assert {title.strip() for title in page.locator("main h2").all_inner_texts()} >= SECTIONS
    assert page.locator(".figure.failed").count() == 0
    assert page.evaluate(WITHIN)
    assert reports[name].stat().st_size < 6_000_000


def test_healthy_training_is_told_so(reports: dict[str, Path], open_page: Any) -> None:
    page = open_page(reports["healthy"], 1280)
    # What else runs on the machine, and how long it takes to begin, is no fault of the training.
    assert _rules(page) <= {"slow_start", "crowded_machine"}
    assert "Finished" in page.locator(".lead").inner_text()


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("unsteady", {"learning_rate_too_high", "weight_update_ratio"}),
        ("overfit", {"overfit"}),
        ("starved", {"data_starved"}),
    ],
)
def test_illness_is_told_with_its_cure(
    reports: dict[str, Path], open_page: Any, name: str, rules: set[str]
) -> None:
    page = open_page(reports[name], 1280)
    assert _rules(page) & rules
    assert page.locator("#section-1 .notes li").count() >= 1  # in the summary


def test_classes_are_sorted_where_their_reader_asks(
    reports: dict[str, Path], open_page: Any
) -> None:
    page = open_page(reports["overfit"], 1280)
    classes = page.locator("section", has=page.locator("h2", has_text="Classes")).first
    classes.locator("thead button").first.click()
    names = classes.locator("tbody th").all_inner_texts()
    assert names == sorted(names)
    assert len(names) == 6


def test_pointing_at_a_step_shows_the_machine(reports: dict[str, Path], open_page: Any) -> None:
    page = open_page(reports["starved"], 1280)
    section = page.locator("section", has=page.locator("h2", has_text="Machine over time"))
    section.scroll_into_view_if_needed()
    plot = section.locator(".figure .xy .scatterlayer .points path").first
    plot.wait_for(state="attached")
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = section.locator(".hoverlayer")
    hover.locator("text").first.wait_for(state="attached")
    told = hover.text_content()
    assert "step" in told.lower()
    assert "%" in told


def test_wrong_pictures_are_shown(reports: dict[str, Path], open_page: Any) -> None:
    page = open_page(reports["starved"], 1280)
    pictures = page.locator("main img")
    assert pictures.count() >= 5
    sizes = pictures.evaluate_all("all => all.map(one => one.naturalWidth)")
    assert min(sizes) > 0
