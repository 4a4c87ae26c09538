"""A run as it is opened in Python: its folder, and what was recorded in it."""

from __future__ import annotations

from vizsla.debugging.tensors import Tensors, open_tensors
from vizsla.profiling.recorded import Profile, open_profile
from vizsla.runs.folder import RunFolder


class Run(RunFolder):
    """A run folder with readers for what observers recorded."""

    @property
    def tensors(self) -> Tensors:
        """What the debugger captured. Raises `RunError`, which says how to capture, if nothing."""
        return open_tensors(self.path)

    @property
    def profile(self) -> Profile:
        """What the profiler recorded. Raises `RunError`, which says how to profile, if nothing."""
        return open_profile(self.path)
