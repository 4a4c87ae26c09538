"""vizsla cache: what is kept so that it is made once, and clearing it."""

from __future__ import annotations

import re
from datetime import datetime

from cyclopts import App

from vizsla.errors import SettingError

app = App(name="cache", help="See and clear what is kept to be used again.")

_UNITS_S = {"h": 3600, "d": 86_400, "w": 604_800}
_WHAT = {
    "features": "trunk outputs",
    "images": "decoded pictures",
    "archives": "unpacked archives",
}


@app.command
def info() -> None:
    """Show what the cache holds, how large it is, and when it was last used."""
    from rich.console import Console
    from rich.table import Table

    from vizsla.data.cache import entries, in_words
    from vizsla.places import cache_folder

    held = entries()
    print(f"{cache_folder()} (VIZSLA_CACHE names another folder)")
    if not held:
        print("It is empty.")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("kind", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for entry in held:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        table.add_row(_WHAT[entry.kind], entry.about, in_words(entry.bytes), used)
    table.add_section()
    table.add_row("in all", "", in_words(sum(entry.bytes for entry in held)), "")
    Console(highlight=False).print(table)


@app.command
def clear(*, older_than: str | None = None) -> None:
    """Remove what the cache holds; it is made again when it is needed.

    Parameters
    ----------
    older_than
        Only what was not used for so long: a number of hours, days or weeks, such as 30d.
    """
    from vizsla.data.cache import clear as clear_cache
    from vizsla.data.cache import in_words

    gone, busy = clear_cache(_seconds(older_than) if older_than is not None else 0.0)
    count = "1 entry" if len(gone) == 1 else f"{len(gone):,} entries"
    print(f"Removed {count}, {in_words(sum(entry.bytes for entry in gone))}.")
    for entry in busy:
        print(f"In use and left alone: {_WHAT[entry.kind]}, {entry.about}")


def _seconds(age: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", age.strip())
    if match is None:
        raise SettingError(
            f"older_than is {age!r}, but must be a number of hours, days or weeks, such as 12h, "
            "30d or 8w."
        )
    return float(match[1]) * _UNITS_S[match[2]]
