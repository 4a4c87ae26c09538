"""A trace of some steps by PyTorch's own profiler: every operator, on the processor and the GPU.

It slows the steps that it watches by a lot, which is why it watches few. The file opens in
Perfetto (https://ui.perfetto.dev) and in chrome://tracing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vizsla.profiling.timeline import Timeline, rank_here

_OPERATORS = 15
_QUIET = "KINETO_LOG_LEVEL"


class StepTrace:
    """Traces `steps`, and the phases of `timeline` in them, into a file in `folder`."""

    def __init__(
        self, steps: range, folder: Path, timeline: Timeline, note: Callable[[str], None]
    ) -> None:
        self._steps, self._timeline, self._note = steps, timeline, note
        rank = f"-rank{rank}" if (rank := rank_here()) else ""
        self._path = folder / f"trace-{steps.start}-{steps.stop}{rank}.json.gz"
        self._profiler: Any = None
        self._first = self._last = 0
        self._is_done = self._is_quiet = False

    def begin(self, last_step: int) -> None:
        """Steps begin, after the one of this number: of a run that is gone on with, not the
        first."""
        if last_step >= self._steps.stop - 1:
            self._is_done = True
            if not self._path.exists():
                self._note(
                    f"no trace was written: {self._which()} over before, and the next is step "
                    f"{last_step + 1}"
                )
        self.before(last_step + 1)

    def before(self, step: int) -> None:
        """The step of this number is about to begin."""
        if self._is_done or self._profiler is not None or step not in self._steps:
            return
        with self._contained(), self._timeline.phase("trace"):
            # Some builds of torch else tell of every start and stop on standard error.
            self._is_quiet = _QUIET not in os.environ
            os.environ.setdefault(_QUIET, "99")
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
            self._first = step
            self._timeline.annotate = torch.profiler.record_function

    def after(self, step: int) -> None:
        """The step of this number is over."""
        if self._profiler is not None:
            self._last = step
            if step + 1 >= self._steps.stop:
                self._finish()

    def close(self) -> None:
        """Write what has been traced, though it may be less than was wanted."""
        if self._profiler is not None:
            self._finish()
        elif not self._is_done and len(self._steps):
            self._note(f"no trace was written: {self._which()} not reached")

    def _which(self) -> str:
        first, last = self._steps.start, self._steps.stop - 1
        return f"step {first} was" if first == last else f"steps {first} to {last} were"

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Without a trace the steps are timed on."""
        try:
            yield
        except Exception as error:  # a full disk is RuntimeError here, and others may profile too
            self._profiler, self._is_done, self._timeline.annotate = None, True, None
            self._speak()
            self._note(f"no trace was written: {str(error).strip() or type(error).__name__}")

    def _speak(self) -> None:
        if self._is_quiet:
            os.environ.pop(_QUIET, None)

    def _finish(self) -> None:
        profiler, self._profiler, self._is_done = self._profiler, None, True
        self._timeline.annotate = None
        with self._contained(), self._timeline.phase("trace"):
            profiler.stop()
            self._speak()
            # Whole or not at all; its name must end as it will, which decides that it is packed.
            scratch = self._path.with_name(f".{os.getpid()}.part.{self._path.name}")
            try:
                profiler.export_chrome_trace(str(scratch))
                os.replace(scratch, self._path)
            finally:
                scratch.unlink(missing_ok=True)
            self._tell(_operators(profiler))

    def _tell(self, operators: list[dict[str, Any]]) -> None:
        self._timeline.fact(
            "trace",
            steps=f"{self._first}:{self._last + 1}",
            file=self._path.name,
            operators=operators,
        )


def _operators(profiler: Any) -> list[dict[str, Any]]:
    """The operators that took longest in themselves, without what they call."""
    found = [
        {
            "name": event.key,
            "self_ms": round(_self_us(event) / 1000, 3),
            "calls": int(event.count),
        }
        for event in profiler.key_averages()
        if event.key.startswith("aten::") or _device_us(event)
    ]
    return sorted(found, key=lambda one: -one["self_ms"])[:_OPERATORS]


def _self_us(event: Any) -> float:
    return _device_us(event) or float(event.self_cpu_time_total)


def _device_us(event: Any) -> float:
    # Called after CUDA in torch before 2.5.
    older: Any = getattr(event, "self_cuda_time_total", 0)
    return float(getattr(event, "self_device_time_total", older))
