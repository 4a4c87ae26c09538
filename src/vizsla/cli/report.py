"""vizsla report: a study as one page."""

from __future__ import annotations

import webbrowser
from pathlib import Path


def report(study: Path, /, *, open_: bool = False) -> None:
    """Write the report of a study into its folder: one HTML file that needs nothing else.

    Parameters
    ----------
    study
        The study's folder.
    open_
        Open it in the browser.
    """
    from vizsla import api

    path = api.report(study)
    print(f"report    {path}")
    if open_:
        webbrowser.open(path.resolve().as_uri())
