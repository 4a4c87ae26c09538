"""The profiler beside vizsla's own trainings: nothing changes, and it is known where time went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import Linear

import vizsla
from vizsla.data.synthetic import DrawnDataset
from vizsla.errors import RunError, SettingError, StorageError
from vizsla.profiling.probes import Probe, _copy_of
from vizsla.profiling.settings import ProfileSettings
from vizsla.settings import Recipe
from vizsla.training.setup import computes_bf16, start_accelerator

BASE = Recipe(
    model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=2, workers=0,
    batch_size=12, precision="fp32",
)  # fmt: skip
QUICK = ProfileSettings(profile=True, profile_interval_ms=100)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Or sums differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def profiled(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training with everything profiled. Do not change it."""
    settings = ProfileSettings(profile_interval_ms=100, trace_steps="3:5")
    recipe = BASE.replace(drop_rate=0.2, mixup=0.2)
    runs = tmp_path_factory.mktemp("runs")
    return vizsla.train(dogs.folder, recipe, runs=runs, profile=settings, debug=True)


def test_weights_are_the_very_same_with_and_without(
    profiled: Any, dogs: DrawnDataset, tmp_path: Path
) -> None:
    plain = vizsla.train(dogs.folder, Recipe(**profiled.facts()["recipe"]), runs=tmp_path)
    first, second = (
        torch.load(run.bundle / "model.pth", weights_only=True) for run in (plain, profiled)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_step_is_there_with_its_phases(profiled: Any) -> None:
    steps = profiled.profile.steps()
    assert steps.step.tolist() == [line["step"] for line in profiled.steps()]
    for name in ("data_wait", "transfer", "forward", "backward", "optimiser", "debugger"):
        assert steps.phases[name].sum() > 0, name
    assert sum(steps.phases.values()) == pytest.approx(steps.seconds, abs=1e-4)


def test_what_lies_between_steps_is_there(profiled: Any) -> None:
    names = [span.name for span in profiled.profile.spans()]
    assert names.count("evaluation") == 2
    assert {"checkpoint", "final", "trace"} <= set(names)
    assert {"data", "model", "cache", "setup", "first_step"} <= set(profiled.profile.startup())


def test_machine_was_sampled_from_the_run_on_to_its_end(profiled: Any) -> None:
    samples = profiled.profile.samples()
    assert samples.about["interval_ms"] == 100
    final = next(span for span in profiled.profile.spans() if span.name == "final")
    assert samples.time[-1] >= final.time
    assert samples.columns["tree_bytes"][-1] > 50e6


def test_trace_lies_in_the_run(profiled: Any) -> None:
    assert [path.name for path in profiled.profile.traces()] == ["trace-3-5.json.gz"]


def test_training_without_profiler_says_how_to_profile(finished_run: Any) -> None:
    with pytest.raises(RunError, match="--profile"):
        _ = vizsla.open_run(finished_run.path).profile


@pytest.mark.skipif(
    not computes_bf16(torch.device("cpu")), reason="this processor does not compute bf16 natively"
)
def test_gain_of_bf16_is_measured_where_it_is_unused(profiled: Any) -> None:
    gain = profiled.profile.fact("bf16_gain")
    assert gain["gain"] == pytest.approx(gain["fp32_seconds"] / gain["bf16_seconds"], rel=0.01)


def test_frozen_work_without_a_cache_is_measured(dogs: DrawnDataset, tmp_path: Path) -> None:
    recipe = BASE.replace(unfreeze="head", cache="off", epochs=3)
    run = vizsla.train(dogs.folder, recipe, runs=tmp_path, profile=QUICK)
    train, valid = (run.facts()["data"]["pictures"][split] for split in ("train", "valid"))
    found = run.profile.fact("frozen_work")
    assert found["passes"] == 3 * (train + valid)
    assert found["saved"] == found["passes"] - 2 * train - valid  # as they are and mirrored
    assert found["trunk_seconds_per_picture"] > 0
    assert "cache" in found["why"]


def test_frozen_work_is_measured_in_bf16_too(dogs: DrawnDataset, tmp_path: Path) -> None:
    recipe = BASE.replace(unfreeze="head", cache="off", epochs=3, precision="bf16")
    run = vizsla.train(dogs.folder, recipe, runs=tmp_path, profile=QUICK)
    assert run.profile.fact("frozen_work")["saved"] > 0


def test_measurements_compute_with_copies_of_networks_in_bf16_too() -> None:
    accelerator = start_accelerator(BASE.replace(precision="bf16"))
    network = accelerator.prepare(torch.nn.BatchNorm1d(3))
    copied = _copy_of(network.train())
    copied(torch.randn(4, 3) + 5)
    assert copied.num_batches_tracked == 1
    assert network.num_batches_tracked == 0


def test_kept_outputs_leave_no_frozen_work(dogs: DrawnDataset, tmp_path: Path) -> None:
    recipe = BASE.replace(unfreeze="head", epochs=3)
    run = vizsla.train(dogs.folder, recipe, runs=tmp_path, profile=QUICK)
    assert run.profile.fact("frozen_work") is None


def test_fit_at_once_is_profiled_too(dogs: DrawnDataset, tmp_path: Path) -> None:
    recipe = BASE.replace(unfreeze="head", solver="lbfgs")
    run = vizsla.train(dogs.folder, recipe, runs=tmp_path, profile=QUICK)
    names = {span.name for span in run.profile.spans()}
    assert {"fit", "evaluation", "cache", "final"} <= names
    assert not len(run.profile.steps())


def test_training_that_was_killed_is_profiled_on(dogs: DrawnDataset, tmp_path: Path) -> None:
    code = (
        "import vizsla\n"
        "from vizsla.settings import Recipe\n"
        f"recipe = Recipe(**{BASE.replace(epochs=400, checkpoint_every=2).model_dump()!r})\n"
        f"vizsla.train({str(dogs.folder)!r}, recipe, runs={str(tmp_path)!r}, profile=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/checkpoints/last.pt")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2.5)
        os.kill(process.pid, signal.SIGKILL)
    (path,) = tmp_path.iterdir()
    so_far = vizsla.open_run(path).profile
    assert so_far.damaged == 0
    last = int(so_far.steps().step[-1])
    facts = (path / "run.toml").read_text().replace("epochs = 400", f"epochs = {last // 6 + 2}")
    (path / "run.toml").write_text(facts)
    run = vizsla.train(resume=path)
    steps = run.profile.steps()
    assert steps.step.tolist() == list(range(1, len(steps) + 1))
    assert len(run.profile.sessions()) == 2


