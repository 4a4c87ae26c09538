"""vizsla train: from pictures to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vizsla.debugging.settings import DebugSettings
from vizsla.errors import Interrupted, SettingError, WorkError
from vizsla.profiling.settings import ProfileSettings
from vizsla.settings import Recipe, Settings, read_recipe


def train(
    data: Path | None = None,
    /,
    *,
    recipe: Path | None = None,
    resume: Path | None = None,
    runs: Path = Path("runs"),
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
    debugging: Annotated[DebugSettings | None, Parameter(name="*")] = None,
    profiling: Annotated[ProfileSettings | None, Parameter(name="*")] = None,
) -> None:
    """Train a classifier on pictures and write its bundle.

    Parameters
    ----------
    data
        A folder of pictures, a .zip or .tar of one, or a .csv or .parquet manifest.
    recipe
        A TOML file of settings; settings given as flags come before it.
    resume
        The folder of a run that was stopped, to go on from its last checkpoint.
    runs
        The folder in which the run's folder is made.
    """
    from vizsla import api
    from vizsla.cli.progress import TrainingDisplay
    from vizsla.runs.folder import STOPPED_BY_RULE

    given = settings.model_dump(exclude_unset=True) if settings is not None else {}
    debug = debugging if debugging is not None and debugging.is_on else False
    profile = profiling if profiling is not None and profiling.is_on else False
    observing = [one for one in (debugging, profiling) if one is not None]
    extra = [*given, *(name for one in observing for name in one.model_fields_set)]
    if resume is not None and (recipe is not None or extra):
        raise SettingError(
            "A resumed run goes on with its own settings; leave out "
            f"{', '.join(extra) or '--recipe'}, or train anew without --resume."
        )
    chosen = None
    if resume is None:
        chosen = read_recipe(recipe).replace(**given) if recipe is not None else Recipe(**given)
    with TrainingDisplay() as display:
        try:
            done = api.train(
                data, chosen, resume=resume, runs=runs, debug=debug, profile=profile,
                observers=[display],
            )  # fmt: skip
        except Interrupted as stop:
            way_on = f"Go on with: vizsla train --resume {display.run_path}"
            raise Interrupted(stop.signal_number, f"{stop} {way_on}") from None
    if done.status() == STOPPED_BY_RULE:
        raise WorkError(
            f"Stopped by rule {(done.outcome() or {}).get('reason')} Everything is saved; see "
            f"vizsla debug {done.path}, and go on with: vizsla train --resume {done.path}"
        )
    if display.run_path is None:  # it was finished before, so there was nothing to show
        print(f"{done.path} is finished already; its bundle is {done.bundle}")
