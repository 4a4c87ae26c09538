"""One self-contained HTML file from titles, words, tables and figures.

Looks live in `templates/`, drawn by Jinja2 with every value escaped: class names, paths and error
messages come from outside and may hold anything. Plotly's script is carried inside the file, five
megabytes of it, so that a figure can still be zoomed and read by hovering years from now without a
network. What a report says is decided by its callers.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from vizsla.records import Section
from vizsla.runs.files import write_text
from vizsla.version import __version__

_NUMBER = r"[-+\u2212]?(?:\d[\d,_\u2009\u202f]*)?\.?\d+(?:[eE][-+]?\d+)?"
_UNIT = r"%|×|x|[mµn]?s|min|h|d|px|[kKMGT]?i?B|(?:[kKMGT]i?)?B/s|/s"
_NUMERIC = re.compile(
    rf"[~≈<>≤≥]?\s?(?:{_NUMBER}|[-+]?(?:nan|inf))(?:\s?±\s?{_NUMBER})?(?:\s?(?:{_UNIT}))?",
    re.IGNORECASE,
)
_JOINT = re.compile(r"[/_](?=.)", re.DOTALL)
_BLANK = frozenset({"", "-", "–", "—", "None"})


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write one self-contained HTML file: opens offline, asks for nothing outside itself.

    `lead` is the sentence or two under the title. Line breaks in it and in a section's text are
    kept; nothing in them is read as markup. Raises `StorageError` where the file cannot be written.
    """
    page = _environment().from_string(_asset("page.html.jinja"))
    drawn = any(section.figure is not None for section in sections)
    scripts = _scripts(sections, drawn)
    html = page.render(
        title=title,
        lead=lead,
        sections=sections,
        contents=contents(sections),
        version=__version__,
        style=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts, drawn),
    )
    # A file's name may hold bytes that are no text in any encoding; they are shown as escapes.
    write_text(path, html.encode("utf-8", "backslashreplace").decode("utf-8"))


def contents(sections: Sequence[Section]) -> list[tuple[str, list[tuple[int, str]]]]:
    """The list of contents: parts in order, each with the numbers, from 1, and titles of its
    sections."""
    numbered = enumerate(sections, start=1)
    return [
        (part, [(number, section.title) for number, section in some])
        for part, some in groupby(numbered, key=lambda one: one[1].part)
    ]


def is_numeric(cell: str) -> bool:
    """Whether a cell reads as a number, with or without a sign, an error, or a unit.

    `0.81`, `-3`, `1,024`, `1e-05`, `82.1 %`, `0.81 ± 0.02`, `3.4 ms` and `nan` do; `001.Akita`,
    `2 of 3` and `2026-01-31` do not.
    """
    return _NUMERIC.fullmatch(cell.strip()) is not None


def numeric_columns(section: Section) -> frozenset[int]:
    """The columns of numbers and gaps alone: their headings and gaps stand to the right as well."""
    width = max((len(row) for row in section.rows), default=0)
    columns = [
        [row[number].strip() for row in section.rows if number < len(row)]
        for number in range(width)
    ]
    return frozenset(
        number
        for number, cells in enumerate(columns)
        if any(map(is_numeric, cells)) and all(cell in _BLANK or is_numeric(cell) for cell in cells)
    )


def embedded_json(text: str) -> Markup:
    """JSON as it may stand inside a script element: nothing in it can end or open one."""
    for character in "<>&":  # JSON has these inside strings alone, where an escape is the same
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def foldable(name: str) -> Markup:
    """A path or another long name that may go on in a new line after each of its parts."""
    return Markup(_JOINT.sub(r"\g<0><wbr>", str(escape(name))))


def _scripts(sections: Sequence[Section], drawn: bool) -> tuple[str, ...]:
    """What these sections need: Plotly is most of a page with figures, and no part of another."""
    scripts: tuple[str, ...] = ()
    if any(section.sortable or section.code for section in sections):
        scripts += (_asset("controls.js"),)
    if drawn:
        import plotly.offline  # takes a moment

        scripts += (plotly.offline.get_plotlyjs(), _asset("page.js"))
    return scripts


def _policy(scripts: Sequence[str], drawn: bool) -> str:
    """A content security policy: no request leaves the page, and only these scripts run in it.

    Plotly compiles the shaders of parallel coordinates and other WebGL figures by `Function`;
    without leave to evaluate it says that the browser had no WebGL.
    """
    hashes = [b64encode(sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = [*(f"'sha256-{digest}'" for digest in hashes), *(["'unsafe-eval'"] if drawn else [])]
    rules = (
        "default-src 'none'",
        *([f"script-src {' '.join(allowed)}"] if hashes else []),
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


@cache
def _environment() -> Environment:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["numeric_columns"] = numeric_columns
    environment.filters["embedded_json"] = embedded_json
    environment.filters["foldable"] = foldable
    return environment


@cache
def _asset(name: str) -> str:
    return (files("vizsla.reports") / "templates" / name).read_text(encoding="utf-8")
