"""Small real trainings, sick on purpose: the rule for it fires, all are quiet on a healthy one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vizsla.debugging import watch
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.answers import ClassImbalance, Confusion
from vizsla.debugging.rules.base import DebugRule
from vizsla.debugging.rules.confidence import CalibrationDrift, LabelNoise
from vizsla.debugging.rules.continuity import DivergedFromCheckpoint, StalledTraining
from vizsla.debugging.rules.inputs import CheckInputImages
from vizsla.debugging.rules.losses import LossNotDecreasing, Overfit, Overtraining
from vizsla.debugging.tensors import Tensors
from vizsla.findings import Finding
from vizsla.runs.folder import RunFolder

CLASSES, SIDE = 4, 4
Pictures = tuple[Tensor, Tensor]
RULES = (
    LossNotDecreasing, Overfit, Overtraining, DivergedFromCheckpoint, StalledTraining,
    ClassImbalance, Confusion, CheckInputImages, LabelNoise, CalibrationDrift,
)  # fmt: skip


def pictures(*counts: int, seed: int = 1, spread: float = 0.5) -> Pictures:
    """Grey pictures (n, 1, SIDE, SIDE) around one of their own for each class, mixed."""
    corners = torch.randn(CLASSES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    chance = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=chance)]
    noise = torch.randn(len(labels), 1, SIDE, SIDE, generator=chance)
    return corners[labels] + spread * noise, labels


def network(width: int = 0) -> nn.Module:
    torch.manual_seed(0)
    if not width:
        return nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, CLASSES))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE**2, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def train(
    path: Path,
    data: Pictures,
    valid: Pictures | None = None,
    *,
    model: nn.Module | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    lr: float = 0.2,
    epochs: int = 4,
    batch: int = 32,
    shuffle: bool = True,
    first_step: int = 0,
) -> TrainingRecord:
    """Train, watched at each step, with an evaluation after each epoch; its record."""
    model, loss_fn = model or network(), nn.CrossEntropyLoss()
    updates = optimizer(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(0)
    with watch(
        model, path, loss_fn=loss_fn, optimizer=updates, rules="none", every=1,
        capture="losses,inputs,labels,predictions", first_step=first_step,
    ) as debugger:  # fmt: skip
        for _ in range(epochs):
            count = len(data[1])
            chosen = torch.randperm(count, generator=order) if shuffle else torch.arange(count)
            for part in chosen.split(batch):
                updates.zero_grad()
                loss_fn(model(data[0][part]), data[1][part]).backward()
                updates.step()
                debugger.step()
            if valid is not None:
                model.eval()
                with torch.no_grad():
                    for x, y in zip(valid[0].split(100), valid[1].split(100)):
                        loss_fn(model(x), y)
                model.train()
    return TrainingRecord.read(path)


def only(rule: DebugRule, record: TrainingRecord) -> Finding:
    (finding,) = rule.judge(record)
    return finding


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: Any) -> TrainingRecord:
    path = tmp_path_factory.mktemp("runs") / "healthy"
    return train(path, pictures(*[80] * 4), pictures(*[60] * 4, seed=2), epochs=6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_healthy_training_is_left_in_peace(
    healthy: TrainingRecord, rule: type[DebugRule]
) -> None:
    assert healthy.tensors.evaluations()[-1].valid_loss < 0.2
    assert not list(rule().judge(healthy))


def test_a_learning_rate_of_0(tmp_path: Path) -> None:
    record = train(tmp_path / "run", pictures(*[80] * 4), lr=0.0)
    assert "learning rate is 0" in only(LossNotDecreasing(), record).advice


def test_a_learning_rate_that_is_far_too_small(tmp_path: Path) -> None:
    record = train(tmp_path / "run", pictures(*[80] * 4), lr=1e-6, epochs=6, batch=16)
    assert "Try a learning rate of 1e-05" in only(LossNotDecreasing(), record).advice


def test_a_learning_rate_that_is_far_too_large(tmp_path: Path) -> None:
    data = pictures(*[80] * 4, spread=2.0)
    record = train(tmp_path / "run", data, model=network(32), lr=3.0, epochs=4)
    finding = only(LossNotDecreasing(), record)
    assert finding.severity == "error"
    assert "learning rate to 0.3," in finding.advice


def test_classes_that_come_one_after_the_other(tmp_path: Path) -> None:
    points, labels = pictures(*[200] * 4)
    order = labels.argsort()
    record = train(tmp_path / "run", (points[order], labels[order]), shuffle=False, epochs=1)
    finding = only(ClassImbalance(samples=400), record)
    assert "shuffle=True" in finding.advice
    assert finding.measured == pytest.approx(1, abs=0.2)


def test_labels_that_are_learned_by_heart(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    data, valid = pictures(*[16] * 4), pictures(*[60] * 4, seed=2)
    random = data[0], torch.randint(CLASSES, (64,), generator=chance)
    record = train(
        tmp_path / "run", random, valid, model=network(64), optimizer=torch.optim.Adam, lr=0.01,
        epochs=16,
    )  # fmt: skip
    overfit = only(Overfit(), record)
    assert overfit.severity == "warning"
    overtrained = only(Overtraining(), record)
    assert overtrained.severity == "warning"
    assert overfit.evidence["best_step"] <= 9
    assert overtrained.evidence["best_step"] <= 9
    drift = only(CalibrationDrift(), record)
    assert "too sure" in drift.meaning


@pytest.mark.parametrize("loaded", [True, False])
def test_a_resume_that_forgets_its_checkpoint(tmp_path: Path, loaded: bool) -> None:
    model, data = network(), pictures(*[80] * 4)
    train(tmp_path / "run", data, model=model)
    again = network()
    if loaded:
        again.load_state_dict(model.state_dict())
    record = train(tmp_path / "run", data, model=again, first_step=40)
    if loaded:
        assert not list(DivergedFromCheckpoint().judge(record))
    else:
        assert "without the weights" in only(DivergedFromCheckpoint(), record).meaning


def test_a_training_that_hangs(healthy: TrainingRecord) -> None:
    run = RunFolder(healthy.tensors.path)
    time.sleep(0.02)
    hanging = TrainingRecord.of(run, Tensors(run.path), running=True)
    finding = only(StalledTraining(threshold=0.01), hanging)
    assert finding.evidence["step"] == 59
    assert not list(StalledTraining().judge(hanging))


def test_a_class_that_is_rare(tmp_path: Path) -> None:
    record = train(tmp_path / "run", pictures(200, 200, 200, 8), epochs=2)
    finding = only(ClassImbalance(), record)
    assert finding.evidence["layer"] == "class 3"
    assert finding.measured == pytest.approx(25)


def test_a_class_that_looks_like_another(tmp_path: Path) -> None:
    (points, labels), valid = pictures(*[80] * 4), pictures(*[60] * 4, seed=2)
    points, valid_points = points.clone(), valid[0].clone()
    points[labels == 3] = points[labels == 2].roll(1, 0)
    valid_points[valid[1] == 3] = valid_points[valid[1] == 2].roll(1, 0)
    record = train(tmp_path / "run", (points, labels), (valid_points, valid[1]), epochs=6)
    recalls, pairs = Confusion().judge(record)
    assert set(recalls.evidence["classes"]) <= {"class 2", "class 3"}
    assert set(pairs.evidence["pairs"]) <= {"class 2 as class 3", "class 3 as class 2"}
    assert recalls.evidence["step"] == 59


def test_pictures_that_are_not_normalised(tmp_path: Path) -> None:
    points, labels = pictures(*[200] * 4)
    low, high = points.min(), points.max()
    bytes_ = 255 * (points - low) / (high - low)
    record = train(tmp_path / "run", (bytes_, labels), lr=1e-5, epochs=1)
    finding = only(CheckInputImages(), record)
    assert finding.evidence["mean"] == pytest.approx(float(bytes_.mean()), rel=0.01)
    assert finding.evidence["std"] == pytest.approx(float(bytes_.std()), rel=0.01)
    normalised = (bytes_ - finding.evidence["mean"]) / finding.evidence["std"]
    well = train(tmp_path / "well", (normalised, labels), epochs=1)
    assert not list(CheckInputImages().judge(well))


def test_labels_that_are_wrong(tmp_path: Path) -> None:
    points, labels = pictures(*[100] * 4)
    wrong = labels.clone()
    wrong[::7] = (wrong[::7] + 1) % CLASSES
    model = network()
    train(tmp_path / "before", (points, labels), model=model, lr=1.0)  # it knows these classes
    well = train(tmp_path / "well", (points, labels), model=model, lr=0.005, epochs=2)
    assert not list(LabelNoise().judge(well))
    record = train(tmp_path / "run", (points, wrong), model=model, lr=0.005, epochs=2)
    finding = only(LabelNoise(), record)
    assert finding.measured == pytest.approx(1 / 7, abs=0.03)
    assert "class 1 answered as class 0" in finding.evidence["pairs"]
