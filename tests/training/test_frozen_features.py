"""Training on kept trunk outputs gives what training on pictures gives, and computes them once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vizsla import Recipe, train
from vizsla.data.record_store import RecordStore
from vizsla.data.synthetic import DrawnDataset, Faults, draw_dataset
from vizsla.errors import DataError, StorageError
from vizsla.findings import Finding
from vizsla.models import trunk_engines
from vizsla.places import cache_folder
from vizsla.runs.folder import RunFolder, list_runs
from vizsla.training import frozen_features
from vizsla.training.events import Observer
from vizsla.training.frozen_features import TrunkPasses
from vizsla.training.trunk_pass import WantedViews

FROZEN = {"unfreeze": "head", "epochs": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))


class Noting(Observer):
    """Keeps what was told of the trunk."""

    def __init__(self) -> None:
        self.passes: list[TrunkPasses] = []
        self.findings: list[Finding] = []
        self.notes: list[str] = []

    def on_features(self, passes: TrunkPasses, findings: list[Finding], **more: object) -> None:
        self.passes.append(passes)
        self.findings += findings

    def on_note(self, note: str, **more: object) -> None:
        self.notes.append(note)


@pytest.fixture
def passes_of(fit) -> Callable[..., TrunkPasses]:  # type: ignore[no-untyped-def]
    """Call as `fit`, for what became of the trunk's outputs."""

    def of(**settings: Any) -> TrunkPasses:
        noted = Noting()
        fit(observers=(noted,), **{**FROZEN, **settings})
        return noted.passes[0]

    return of


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("architecture", "unfreeze"),
    [
        ("test_resnet", "head"),
        ("test_resnet", "last"),
        ("test_vit", "2"),
        ("test_efficientnet", "last"),
    ],
)
def test_kept_outputs_train_the_same_network(  # type: ignore[no-untyped-def]
    fit, architecture: str, unfreeze: str, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    noted = Noting()
    settings = {
        "model": architecture,
        "unfreeze": unfreeze,
        "epochs": 3,
        "ema_decay": 0.5,
        # Adam makes a whole step of a gradient's sign, and so of what rounding left of zero.
        "optimizer": "sgd",
        "lr": 1e-2,
    }
    kept = fit(observers=(noted,), trunk_engine=engine, **settings)
    whole = fit(cache="off", **settings)
    assert noted.passes[0].engine == engine
    assert whole.setup.features is None
    for one, other in zip(kept.run.epochs(), whole.run.epochs(), strict=True):
        assert one.valid.accuracy == other.valid.accuracy
        assert one.valid.loss == pytest.approx(other.valid.loss, abs=1e-3)
        assert one.train.loss == pytest.approx(other.train.loss, abs=1e-3)
    pictures = torch.randn(4, 3, 64, 64)
    for fitted in (kept, whole):
        fitted.setup.network.eval()
    torch.testing.assert_close(
        kept.setup.network(pictures), whole.setup.network(pictures), rtol=0, atol=1e-3
    )


def test_each_view_is_computed_once_and_never_again(fit) -> None:  # type: ignore[no-untyped-def]
    noted = Noting()
    first = fit(observers=(noted,), **FROZEN)
    counts = {split: len(first.setup.catalogue.rows(split)) for split in ("train", "valid", "test")}
    views = 2 * counts["train"] + counts["valid"] + counts["test"]
    assert noted.passes[0].pictures == sum(counts.values())
    assert (noted.passes[0].passes, noted.passes[0].cached) == (views, 0)
    fit(observers=(noted,), **{**FROZEN, "lr": 0.02, "epochs": 3, "batch_size": 4})
    assert (noted.passes[1].passes, noted.passes[1].cached) == (0, views)
    assert noted.passes[1].engine == "none"


def test_a_run_from_the_cache_ends_with_the_same_bits(fit) -> None:  # type: ignore[no-untyped-def]
    first, second = fit(**FROZEN), fit(**FROZEN)
    for name, tensor in first.weights.items():
        assert torch.equal(tensor, second.weights[name]), name


def test_another_split_or_seed_computes_only_views_that_it_lacks(passes_of) -> None:  # type: ignore[no-untyped-def]
    first = passes_of(hflip=0)
    mirrored = passes_of()
    assert mirrored.cached == first.passes
    assert passes_of(label_smoothing=0.1, class_balance="sampling").passes == 0


def test_a_changed_picture_is_computed_again_and_no_other(  # type: ignore[no-untyped-def]
    passes_of, dogs: DrawnDataset, tmp_path: Path
) -> None:
    shutil.copytree(dogs.folder, tmp_path / "dogs")
    before = passes_of(data=tmp_path / "dogs")
    changed = sorted((tmp_path / "dogs" / "train").rglob("*.*"))[3]
    Image.new("RGB", (80, 80), (10, 200, 30)).save(changed)
    after = passes_of(data=tmp_path / "dogs")
    assert (after.passes, after.cached) == (2, before.passes - 2)


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
        {"cache": "off"},
    ],
)
def test_outputs_are_not_kept_where_they_do_not_recur(fit, settings: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    fitted = fit(**{**FROZEN, **settings})
    assert fitted.setup.features is None


def test_drawn_views_are_kept_like_any(passes_of) -> None:  # type: ignore[no-untyped-def]
    settings = {"views": 3, "train_crop": "random", "augment": "randaugment"}
    first, second = passes_of(**settings), passes_of(**settings, lr=0.1)
    assert first.views == 5
    assert (second.passes, second.cached) == (0, first.passes)
    assert passes_of().passes == 0  # the picture and its mirror image are there too


def test_a_corrupt_picture_is_left_out_and_told_of_every_time(fit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = draw_dataset(
        tmp_path / "dogs", breeds=2, pictures_per_breed=20, size_px=48, faults=Faults(truncated=3)
    )
    for corrupt, left_out in (("skip", 3), ("repair", 0), ("repair", 0), ("skip", 3)):
        fitted = fit(data=drawn.folder, corrupt=corrupt, **FROZEN)
        assert {problem.path for problem in fitted.run.problems()} == set(drawn.truncated)
        assert fitted.setup.features is not None
        pictures = fitted.run.epochs()[-1].train.pictures
        assert pictures == len(fitted.setup.catalogue.rows("train")) - left_out


def test_a_corrupt_picture_is_fatal_where_it_should_be(fit, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    drawn = draw_dataset(
        tmp_path / "dogs", breeds=2, pictures_per_breed=20, size_px=48, faults=Faults(truncated=3)
    )
    with pytest.raises(DataError, match="Remove or replace it"):
        fit(data=drawn.folder, corrupt="fail", **FROZEN)


def test_damaged_outputs_are_computed_again_with_a_warning(fit) -> None:  # type: ignore[no-untyped-def]
    before = fit(**FROZEN)
    (records,) = (cache_folder() / "features").glob("*/records")
    with records.open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3" * 100)
    noted = Noting()
    after = fit(observers=(noted,), **FROZEN)
    assert noted.passes[0].passes > 0
    assert "damaged" in noted.findings[0].meaning
    for name, tensor in before.weights.items():
        assert torch.equal(tensor, after.weights[name]), name


def test_a_full_disk_leaves_the_outputs_in_memory(fit, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    whole = fit(**FROZEN)
    shutil.rmtree(cache_folder())
    append, calls = RecordStore.append, []

    def full_after_two(self: RecordStore, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) > 2:
            raise StorageError("No space left on device.")
        return append(self, *rest)

    monkeypatch.setattr(RecordStore, "append", full_after_two)
    noted = Noting()
    fitted = fit(observers=(noted,), **FROZEN)
    assert noted.passes[0].place == "memory"
    assert "No space left" in noted.findings[0].meaning
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, fitted.weights[name]), name


def test_without_disk_and_memory_the_run_goes_on_uncached(  # type: ignore[no-untyped-def]
    fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Tiny:
        total = 100

    monkeypatch.setattr(frozen_features.psutil, "virtual_memory", Tiny)
    fitted = fit(cache_gb=1e-6, **FROZEN)
    assert fitted.setup.features is None
    assert "cache_gb" in fitted.setup.note
    assert "memory" in fitted.setup.note


def test_a_cache_that_cannot_be_written_is_no_obstacle(  # type: ignore[no-untyped-def]
    passes_of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "file" / "cache"))
    assert passes_of().place == "memory"


def test_a_wanted_engine_does_not_find_what_another_made(passes_of) -> None:  # type: ignore[no-untyped-def]
    first = passes_of()
    assert passes_of(trunk_engine="onnxruntime").passes == first.passes
    assert passes_of(deterministic=True).passes == 0


def test_memory_alone_keeps_no_outputs_on_disk(passes_of) -> None:  # type: ignore[no-untyped-def]
    assert passes_of(cache="memory").place == "memory"
    assert not (cache_folder() / "features").exists()


def test_a_picture_replaced_meanwhile_is_told_of(  # type: ignore[no-untyped-def]
    fit, dogs: DrawnDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(dogs.folder, tmp_path / "dogs")
    victim = sorted((tmp_path / "dogs" / "train").rglob("*.*"))[-1]
    read_digests = WantedViews.read_digests

    def replace_afterwards(self: WantedViews) -> None:
        read_digests(self)
        Image.new("RGB", (80, 80), (10, 200, 30)).save(victim)

    monkeypatch.setattr(WantedViews, "read_digests", replace_afterwards)
    noted = Noting()
    fit(data=tmp_path / "dogs", observers=(noted,), **FROZEN)
    assert victim.name in noted.findings[0].meaning
    monkeypatch.undo()
    monkeypatch.setenv("VIZSLA_CACHE", str(tmp_path / "cache"))
    fit(data=tmp_path / "dogs", observers=(noted,), **FROZEN)
    assert noted.passes[1].passes == 0  # what was kept was kept under the new picture's key


TRAINING = Recipe(
    model="test_resnet", weights="none", unfreeze="head", size_px=64, epochs=2, batch_size=8,
    workers=0, precision="fp32",
)  # fmt: skip
SLOW = """
import sys, time
from vizsla.models import trunk_engines
compute = trunk_engines.TorchTrunk.__call__
def slowly(self, pixels):
    time.sleep(0.3)
    print("pass", flush=True)
    return compute(self, pixels)
trunk_engines.TorchTrunk.__call__ = slowly
from vizsla.cli import main
main()
"""


def start(data: Path, runs: Path) -> subprocess.Popen[str]:
    """A training in a process of its own, whose passes take their time and are told of."""
    runs.mkdir()
    (runs / "recipe.toml").write_text(TRAINING.to_toml())
    command = [
        sys.executable, "-c", SLOW, "train", str(data),
        "--recipe", str(runs / "recipe.toml"), "--runs", str(runs),
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def final(run: RunFolder) -> tuple[dict[str, Any], bytes]:
    trunk = run.trunk()
    assert trunk is not None
    return trunk, (run.bundle / "model.safetensors").read_bytes()


def test_a_killed_pass_is_taken_up_where_it_was(dogs: DrawnDataset, tmp_path: Path) -> None:
    with start(dogs.folder, tmp_path / "killed") as child:
        assert child.stdout is not None
        seen = 0
        while seen < 3:  # the example of its shape, and two batches
            seen += child.stdout.readline() == "pass\n"
        time.sleep(0.15)
        os.kill(child.pid, signal.SIGKILL)
    (killed,) = list_runs(tmp_path / "killed")
    resumed = final(train(resume=killed.path))
    assert resumed[0]["cached"] in (trunk_engines.BATCH, 2 * trunk_engines.BATCH)
    shutil.rmtree(cache_folder())
    whole = final(train(dogs.folder, TRAINING, runs=tmp_path / "whole"))
    assert whole[0]["passes"] == resumed[0]["passes"] + resumed[0]["cached"]
    assert resumed[1] == whole[1]


def test_two_trainings_at_once_compute_each_view_once(dogs: DrawnDataset, tmp_path: Path) -> None:
    with start(dogs.folder, tmp_path / "one") as one, start(dogs.folder, tmp_path / "two") as two:
        one.communicate()
        two.communicate()
    assert (one.returncode, two.returncode) == (0, 0)
    (first,), (second,) = list_runs(tmp_path / "one"), list_runs(tmp_path / "two")
    done = sorted(final(run)[0]["passes"] for run in (first, second))
    assert done[0] == 0
    assert done[1] > 0
    assert final(first)[1] == final(second)[1]
