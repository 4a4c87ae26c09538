"""Following a run from outside: its findings as they come, and that it has stalled."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import psutil
from rich.console import Console

from vizsla.cli.findings import print_finding
from vizsla.debugging.judging import judge_record, rules_of_run
from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.choosing import AnyRule, choose_rules
from vizsla.debugging.rules.continuity import StalledTraining
from vizsla.debugging.tensors import Tensors, open_tensors
from vizsla.findings import Finding, identity_of
from vizsla.runs.folder import RunFolder

_POLL_S = 1.0
# So long a process that was asked to end may take to save and leave.
_LEAVING_S = 15.0


def follow(path: Path, wanted: str | None) -> None:
    """Print findings of a run until it ends. Reads alone, but for a stalled run that a rule says
    to stop. Raises `RunError` where it ends, or has ended, without anything captured."""
    console = Console(highlight=False)
    run = RunFolder.open(path)
    rules = choose_rules(wanted) if wanted is not None else rules_of_run(run)
    tensors = Tensors(path)
    console.print(f"following {path} ({run.status()}); Ctrl-C ends this, not the training")
    told: set[tuple[str, str, str]] = set()
    running = True
    while running:
        running = run.status() == "running"
        tensors.refresh()
        if tensors.is_empty and not running:
            open_tensors(path)  # which says how to capture
        for finding in judge_record(rules, TrainingRecord.of(run, tensors, running)):
            identity = identity_of(finding.to_dict())
            if identity not in told:
                told.add(identity)
                print_finding(console, finding)
                if _says_stop(rules, finding):
                    _stop(run, tensors, console)
        if running:
            time.sleep(_POLL_S)
    console.print(f"ended     {run.status()}, {len(told)} findings")


def _says_stop(rules: list[AnyRule], finding: Finding) -> bool:
    """Whether a finding is that of a stalled run, and its rule is set to end it."""
    return any(
        isinstance(rule, StalledTraining) and rule.stop and rule.name == finding.rule
        for rule in rules
    )


def _stop(run: RunFolder, tensors: Tensors, console: Console) -> None:
    """End a stalled run, where its process is on this machine and ours to end."""
    if not tensors.sessions:
        return
    session = tensors.sessions[-1]
    pid = int(session["pid"])
    if not _is_here(session["host"], pid, session["time"]):
        console.print(f"warning   process {pid} of {session['host']} is not to be found here")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:  # another person's, or gone in this moment
        console.print(f"warning   process {pid} could not be stopped: {error.strerror}")
        return
    console.print(f"stopping  process {pid}, which was asked to save and leave")
    if _has_left(run):
        console.print(f"stopped   process {pid} has left")
    else:
        console.print(
            f"warning   process {pid} has not left in {_LEAVING_S:g} s; one that hangs may never "
            f"hear. What it has not saved is lost with: kill -9 {pid}"
        )


def _is_here(host: str, pid: int, began: float) -> bool:
    """Whether the process that began to record then is on this machine, and not a later one."""
    try:
        return host == socket.gethostname() and psutil.Process(pid).create_time() <= began
    except psutil.Error:
        return False


def _has_left(run: RunFolder) -> bool:
    """Whether the run's lock, which a process holds as long as it lives, was let go in time."""
    deadline = time.monotonic() + _LEAVING_S
    while run.status() == "running":
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S / 4)
    return True
