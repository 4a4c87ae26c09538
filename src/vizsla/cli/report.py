"""vizsla report: a run or a study as one page, or several runs compared."""

from __future__ import annotations

import webbrowser
from pathlib import Path


def report(
    folder: Path,
    /,
    *others: Path,
    open_: bool = False,
    price: str | None = None,
    output: Path | None = None,
) -> None:
    """Write the report of a run or a study into its folder: one HTML file that needs nothing else.
    Several runs are compared, on a page beside them.

    Parameters
    ----------
    folder
        The run's or the study's folder.
    others
        More runs, to be compared with the first.
    open_
        Open it in the browser.
    price
        What the machine costs an hour, such as 1.2, to be told what a profiled run has cost.
    output
        Write into this file instead.
    """
    from vizsla import api

    path = api.report(folder, *others, price=price, output=output)
    print(f"report    {path}")
    if open_:
        webbrowser.open(path.resolve().as_uri())
