"""vizsla job: do what a job file says, in this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from vizsla.errors import SettingError


def job(file: Path | None = None, /, *, lines: bool = False) -> None:
    """Do a job: a training written down as JSON, so that any machine can do it.

    Parameters
    ----------
    file
        The job as a JSON object: data, recipe, and the folder of its run, which goes on where
        it was left.
    lines
        Take jobs as lines on standard input instead, and tell of them in lines on standard output.
    """
    if lines:
        _serve()
        return
    if file is None:
        raise SettingError("Nothing to do: give the file of a job.")
    from vizsla.cli.progress import TrainingDisplay
    from vizsla.engines.base import Job
    from vizsla.worker import run_job

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The job file {file} cannot be read: {error}.") from None
    with TrainingDisplay() as display:
        run_job(Job.from_json(text), [display])


def _serve() -> None:
    """Work on jobs from standard input; whatever else is printed goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as events:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        from vizsla.worker import serve

        serve(sys.stdin, events)
