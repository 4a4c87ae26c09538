"""Real photographs and real weights: what users come for, on a part that takes seconds."""

from __future__ import annotations

import csv
from pathlib import Path

from vizsla import Recipe, load_bundle, train
from vizsla.data.sources import open_source

PICTURES_PER_BREED = 20


def test_a_head_on_photographs_is_learnt_and_the_second_run_passes_nothing(
    photographs: Path, real_weights: Path, tmp_path: Path
) -> None:
    catalogue = open_source(photographs / "pets5.zip")
    with (tmp_path / "some.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for label, name in enumerate(catalogue.classes):
            rows = [row for row in range(len(catalogue)) if catalogue.labels[row] == label]
            for row in rows[:PICTURES_PER_BREED]:
                writer.writerow([catalogue.path(row), name.folder])
    recipe = Recipe(model="mobilenetv2_100", weights=str(real_weights), solver="lbfgs")
    first, second = (train(tmp_path / "some.csv", recipe, runs=tmp_path / "runs") for _ in range(2))
    judged = [first.evaluation(split) for split in ("valid", "test")]
    assert sum(figures["accuracy"] * figures["pictures"] for figures in judged) >= 18  # of 20
    assert first.trunk()["passes"] == 180
    assert (second.trunk()["passes"], second.trunk()["cached"]) == (0, 180)
    assert second.evaluation("test") == first.evaluation("test")
    picture = catalogue.path(0)
    assert load_bundle(second.bundle).predict(picture).class_name == catalogue.classes[0].name
