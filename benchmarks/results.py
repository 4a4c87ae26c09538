"""What every benchmark leaves behind: a Markdown table on the terminal and a JSON file.

The JSON holds measured facts and the machine, never a path of it, so that it can be committed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_facts, machine_line

RESULTS = Path(__file__).parent / "results"


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with the one option that all benchmarks share."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for the JSON; default beside the code"
    )
    return made


def publish(
    name: str,
    machine: dict[str, Any],
    settings: dict[str, Any],
    facts: dict[str, Any],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    folder: Path = RESULTS,
) -> None:
    """Print the tables (title, header, rows) under the machine's name; write `name`.json."""
    print(f"\n{name}: {machine_line(machine)}")
    for title, header, rows in tables:
        print(f"\n{title}\n\n{markdown_table(header, rows)}")
    folder.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "machine": machine, "settings": settings, **facts}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads on a terminal and pastes into the README."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def verdict(value: float, target: float, *, at_most: bool) -> str:
    """Whether a figure meets its target, in a word."""
    return "met" if (value <= target if at_most else value >= target) else "MISSED"


__all__ = ["machine_facts", "markdown_table", "parser", "publish", "verdict"]
