"""vizsla report: a run or a study as one page."""

from __future__ import annotations

import webbrowser
from pathlib import Path


def report(folder: Path, /, *, open_: bool = False) -> None:
    """Write the report of a run or a study into its folder: one HTML file that needs nothing else.

    Parameters
    ----------
    folder
        The run's or the study's folder; of a run, what its debugger captured is shown.
    open_
        Open it in the browser.
    """
    from vizsla import api

    path = api.report(folder)
    print(f"report    {path}")
    if open_:
        webbrowser.open(path.resolve().as_uri())