def test_resumed_run_takes_no_other_profiler(finished_run: Any) -> None:
    with pytest.raises(SettingError, match="profiler"):
        vizsla.train(resume=finished_run.path, profile=True)


def _probe(network: torch.nn.Module, pictures: int = 8) -> Probe:
    parts = SimpleNamespace(network=network, computed=network, optimizer=object())
    facts = SimpleNamespace(precision="fp32", note=None)
    probe = Probe(facts, parts)  # type: ignore[arg-type]
    network(torch.rand(pictures, 3, 8, 8))
    return probe


def _epoch(seconds: float, pictures: int) -> Any:
    return SimpleNamespace(train_seconds=seconds, train=SimpleNamespace(pictures=pictures))


def test_measuring_touches_nothing_and_calls_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizsla.profiling.probes.computes_bf16", lambda device: True)
    norm = torch.nn.BatchNorm2d(3)
    network = torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Dropout(), Linear(192, 2))
    network[3].weight.requires_grad_(False)
    probe, calls = _probe(network), []
    network[3].register_forward_hook(lambda *_: calls.append(1))
    before = {name: one.clone() for name, one in network.state_dict().items()}
    state = torch.get_rng_state()
    gain = probe.bf16_gain([_epoch(1.0, 100)])
    assert gain is not None
    assert gain["pictures"] == 8
    assert not calls
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one, before[name]) for name, one in network.state_dict().items())
    assert all(one.grad is None for one in network.parameters())
    assert len(network[3]._forward_hooks) == 1


def test_slow_network_is_measured_with_few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizsla.profiling.probes.computes_bf16", lambda device: True)
    network = torch.nn.Sequential(torch.nn.Flatten(), Linear(192, 2))
    gain = _probe(network).bf16_gain([_epoch(100.0, 800)])  # an eighth of a second each
    assert gain is not None
    assert gain["pictures"] == 4


def test_settings_that_cannot_be_kept_end_no_training(
    dogs: DrawnDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("vizsla.profiling.observer.write_settings", full)
    run = vizsla.train(dogs.folder, BASE.replace(epochs=1), runs=tmp_path, profile=QUICK)
    assert run.status() == "finished"
    assert len(run.profile.steps())
