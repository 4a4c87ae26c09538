"""Running any command with its processes sampled, in a run folder of its own.

The command keeps its input, output and signals: Ctrl-C reaches it as it would without us, and we
wait for it to end. A loop inside of it that uses `vizsla.profiling.profile` adds its steps to the
same run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import FrameType

from vizsla.errors import SettingError, StorageError
from vizsla.profiling.format import INTERVALS_MS
from vizsla.profiling.profiler import RUN_VARIABLE, facts_of_a_loop
from vizsla.profiling.sampler import Sampler
from vizsla.runs.folder import RunFolder

_log = logging.getLogger("vizsla")
_SCRIPTS = (".py", ".sh", ".R", ".jl", ".js", ".rb", ".pl")
_PASSED_ON = ("SIGTERM", "SIGINT", "SIGHUP")


@dataclass(frozen=True)
class Ended:
    """A command that has ended: `code` as a shell gives it, 128 + n where signal n ended it."""

    run: RunFolder
    code: int
    reason: str | None


def run_command(command: Sequence[str], runs: Path, interval_ms: int) -> Ended:
    """Run a command to its end and write what was sampled into a new run in `runs`.

    Raises `SettingError` for a command that does not exist or cannot be run, or another interval
    than there can be; no folder is then left behind.
    """
    _check(command, interval_ms)
    has_parent = runs.exists()
    run = RunFolder.create(runs, name_of(command))
    try:
        with run.profiled():
            run.write_facts({**facts_of_a_loop(), "command": list(command)})
            code = _run_sampled(command, run, interval_ms)
            reason = _reason(code)
            try:
                run.write_outcome("failed" if reason else "done", reason)
            except StorageError as full:  # the command's exit code is worth more
                _log.warning("%s", full)
    except _CannotStart as error:
        shutil.rmtree(run.path, ignore_errors=True)
        if not has_parent:
            with contextlib.suppress(OSError):
                runs.rmdir()
        raise SettingError(f"{command[0]} cannot be run: {error}.") from None
    return Ended(run, code if code >= 0 else 128 - code, reason)


class _CannotStart(Exception):
    """The system does not take it for a program."""


def name_of(command: Sequence[str]) -> str:
    """What a run of this command is called: the script or module, or the program itself.

    >>> name_of(["python3", "-u", "train/resnet.py", "--epochs", "3"])
    'resnet'
    >>> name_of(["python", "-m", "torch.distributed.run", "job.py"]), name_of(["/bin/ls", "-l"])
    ('job', 'ls')
    >>> name_of(["bash", "-c", "python first.py; python second.py"])
    'bash'
    """
    words = command[1:]
    if "-c" in words:  # what follows is a program, not the name of one
        words = words[: words.index("-c")]
    script = next((one for one in words if one.endswith(_SCRIPTS)), None)
    if script is None and "-m" in words[:-1]:
        return command[command.index("-m", 1) + 1]
    return PurePath(script or command[0]).stem or "command"


def _check(command: Sequence[str], interval_ms: int) -> None:
    low, high = INTERVALS_MS
    if not low <= interval_ms <= high:
        raise SettingError(f"interval_ms is {interval_ms}, but must be {low} to {high:,}.")
    program = command[0]
    if shutil.which(program) is not None:
        return
    if Path(program).is_dir():
        raise SettingError(f"{program} is a folder, not a command; for a run of it, leave out --.")
    if Path(program).is_file():
        raise SettingError(
            f"{program} is not a program that can be run; name what runs it, such as: vizsla "
            f"profile -- python {program}"
        )
    raise SettingError(f"There is no command {program!r}: it is neither a file nor in the PATH.")


def _run_sampled(command: Sequence[str], run: RunFolder, interval_ms: int) -> int:
    """The command's return code, below zero for the signal that ended it."""
    environment = {**os.environ, RUN_VARIABLE: str(run.path.resolve())}
    with _signals_to_child() as child:
        try:
            process = subprocess.Popen(command, env=environment)
        except OSError as error:
            raise _CannotStart(error.strerror or str(error)) from None
        with Sampler(run.path, interval_ms=interval_ms, pid=process.pid):
            child.take(process)
            return process.wait()


class _Child:
    """Who gets the signals that reach us, once it is there."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    def take(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        for number in self._early:
            process.send_signal(number)

    def signalled(self, number: int, _: FrameType | None) -> None:
        # The terminal tells all processes in front of it, the child too; twice would be too often.
        if number != signal.SIGTERM and _is_in_front():
            return
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)


@contextlib.contextmanager
def _signals_to_child() -> Iterator[_Child]:
    """Pass signals on instead of ending by them, so that what was sampled is judged and told."""
    child, before = _Child(), {}
    for name in _PASSED_ON:
        number = getattr(signal, name, None)
        # A signal that is ignored, as nohup does, stays so, for the child too.
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, child.signalled)
    try:
        yield child
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_front() -> bool:
    """Whether a terminal's keys reach this process and its children."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _reason(code: int) -> str | None:
    """Why a command failed; None where it did not."""
    if code == 0:
        return None
    if code > 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ", perhaps by the system for want of memory" if name == "SIGKILL" else ""
    return f"ended by signal {-code} ({name}){hint}"
