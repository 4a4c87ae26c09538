"""The terminal, as every command that shows progress uses it."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class UnbreakableConsole(Console):
    """A console that outlives its reader."""

    def on_broken_pipe(self) -> None:
        """Whoever read the output (head, say) has left; the training goes on in silence."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
