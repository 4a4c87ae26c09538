"""The entry of a SageMaker training container: places from the environment, settings from flags.

`SM_CHANNEL_TRAIN` is a folder of splits, or of the training split's classes with the others in
channels of their own. The run's folder goes to `SM_OUTPUT_DATA_DIR`, or into the checkpoint
folder that SageMaker keeps across spot interruptions and from which training then resumes; the
bundle becomes the content of `SM_MODEL_DIR`.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from vizsla.cli import run
from vizsla.errors import DataError, SettingError, StorageError
from vizsla.records import SPLITS
from vizsla.runs.folder import RunFolder
from vizsla.settings import Recipe, Settings, read_recipe

_CHECKPOINTS = Path("/opt/ml/checkpoints")
_SPLIT_CHANNELS = {
    "train": ("TRAIN", "TRAINING"),
    "valid": ("VALID", "VAL", "VALIDATION"),
    "test": ("TEST", "TESTING"),
}


def main() -> int:
    """Train as the environment and the command line say; the exit code."""
    app = App(name="train_model.py")
    app.default(train_in_container)
    return run(sys.argv[1:], app)


def train_in_container(
    *,
    recipe: Path | None = None,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Train on SM_CHANNEL_TRAIN and write the bundle to SM_MODEL_DIR.

    Parameters
    ----------
    recipe
        A TOML file of settings; settings given as flags come before it.
    """
    from vizsla import api
    from vizsla.cli.progress import TrainingDisplay
    from vizsla.runs.folder import list_runs

    given = settings.model_dump(exclude_unset=True) if settings is not None else {}
    chosen = read_recipe(recipe).replace(**given) if recipe is not None else Recipe(**given)
    model_dir = _place("SM_MODEL_DIR")
    runs = _runs_folder()
    data = _data(runs)
    unfinished = [one for one in list_runs(runs) if _goes_on(one, data, chosen)]
    with TrainingDisplay() as display:
        if unfinished:
            done = api.train(resume=unfinished[-1].path, observers=[display])
        else:
            done = api.train(data, chosen, runs=runs, observers=[display])
    if int(os.environ.get("RANK", "0")) == 0:
        shutil.copytree(done.bundle, model_dir, dirs_exist_ok=True)
        print(f"model     {model_dir}")


def _goes_on(run: RunFolder, data: Path, chosen: Recipe) -> bool:
    """Whether an earlier run is this very training, stopped before its end."""
    facts = run.facts()
    return (
        facts["recipe"] == chosen.model_dump(exclude_none=True)
        and facts["data"]["source"] == str(data.expanduser().resolve())
        and run.status() == "interrupted"
    )


def _runs_folder() -> Path:
    if _CHECKPOINTS.is_dir():
        return _CHECKPOINTS / "runs"
    return Path(os.environ.get("SM_OUTPUT_DATA_DIR", ".")) / "runs"


def _data(runs: Path) -> Path:
    """One source from the channels: the training channel itself, or a manifest over several."""
    channels = {
        split: folder
        for split, names in _SPLIT_CHANNELS.items()
        for name in names
        if (folder := os.environ.get(f"SM_CHANNEL_{name}"))
    }
    if "train" not in channels:
        raise SettingError(
            "SM_CHANNEL_TRAIN is not set. Set it to the folder of pictures, as SageMaker does for "
            "the channel train, or use: vizsla train FOLDER"
        )
    for split, folder in channels.items():
        if not Path(folder).is_dir():
            raise DataError(f"The channel {split} points to {folder}, which is not a folder.")
    if len(channels) == 1:
        return Path(channels["train"])
    return _joined(channels, runs)


def _joined(channels: dict[str, str], runs: Path) -> Path:
    """A manifest of the classes of every channel, beside the runs."""
    import csv
    import io

    from vizsla.data.sources import open_source
    from vizsla.runs.files import write_text

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "split"])
    for split, folder in channels.items():
        catalogue = open_source(folder)
        # A channel may hold splits of its own; of those another channel gives, it gives none.
        own = [split, *(other for other in SPLITS if split == "train" and other not in channels)]
        for part in own if catalogue.is_split else ["all"]:
            for row in catalogue.rows(part).tolist():
                label = catalogue.classes[catalogue.labels[row]].folder
                name = split if part == "all" else part
                writer.writerow([catalogue.path(row).resolve(), label, name])
    _make(runs)
    manifest = runs / "channels.csv"
    write_text(manifest, text.getvalue())  # whole at once: several processes write and read it
    return manifest


def _place(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise SettingError(
            f"{variable} is not set. Set it to the folder that shall hold the model."
        )
    return _make(Path(value))


def _make(folder: Path) -> Path:
    """The folder, made now, so that no training is lost to a place that cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}.") from None
    return folder
