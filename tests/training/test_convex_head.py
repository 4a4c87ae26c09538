"""The solver finds the optimum, and the network that it leaves is the one that was judged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from vizsla import Recipe, train
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import DataError, ModelError, SettingError
from vizsla.pipeline import TrainingJob
from vizsla.training import convex_head
from vizsla.training.checkpoint import CheckpointStore
from vizsla.training.events import Observers
from vizsla.training.recording import RunRecorder
from vizsla.training.setup import Setup, prepare

SETTINGS = {
    "model": "test_resnet", "weights": "none", "unfreeze": "head", "size_px": 64,
    "solver": "lbfgs", "workers": 0, "precision": "fp32",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))


def setup_of(data: Path, runs: Path, **settings: object) -> tuple[TrainingJob, Setup]:
    job = TrainingJob.started(data, Recipe(**{**SETTINGS, **settings}), runs, [])
    observers = Observers([RunRecorder(job.run_folder)])
    checkpoints = CheckpointStore(job.run_folder.checkpoints)
    return job, prepare(
        job.network, job.catalogue, job.recipe, checkpoints, observers, job.accelerator
    )


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "class_balance": "loss"}])
def test_each_fit_is_the_optimum_of_its_decay(
    dogs: DrawnDataset, tmp_path: Path, settings: dict[str, object]
) -> None:
    _, setup = setup_of(dogs.folder, tmp_path, **settings)
    head = setup.network.get_classifier()
    split = convex_head._split(setup, head, "train")
    scale, shift = convex_head._standardisation(split.inputs, centred=True)
    standardised = ((split.inputs - shift) / scale).double()
    for decay, _ in convex_head._path(setup, head, split):
        # The head, taken back to standardised features, in float64.
        weight = (head.weight.detach() * scale).double().requires_grad_()
        bias = (head.bias.detach() + head.weight.detach() @ shift).double().requires_grad_()
        weights = setup.loss.weight.double() if setup.loss.weight is not None else None
        loss = nn.functional.cross_entropy(
            standardised @ weight.T + bias, split.labels, weights,
            label_smoothing=setup.recipe.label_smoothing,
        ) + decay / 2 * weight.square().sum()  # fmt: skip
        loss.backward()
        gradient = torch.cat([weight.grad.flatten(), bias.grad])
        assert gradient.norm() < 2e-3
        if decay < 0.01:
            break


def test_the_best_decay_is_kept_and_is_the_whole_network(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    run = train(dogs.folder, Recipe(**SETTINGS), runs=tmp_path)
    records = run.epochs()
    best = min(records, key=lambda record: record.valid.loss)
    assert [record.best for record in records].count(True) >= 1
    assert next(record for record in reversed(records) if record.best) == best
    assert [record.weight_decay for record in records] == list(convex_head.DECAYS[: len(records)])
    valid = run.evaluation("valid")
    assert valid["accuracy"] == best.valid.accuracy
    assert valid["loss"] == pytest.approx(best.valid.loss, abs=1e-4)
    # The bundle's own code, from pictures to answer, agrees with what was judged on features.
    from vizsla.api import evaluate

    answered = evaluate(run.bundle, dogs.folder, split="valid")
    assert answered.metrics.accuracy == valid["accuracy"]
    assert answered.metrics.loss == pytest.approx(valid["loss"], abs=1e-3)


def test_it_is_at_least_as_good_as_epochs(dogs: DrawnDataset, tmp_path: Path) -> None:
    solved = train(dogs.folder, Recipe(**SETTINGS), runs=tmp_path)
    trained = train(
        dogs.folder, Recipe(**{**SETTINGS, "solver": "gradient", "epochs": 5}), runs=tmp_path
    )
    best = [min(record.train.loss for record in run.epochs()) for run in (solved, trained)]
    assert best[0] < best[1]


def test_two_fits_end_with_the_same_bits(dogs: DrawnDataset, tmp_path: Path) -> None:
    runs = [train(dogs.folder, Recipe(**SETTINGS), runs=tmp_path) for _ in range(2)]
    one, two = ((run.bundle / "model.safetensors").read_bytes() for run in runs)
    assert one == two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unfreeze": "layer4"}, "needs unfreeze head, and unfreeze is layer4"),
        ({"cache": "off"}, "set cache to disk or memory"),
        ({"mixup": 0.2}, "mixup means nothing to solver lbfgs"),
        ({"ema_decay": 0.9}, "ema_decay means nothing"),
        ({"class_balance": "sampling"}, "set class_balance to loss"),
        ({"train_crop": "random"}, "set views"),
    ],
)
def test_settings_that_contradict_it_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**{**SETTINGS, **settings})


def test_a_validation_split_of_which_nothing_decodes_is_refused(
    dogs: DrawnDataset, tmp_path: Path
) -> None:
    shutil.copytree(dogs.folder, tmp_path / "dogs")
    for picture in (tmp_path / "dogs" / "valid").glob("*/*"):
        picture.write_bytes(b"nothing")
    with pytest.raises(DataError, match="None of the validation pictures"):
        train(tmp_path / "dogs", Recipe(**SETTINGS), runs=tmp_path / "runs")


def test_a_head_that_is_not_one_linear_layer_is_refused(dogs: DrawnDataset, tmp_path: Path) -> None:
    _, setup = setup_of(dogs.folder, tmp_path)
    setup.network.get_classifier = lambda: nn.Conv2d(4, 3, 1)
    with pytest.raises(ModelError, match="fits one linear layer.*is Conv2d"):
        convex_head.fit_head(setup)
