"""Writes the page of all commands from the commands themselves, and checks that it is current.

python -m vizsla.cli.reference docs/cli.md
python -m vizsla.cli.reference --check docs/cli.md
"""

from __future__ import annotations

import sys
from pathlib import Path

from vizsla.cli import app

_HEAD = """# Commands

Generated from the commands themselves by `make docs`. Every setting of `vizsla train` can also
stand in a recipe file, under the same name with underscores, and is a keyword of
`vizsla.Recipe`; flags take hyphens or underscores.

"""


def page() -> str:
    """The reference in Markdown."""
    sys.argv = ["vizsla"]  # usage lines are made from the name of the running program
    body: str = app.generate_docs(output_format="markdown", recursive=True, heading_level=2)
    return _HEAD + body.strip() + "\n"


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` compare it; 1 if it is out of date."""
    path = Path(arguments[-1])
    if arguments[0] != "--check":
        path.write_text(page(), encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == page():
        return 0
    print(f"{path} is out of date; write it anew with: make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
