"""vizsla tune: search for the best settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from vizsla.errors import Interrupted, SettingError
from vizsla.settings import Settings, read_search, read_unjoined
from vizsla.tuning.settings import StudySettings
from vizsla.tuning.space import parse_search

app = App(name="tune", help="Search for the best settings, by many trainings.")


@app.default
def tune(
    data: Path | None = None,
    /,
    *,
    search: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    recipe: Path | None = None,
    resume: Path | None = None,
    studies: Path = Path("studies"),
    study: Annotated[StudySettings | None, Parameter(name="*")] = None,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Search for the best settings, by many trainings that share what they have in common.

    Parameters
    ----------
    data
        A folder of pictures, a .zip or .tar of one, or a .csv or .parquet manifest.
    search
        Settings and the values to search: lr=1e-5..1e-2:log, batch_size=16..64,
        batch_size=16..64:step=16, optimizer=adam,sgd. They come before those of the recipe.
    recipe
        A TOML file of settings, which may have a [search] table; flags come before it.
    resume
        The folder of a study, to go on with; trials, timeout, study-patience and jobs may be given
        anew.
    studies
        The folder in which the study's folder is made.
    """
    from vizsla import api
    from vizsla.cli.tuning_progress import TuningDisplay

    given = settings.model_dump(exclude_unset=True) if settings is not None else {}
    budget = study.model_dump(exclude_unset=True) if study is not None else {}
    with TuningDisplay() as display:
        try:
            if resume is not None:
                _check_resumed(data, search, recipe, given)
                api.tune(resume=resume, observers=[display], **budget)
            else:
                space, base = _joined(search or [], recipe, given)
                api.tune(data, space, recipe=base, studies=studies, observers=[display], **budget)
        except Interrupted as stop:
            way_on = f"Go on with: vizsla tune --resume {display.study_path}"
            raise Interrupted(stop.signal_number, f"{stop} {way_on}") from None


@app.command
def show(study: Path, /) -> None:
    """Show the trials of a study, best first, and what it found.

    Parameters
    ----------
    study
        The study's folder.
    """
    from rich.console import Console

    from vizsla.cli.tuning_progress import print_study
    from vizsla.tuning.study import open_study

    print_study(Console(highlight=False), open_study(study))


def _joined(
    search: list[str], recipe: Path | None, given: dict[str, Any]
) -> tuple[dict[str, Any], Settings]:
    """The search and the settings beside it, of flags and file: flags come first."""
    space: dict[str, Any] = dict(parse_search(search))
    both = [name for name in space if name in given]
    if both:
        raise SettingError(
            f"{both[0]} is searched ({both[0]}={space[both[0]]}) and fixed "
            f"(--{both[0].replace('_', '-')} {given[both[0]]}); leave one of them out."
        )
    if recipe is None:
        return space, Settings(**given)
    written = {name: values for name, values in read_search(recipe).items() if name not in given}
    base = {**read_unjoined(recipe).model_dump(exclude_unset=True), **given}
    return {**written, **space}, Settings(**base)


def _check_resumed(
    data: Path | None, search: list[str] | None, recipe: Path | None, given: dict[str, Any]
) -> None:
    extra = [
        *(["the pictures"] if data is not None else []),
        *(["--search"] if search else []),
        *(["--recipe"] if recipe is not None else []),
        *given,
    ]
    if extra:
        raise SettingError(
            f"A resumed study goes on with its own settings; leave out {', '.join(extra)}, or tune "
            "anew without --resume."
        )
