"""Small real things that tests share: drawn pictures, one finished training, real photographs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vizsla.data.synthetic import DrawnDataset, draw_dataset
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe, Settings
from vizsla.tuning.study import Study

SHARED = Path(__file__).resolve().parents[2] / "shared"

# A network of ImageNet's shape and a toy's size, on 64-pixel pictures; in float32, so that tests
# see the same figures on processors with native bf16 and without.
TINY = Recipe(
    model="test_resnet", weights="none", unfreeze="all", size_px=64, epochs=2, workers=0,
    precision="fp32",
)  # fmt: skip


# A head on a frozen toy: a trial is a fraction of a second once the cache is filled.
HEAD = Settings(
    model="test_resnet", weights="none", unfreeze="head", size_px=64, epochs=3, workers=0,
    batch_size=16, precision="fp32",
)  # fmt: skip
SPACE = {"lr": "1e-4..1e-1:log", "batch_size": [8, 16]}


# Networks this small only wait for one another's threads; child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the session's own; child processes inherit it."""
    before = os.environ.get("VIZSLA_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VIZSLA_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["VIZSLA_CACHE"]
    else:
        os.environ["VIZSLA_CACHE"] = before


@pytest.fixture(scope="session")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> DrawnDataset:
    """Three breeds in train, valid and test folders, 24 pictures each. Do not change it."""
    folder = tmp_path_factory.mktemp("drawn") / "dogs"
    return draw_dataset(folder, breeds=3, pictures_per_breed=24, size_px=64, seed=1)


@pytest.fixture(scope="session")
def finished_run(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A tiny training on `dogs`, finished, with its bundle. Do not change it."""
    from vizsla import train

    return train(dogs.folder, TINY, runs=tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def debugged_run(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same with the debugger. Do not change it."""
    from vizsla import train

    return train(dogs.folder, TINY, runs=tmp_path_factory.mktemp("debugged"), debug=True)


@pytest.fixture(scope="session")
def profiled_run(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same with debugger and profiler. Do not change it."""
    from vizsla import train
    from vizsla.profiling import ProfileSettings

    settings = ProfileSettings(profile_interval_ms=100)
    runs = tmp_path_factory.mktemp("profiled")
    return train(dogs.folder, TINY, runs=runs, debug=True, profile=settings)


@pytest.fixture(scope="session")
def head() -> Settings:
    return HEAD


@pytest.fixture(scope="session")
def search() -> dict[str, Any]:
    return SPACE


@pytest.fixture(scope="session")
def finished_study(dogs: DrawnDataset, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Six trials by tpe, none pruned, two at a time. Do not change it."""
    from vizsla import tune

    return tune(
        dogs.folder, SPACE, recipe=HEAD, studies=tmp_path_factory.mktemp("studies"), trials=6,
        pruner="none", jobs=2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real photographs, where this checkout has one beside it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no shared/data beside this checkout: real photographs are not available")
    return SHARED / "data"


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Real pretrained weights, where this checkout has them beside it."""
    path = SHARED / "weights" / "mobilenetv2_100-imagenet1k.safetensors"
    if not path.is_file():
        pytest.skip("no shared/weights beside this checkout: real weights are not available")
    return path
