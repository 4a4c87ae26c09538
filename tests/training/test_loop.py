"""The loop: what trains, what stays, what is chosen, and what a seed decides."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vizsla import Recipe, train
from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.errors import DataError
from vizsla.records import EpochRecord
from vizsla.training import setup as training_setup
from vizsla.training.checkpoint import Checkpoint, CheckpointStore
from vizsla.training.events import Observer, StepFacts, TrainingFacts
from vizsla.training.stopping import StopRequest

Fit = Callable[..., Any]

EVERY_CHANCE = {
    "drop_rate": 0.2,
    "train_crop": "random",
    "augment": "randaugment",
    "random_erasing": 0.3,
    "mixup": 0.2,
    "cutmix": 1.0,
}


class Watcher(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.facts: TrainingFacts | None = None
        self.steps: list[StepFacts] = []
        self.epochs: list[EpochRecord] = []

    def on_start(self, facts: TrainingFacts, **more: Any) -> None:
        self.facts = facts

    def on_step(self, facts: StepFacts, **more: Any) -> None:
        self.steps.append(facts)

    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        self.epochs.append(record)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(fitted: Any) -> set[str]:
    """Names of the weights and statistics that are not what they were at the start."""
    return {
        name for name, value in fitted.weights.items() if not torch.equal(value, fitted.start[name])
    }


def test_one_seed_makes_equal_weights_and_another_does_not(fit: Fit) -> None:
    first, again = (fit(**EVERY_CHANCE, seed=5, deterministic=True) for _ in range(2))
    other = fit(**EVERY_CHANCE, seed=6)
    assert same(first.weights, again.weights)
    assert not same(first.weights, other.weights)
    losses = [[step["loss"] for step in one.run.steps()] for one in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]


def test_loader_processes_change_no_weight(fit: Fit) -> None:
    assert same(fit(**EVERY_CHANCE, workers=0).weights, fit(**EVERY_CHANCE, workers=1).weights)


@pytest.mark.parametrize("head_only", [True, False])
def test_what_is_frozen_keeps_weights_and_statistics(fit: Fit, head_only: bool) -> None:
    fitted = fit(unfreeze="head" if head_only else "layer4", drop_path_rate=0.2)
    parts = {name.split(".")[0] for name in moved(fitted)}
    assert parts == {"fc"} if head_only else {"fc", "layer4"}
    if not head_only:
        assert any(name.endswith("running_mean") for name in moved(fitted))


def test_all_trains_every_weight(fit: Fit) -> None:
    still = set(fit().weights) - moved(fit())
    assert not still


def test_two_batches_accumulate_to_one_of_twice_the_size(fit: Fit) -> None:
    plain: dict[str, Any] = {
        "model": "test_vit",
        "optimizer": "sgd",
        "momentum": 0.0,
        "lr": 0.05,
        "schedule": "constant",
        "epochs": 2,
    }
    whole, halves = fit(**plain, batch_size=8), fit(**plain, batch_size=4, accumulate=2)
    assert len(whole.run.steps()) == len(halves.run.steps()) == 12
    assert moved(whole)
    for name, value in whole.weights.items():
        torch.testing.assert_close(halves.weights[name], value, rtol=0, atol=1e-6)
    losses = [[step["loss"] for step in one.run.steps()] for one in (whole, halves)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_last_group_of_fewer_batches_is_an_update_too(fit: Fit) -> None:
    watcher = Watcher()
    fit(batch_size=8, accumulate=4, epochs=2, observers=(watcher,))
    assert watcher.facts is not None
    assert watcher.facts.steps_per_epoch == 2
    assert [step.pictures for step in watcher.steps] == [32, 16, 32, 16]


@pytest.mark.parametrize("norm", [0.01, 1.0])
def test_clipping_bounds_the_update(fit: Fit, norm: float) -> None:
    settings = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    fitted = fit(**settings, schedule="constant", batch_size=48, clip_norm=norm)
    trained = dict(fitted.setup.network.named_parameters())
    step = torch.cat(
        [(value - fitted.start[name]).flatten() for name, value in trained.items()]
    ).norm()
    assert len(fitted.run.steps()) == 1
    assert step.item() == pytest.approx(norm, rel=1e-3)


def test_the_average_is_judged_and_kept_as_the_best(fit: Fit) -> None:
    fitted = fit(ema_decay=0.9, epochs=2)
    average = fitted.setup.average.module.state_dict()
    assert fitted.setup.judged is fitted.setup.average.module
    assert not same(average, fitted.weights)
    last = fitted.setup.checkpoints.load_last()
    assert same(last.averaged, average)
    assert same(last.network, fitted.weights)
    if fitted.run.epochs()[-1].best:
        assert same(fitted.setup.checkpoints.load_best(), average)


def test_the_bundle_holds_the_average(dogs: DrawnDataset, tmp_path: Path) -> None:
    recipe = Recipe(
        model="test_vit", weights="none", unfreeze="all", size_px=64, epochs=1, workers=0,
        batch_size=16, ema_decay=0.8,
    )  # fmt: skip
    run = train(dogs.folder, recipe, runs=tmp_path)
    checkpoint = torch.load(run.checkpoints / "last.pt", weights_only=True)
    bundled = load_file(run.bundle / "model.safetensors")
    assert same(bundled, checkpoint["averaged"])
    assert not same(bundled, checkpoint["network"])


@pytest.mark.parametrize("monitor", ["accuracy", "macro_f1", "loss"])
def test_the_monitored_figure_picks_the_best_epoch(fit: Fit, monitor: str) -> None:
    fitted = fit(monitor=monitor, epochs=4, lr=0.02, optimizer="sgd")
    records = fitted.run.epochs()
    sign = -1 if monitor == "loss" else 1
    # Equals are decided by the loss.
    values = [(sign * getattr(record.valid, monitor), -record.valid.loss) for record in records]
    for at, record in enumerate(records):
        assert record.best == (at == 0 or values[at] > max(values[:at]))
    last = fitted.setup.checkpoints.load_last().progress
    assert last.best_epoch == 1 + values.index(max(values))


def test_training_stops_after_so_many_epochs_without_a_better_one(fit: Fit) -> None:
    # A rate this small changes no answer, so the first epoch stays the best.
    fitted = fit(lr=1e-9, monitor="accuracy", unfreeze="head", patience=2, epochs=9)
    records = fitted.run.epochs()
    assert [record.best for record in records] == [True, False, False]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> DrawnDataset:
    """Breeds of 14, 5 and 2 training pictures."""
    folder = tmp_path_factory.mktemp("drawn") / "uneven"
    return draw_dataset(
        folder, breeds=3, pictures_per_breed=20, size_px=64, seed=2, faults=Faults(imbalance=7)
    )


@pytest.mark.parametrize("balance", ["loss", "sampling"])
def test_imbalance_is_answered(fit: Fit, uneven: DrawnDataset, balance: str) -> None:
    plain = fit(data=uneven.folder)
    balanced = fit(data=uneven.folder, class_balance=balance)
    assert not same(plain.weights, balanced.weights)
    if balance == "loss":
        weights = balanced.setup.loss.weight
        assert weights[2] > weights[1] > weights[0]
    else:
        seen = plain.run.epochs()[0].train, balanced.run.epochs()[0].train
        assert seen[0].pictures == seen[1].pictures


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> DrawnDataset:
    """Three training pictures are cut off."""
    folder = tmp_path_factory.mktemp("drawn") / "broken"
    return draw_dataset(
        folder, breeds=2, pictures_per_breed=20, size_px=64, seed=3, faults=Faults(truncated=3)
    )


def listed(run_path: Path) -> dict[str, str]:
    with (run_path / "corrupt_pictures.csv").open(newline="") as file:
        return {row["path"]: row["action"] for row in csv.DictReader(file)}


@pytest.mark.parametrize(("corrupt", "action"), [("skip", "skipped"), ("repair", "repaired")])
def test_corrupt_pictures_are_listed_and_never_fatal(
    fit: Fit, broken: DrawnDataset, corrupt: str, action: str
) -> None:
    run = fit(data=broken.folder, corrupt=corrupt, epochs=2).run
    assert listed(run.path) == dict.fromkeys(broken.truncated, action)
    (found,) = (one for one in run.findings() if one["rule"] == "corrupt_pictures")
    assert found["measured"] == 3
    assert set(found["evidence"]["paths"]) == set(broken.truncated)
    lost = 3 if corrupt == "skip" else 0
    assert [record.train.pictures for record in run.epochs()] == [28 - lost] * 2


def test_a_corrupt_picture_is_fatal_only_on_request(fit: Fit, broken: DrawnDataset) -> None:
    with pytest.raises(DataError, match="corrupt set to skip or repair") as caught:
        fit(data=broken.folder, corrupt="fail")
    assert any(path in str(caught.value) for path in broken.truncated)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_without_one_sound_picture_is_an_error(
    fit: Fit, dogs: DrawnDataset, tmp_path: Path, split: str
) -> None:
    data = shutil.copytree(dogs.folder, tmp_path / "data")
    for path in (data / split).rglob("*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"None of the (training|validation) pictures could be"):
        fit(data=data)
    (run,) = (tmp_path / "runs").iterdir()
    assert len(listed(run)) == (48 if split == "train" else 12)


def test_a_batch_that_loses_all_its_pictures_is_no_update(fit: Fit, broken: DrawnDataset) -> None:
    watcher = Watcher()
    fit(data=broken.folder, batch_size=1, observers=(watcher,), model="test_vit")
    assert [step.pictures for step in watcher.steps].count(0) == 3
    assert len(watcher.steps) == 28


def test_bf16_trains_and_keeps_its_weights_in_float32(fit: Fit) -> None:
    watcher = Watcher()
    fitted = fit(precision="bf16", observers=(watcher,), epochs=2)
    assert watcher.facts is not None
    assert watcher.facts.precision == "bf16"
    assert {value.dtype for _, value in fitted.setup.network.named_parameters()} == {torch.float32}
    assert moved(fitted)
    assert not same(fitted.weights, fit(precision="fp32", epochs=2).weights)


def test_the_compile_switch_reaches_torch(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def note(module: torch.nn.Module) -> torch.nn.Module:
        compiled.append(module)
        return module  # a real compilation takes half a minute and a C++ compiler

    monkeypatch.setattr(torch, "compile", note)
    fitted = fit(compile=True)
    assert compiled == [fitted.setup.network]
    assert moved(fitted)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "lamb"])
def test_a_few_epochs_learn_with_every_optimizer(fit: Fit, optimizer: str) -> None:
    losses = [record.train.loss for record in fit(optimizer=optimizer, epochs=3).run.epochs()]
    assert losses[-1] < losses[0]


def test_every_step_and_epoch_is_told_and_recorded(fit: Fit) -> None:
    watcher = Watcher()
    fitted = fit(epochs=2, observers=(watcher,))
    assert [step.step for step in watcher.steps] == list(range(1, 13))
    assert [step["step"] for step in fitted.run.steps()] == list(range(1, 13))
    assert [step["loss"] for step in fitted.run.steps()] == [float(s.loss) for s in watcher.steps]
    assert [record.epoch for record in watcher.epochs] == [1, 2]
    assert fitted.run.epochs() == watcher.epochs
    assert all(record.train.pictures == 48 for record in watcher.epochs)
    assert all(record.valid.pictures == 12 for record in watcher.epochs)


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({"unfreeze": "head"}, "no"),
        ({"unfreeze": "head", "cache": "off"}, "bf16"),
        ({"unfreeze": "head", "mixup": 0.2}, "bf16"),
        ({"unfreeze": "last"}, "bf16"),
        ({"unfreeze": "head", "precision": "bf16"}, "bf16"),
    ],
)
def test_a_kept_head_trains_in_float32_where_bf16_is_native(
    settings: dict[str, Any], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_setup, "computes_bf16", lambda device: True)
    recipe = Recipe(model="test_resnet", weights="none", **settings)
    assert training_setup.start_accelerator(recipe).mixed_precision == precision


def test_saving_takes_a_share_of_the_time_and_nothing_is_lost(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    save = CheckpointStore.save_last

    def slowly(store: CheckpointStore, checkpoint: Checkpoint) -> None:
        time.sleep(0.2)
        saved.append(checkpoint.progress.epoch)
        save(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save_last", slowly)
    fitted = fit(epochs=6)
    assert saved[0] == 1
    assert saved[-1] == 6  # the last epoch is saved, however soon it comes
    assert len(saved) < 6
    assert fitted.setup.checkpoints.load_last().progress.epoch == 6


def test_an_observer_that_asks_makes_the_epoch_the_last(fit: Fit) -> None:
    class Asking(Watcher):
        def on_start(self, facts: TrainingFacts, stop: StopRequest, **more: Any) -> None:
            self.stop = stop

        def on_epoch(self, record: EpochRecord, **more: Any) -> None:
            if record.epoch == 2:
                self.stop.ask("seen enough")

    fitted = fit(epochs=5, observers=(Asking(),))
    assert len(fitted.run.epochs()) == 2
