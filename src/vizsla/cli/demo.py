"""The main job end to end on drawn pictures: no network, no weights, about a minute."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

# From scratch on easy pictures: a toy residual network learns them in seconds on two cores.
SETTINGS = {
    "model": "test_resnet",
    "weights": "none",
    "unfreeze": "all",
    "size_px": 64,
    "epochs": 12,
    "lr": 3e-3,
}
_LEAST_ACCURACY = 0.9


def demo(folder: Path = Path("demo")) -> None:
    """Draw cartoon dogs, train on them, and ask the trained model about one.

    Parameters
    ----------
    folder
        Where pictures and run go; what an earlier demonstration left there is replaced.
    """
    from vizsla import api
    from vizsla.cli.progress import TrainingDisplay
    from vizsla.data.synthetic import draw_dataset
    from vizsla.errors import WorkError
    from vizsla.settings import Recipe

    started = time.perf_counter()
    pictures, runs = folder / "dogs", folder / "runs"
    for leftover in (pictures, runs):
        shutil.rmtree(leftover, ignore_errors=True)
    drawn = draw_dataset(pictures, breeds=6, pictures_per_breed=60)
    print(f"drew      {len(drawn.classes)} breeds of cartoon dogs into {pictures}\n")
    with TrainingDisplay() as display:
        run = api.train(pictures, Recipe(**SETTINGS), runs=runs, observers=[display])
    picture = next((pictures / "test" / drawn.classes[0]).iterdir())
    answer = api.predict(run.path, [picture])[0]
    print(f"\n{picture}\n    is a {answer.class_name} ({answer.confidence:.1%})")
    print(f"\nThe pictures lie in {pictures}, the run in {run.path}, its bundle in {run.bundle}.")
    print(f"Done in {time.perf_counter() - started:.0f} s.")
    accuracy = run.evaluation("valid")["accuracy"]  # type: ignore[index]
    if accuracy < _LEAST_ACCURACY:
        raise WorkError(
            f"The validation accuracy is {accuracy:.1%}; it should have reached "
            f"{_LEAST_ACCURACY:.0%}. Something is wrong with this installation."
        )
