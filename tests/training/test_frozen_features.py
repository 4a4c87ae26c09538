"""Training on kept trunk outputs gives what training on pictures gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.training.events import Observer
from vizsla.training.frozen_features import TrunkPasses


class Noting(Observer):
    """Keeps what was told of the trunk."""

    def __init__(self) -> None:
        self.passes: list[TrunkPasses] = []

    def on_features(self, passes: TrunkPasses, **more: object) -> None:
        self.passes.append(passes)


@pytest.mark.parametrize(
    ("architecture", "unfreeze"),
    [
        ("test_resnet", "head"),
        ("test_resnet", "last"),
        ("test_vit", "2"),
        ("test_efficientnet", "last"),
    ],
)
def test_kept_outputs_train_the_same_network(fit, architecture: str, unfreeze: str) -> None:  # type: ignore[no-untyped-def]
    noted = Noting()
    settings = {
        "model": architecture,
        "unfreeze": unfreeze,
        "epochs": 3,
        "ema_decay": 0.5,
        "lr": 1e-3,
    }
    kept = fit(observers=(noted,), **settings)
    whole = fit(feature_memory_gb=0, **settings)
    assert len(noted.passes) == 1
    assert whole.setup.features is None
    for one, other in zip(kept.run.epochs(), whole.run.epochs(), strict=True):
        assert one.valid.accuracy == other.valid.accuracy
        assert one.valid.loss == pytest.approx(other.valid.loss, abs=1e-3)
        assert one.train.loss == pytest.approx(other.train.loss, abs=1e-3)
    for name, tensor in kept.weights.items():
        torch.testing.assert_close(tensor, whole.weights[name], rtol=1e-3, atol=1e-3)


def test_each_view_is_computed_once(fit, dogs: DrawnDataset) -> None:  # type: ignore[no-untyped-def]
    noted = Noting()
    fitted = fit(observers=(noted,), unfreeze="head", epochs=4)
    counts = {split: len(fitted.setup.catalogue.rows(split)) for split in ("train", "valid")}
    assert noted.passes[0].pictures == sum(counts.values())
    assert noted.passes[0].passes == 2 * counts["train"] + counts["valid"]


@pytest.mark.parametrize(
    "settings",
    [
        {"train_crop": "random"},
        {"augment": "randaugment"},
        {"mixup": 0.2},
        {"cutmix": 0.2},
        {"random_erasing": 0.2},
        {"vflip": 0.5},
        {"unfreeze": "all"},
        {"epochs": 1},
        {"feature_memory_gb": 1e-6},
    ],
)
def test_outputs_are_not_kept_where_they_do_not_recur_or_fit(
    fit, settings: dict[str, object]
) -> None:  # type: ignore[no-untyped-def]
    fitted = fit(**{"unfreeze": "head", "epochs": 2, **settings})
    assert fitted.setup.features is None


def test_a_corrupt_picture_is_left_out_and_told_of(fit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = draw_dataset(
        tmp_path / "dogs", breeds=2, pictures_per_breed=20, size_px=48, faults=Faults(truncated=3)
    )
    fitted = fit(data=drawn.folder, unfreeze="head", epochs=2)
    assert {problem.path for problem in fitted.run.problems()} == set(drawn.truncated)
    assert fitted.setup.features is not None
    pictures = fitted.run.epochs()[-1].train.pictures
    assert pictures == len(fitted.setup.catalogue.rows("train")) - 3
