"""The profiler around any loop: `with profile("runs/mine") as profiler: ...`.

It samples the machine in a thread beside, and times what the loop says it does. What fails in it is
told of once and ends the profile, not the loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from vizsla.errors import RunError, SettingError, StorageError, VizslaError
from vizsla.phases import timed_by
from vizsla.profiling.format import DEFAULT_INTERVAL_MS, timeline_file
from vizsla.profiling.machine import node_here, samples_here
from vizsla.profiling.reading import read_timeline
from vizsla.profiling.sampler import Sampler
from vizsla.profiling.settings import ProfileSettings
from vizsla.profiling.timeline import Timeline, processes_here, rank_here
from vizsla.runs.folder import WATCHED, RunFolder
from vizsla.version import __version__

if TYPE_CHECKING:
    from vizsla.profiling.trace import StepTrace

_log = logging.getLogger("vizsla")
Item = TypeVar("Item")
# The run that `vizsla profile -- COMMAND` fills; a loop inside of the command joins it.
RUN_VARIABLE = "VIZSLA_PROFILE_RUN"


class Profiler:
    """A timeline, a sampler and perhaps a trace of one process, in one run folder."""

    def __init__(
        self, settings: ProfileSettings, note: Callable[[str], None] = _log.warning
    ) -> None:
        self.timeline = Timeline()
        self._settings, self._note = settings, note
        self._sampler: Sampler | None = None
        self._trace: StepTrace | None = None
        self._is_on = False
        self._number = 0

    def open(self, run: Path, device: str = "cpu", samples: bool = True) -> None:
        """Write into a run folder from now on; the machine is sampled by one process of it."""
        with self._contained():
            self._is_on = True
            self.timeline.open(run, rank_here(), node_here(), device)
            if samples and samples_here():
                interval_ms = self._settings.profile_interval_ms
                self._sampler = Sampler(run, interval_ms=interval_ms, tell=self._note).start()
            if steps := self._settings.traced():
                from vizsla.profiling.trace import StepTrace

                self._trace = StepTrace(steps, run, self.timeline, self._note)

    def begin(self, last_step: int = 0) -> None:
        """Steps begin, after the one of this number."""
        self._number = last_step
        if not self._is_on:
            return
        with self._contained():
            self.timeline.begin_steps()
            if self._trace is not None:
                self._trace.begin(last_step)

    def step(self, number: int | None = None) -> None:
        """A step is over."""
        self._number = number = self._number + 1 if number is None else number
        if not self._is_on:
            return
        with self._contained():
            self.timeline.step(number)
            if self._trace is not None:
                self._trace.after(number)
                self._trace.before(number + 1)

    def close(self) -> None:
        """Write what is held and end; again does nothing."""
        for part in (self._trace, self.timeline):
            if part is not None and self._is_on:
                with self._contained():
                    part.close()
        sampler, self._sampler, self._trace, self._is_on = self._sampler, None, None, False
        if sampler is not None:
            with self._contained():
                sampler.stop()

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the loop goes on
            self._is_on = False
            self.timeline.give_up()
            kind = "" if isinstance(error, StorageError) else f"{type(error).__name__}: "
            self._note(
                "the profiler failed, and steps are timed no more; what it profiles goes on. "
                f"{kind}{error}"
            )


class LoopProfiler:
    """What `profile` gives: a context manager around a loop, in which it says what it does."""

    def __init__(self, folder: Path | None, settings: ProfileSettings, device: str | None) -> None:
        self._settings, self._device = settings, device
        self._wanted = self._folder = folder
        self._profiler = Profiler(settings)
        self._held = contextlib.ExitStack()
        self._has_joined = False
        self._owner = self._thread = 0

    @property
    def run(self) -> RunFolder:
        """The run folder. Raises `RunError` before the `with`, which may make it."""
        if self._folder is None:
            raise RunError("There is no run before the with block, which makes it.")
        return RunFolder(self._folder)

    def __enter__(self) -> LoopProfiler:
        with contextlib.ExitStack() as held:
            joined = None if self._wanted is not None else _run_of_command()
            folder = joined or _opened(self._wanted, held)
            profiler = Profiler(self._settings)
            held.callback(profiler.close)
            if joined is None or _has_no_other_loop(joined, held):
                last = _last_step(folder)
                device = self._device or device_here()
                profiler.open(folder, device, samples=joined is None)
                held.enter_context(timed_by(profiler.timeline))
                profiler.begin(last)
            self._profiler, self._folder, self._has_joined = profiler, folder, joined is not None
            self._owner, self._thread = os.getpid(), threading.get_ident()
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if os.getpid() != self._owner:  # a fork, which is not to end what goes on elsewhere
            return
        self._held.close()
        if rank_here() == 0 and not self._has_joined:
            self._write_outcome(error)

    def _write_outcome(self, error: BaseException | None) -> None:
        why = None if error is None else f"{type(error).__name__}: {error}"
        try:
            if self.run.outcome() is None:  # else a debugger of the same loop has told it
                self.run.write_outcome("trained" if error is None else "failed", why)
        except VizslaError as full:  # which is no reason to lose what the loop has done
            _log.warning("%s", full)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Something that is about to be done, such as `forward`: see `format.STEP_PHASES` and, for
        what lies between steps, `format.SPANS`. Any other name is a part of the step, too. In
        another thread than that of the `with` nothing is timed."""
        if threading.get_ident() != self._thread:
            return contextlib.nullcontext()
        return self._profiler.timeline.phase(name)

    def loading(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches of a loader; waiting for each is timed as `data_wait`."""
        return self._profiler.timeline.loading(batches)

    def step(self, number: int | None = None) -> None:
        """A step is over. Steps that are not told are numbered from 1, and on from the last one in
        a folder that has steps."""
        self._profiler.step(number)


def profile(
    folder: str | os.PathLike[str] | None = None,
    *,
    interval_ms: int = DEFAULT_INTERVAL_MS,
    trace_steps: str | None = None,
    device: str | None = None,
) -> LoopProfiler:
    """Profile a loop of one's own while inside, into the run folder `folder`.

    The machine is sampled every `interval_ms` milliseconds (100 to 60,000), and every step timed by
    its phases. Without `folder` a loop under `vizsla profile -- COMMAND` joins that run, and any
    other makes a new folder in `runs`. `trace_steps` such as `20:25` writes a trace of PyTorch's
    profiler. On a `device` that is CUDA (as it is by default where torch has one) phases are timed
    by events of the device, without waiting for it.

    Raises `SettingError` for settings that make no sense and for several processes without a
    `folder`, `RunError` where the folder holds a training of vizsla's or another process profiles
    into it, `StorageError` where it cannot be written. After that what fails is logged and the loop
    goes on. Of several loops at once in one command the first is profiled, and the others say so.

    >>> with profile("runs/mine") as profiler:  # doctest: +SKIP
    ...     for inputs, labels in profiler.loading(loader):
    ...         with profiler.phase("forward"):
    ...             loss = criterion(model(inputs), labels)
    ...         with profiler.phase("backward"):
    ...             loss.backward()
    ...         with profiler.phase("optimiser"):
    ...             optimizer.step()
    ...         profiler.step()
    """
    settings = ProfileSettings(profile_interval_ms=interval_ms, trace_steps=trace_steps)
    return LoopProfiler(Path(folder) if folder is not None else None, settings, device)


def _run_of_command() -> Path | None:
    """The run of the `vizsla profile -- COMMAND` that this process is of."""
    joined = os.environ.get(RUN_VARIABLE)
    return Path(joined) if joined and (Path(joined) / "run.toml").is_file() else None


def _has_no_other_loop(folder: Path, held: contextlib.ExitStack) -> bool:
    """Whether this is the only loop of a command at this moment, and then until it ends: the steps
    of two at once would be mixed up."""
    if rank_here():
        return True
    try:
        held.enter_context(RunFolder(folder).timed())
    except VizslaError as error:
        _log.warning("This loop is not profiled. %s", error)
        return False
    return True


def _opened(folder: Path | None, held: contextlib.ExitStack) -> Path:
    """The folder, once it is a run that this process may write a profile into."""
    if folder is None:
        if processes_here() > 1:
            raise SettingError("Several processes write into one run: name a folder for profile().")
        run = RunFolder.create(Path("runs"), Path(sys.argv[0] or "python").stem or "python")
    else:
        run = RunFolder(folder)
    is_run = (run.path / "run.toml").exists()
    if is_run and RunFolder.open(run.path).facts().get("kind") != WATCHED:
        raise RunError(f"{run.path} holds a training of vizsla's own; name another folder.")
    if rank_here():
        run.path.mkdir(parents=True, exist_ok=True)  # the first process may come later
        return run.path
    held.enter_context(run.profiled())
    if is_run:
        run.forget_outcome()
    else:
        RunFolder.at(run.path)
        run.write_facts(facts_of_a_loop())
    return run.path


def _last_step(folder: Path) -> int:
    """The number of the last step that this process has recorded there before."""
    lines, _ = read_timeline(timeline_file(folder, rank_here()))
    numbers = (line["step"] for line in lines if line["kind"] == "steps")
    return max((max(some, default=0) for some in numbers), default=0)


def facts_of_a_loop() -> dict[str, Any]:
    """The content of `run.toml` for what is not vizsla's own training."""
    torch = sys.modules.get("torch")
    versions = {"vizsla": __version__, "python": platform.python_version()}
    if torch is not None:
        versions["torch"] = str(torch.__version__)
    return {
        "kind": WATCHED,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "recipe": {},
        "versions": versions,
    }


def device_here() -> str:
    """CUDA where torch is loaded and has one."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
