"""vizsla profile: where a run's time went, or a command's, and what to change."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vizsla.errors import SettingError, VizslaError

if TYPE_CHECKING:
    import pandas as pd

    from vizsla.profiling.command import Ended
    from vizsla.profiling.recorded import Profile

# What `vizsla.cli.run` leaves before a command to be profiled; no run is called so.
DIVIDER = "--"


def profile(
    run: Path | None = None,
    /,
    *command: str,
    rule: Annotated[list[str] | None, Parameter(name=["--rule", "--rules"], negative="")] = None,
    frame: Path | None = None,
    steps: Path | None = None,
    runs: Path | None = None,
    interval_ms: int | None = None,
) -> int:
    """Tell where the time of a run went and what to change, worst first; or run any command,
    its children included, and tell it of that: vizsla profile -- python any_script.py

    Parameters
    ----------
    run
        The folder of a run that was profiled.
    command
        After two hyphens, a command to run and to sample meanwhile; all of it is the command's.
    rule
        Judge by these rules alone, such as step_outlier:stddev=3; may be given several times.
    frame
        Write the samples into this CSV file, a row for each metric and time, with the columns of
        SageMaker's data frame.
    steps
        Write the steps into this CSV file, a row each, with the seconds of its phases.
    runs
        Of a command, the folder in which the run's folder is made; runs unless given.
    interval_ms
        Of a command, milliseconds between two samples of the machine, 100 to 60,000; 500 unless
        given.
    """
    words = [*([str(run)] if run is not None else []), *command]
    if DIVIDER in words:
        at = words.index(DIVIDER)
        _check_command(words[:at], words[at + 1 :])
        return _run(words[at + 1 :], runs or Path("runs"), interval_ms, rule, frame, steps)
    _check_run(words, runs, interval_ms)
    folder = Path(words[0])
    if frame is not None or steps is not None:
        _write_frames_alone(folder, frame, steps, rule)
    else:
        _tell(folder, rule)
    return 0


def _check_command(before: list[str], command: list[str]) -> None:
    if before:
        raise SettingError(
            f"Either a run or a command is profiled; leave out {before[0]}, or {DIVIDER} and what "
            "follows."
        )
    if not command:
        raise SettingError(f"No command follows {DIVIDER}; try: vizsla profile -- python script.py")


def _check_run(words: list[str], runs: Path | None, interval_ms: int | None) -> None:
    if not words:
        raise SettingError(
            "Name a run's folder, or a command after two hyphens: vizsla profile RUN, or vizsla "
            "profile -- python script.py"
        )
    if len(words) > 1:
        raise SettingError(
            f"One run is profiled at a time, and {len(words)} words were given. To run a command, "
            f"put two hyphens before it: vizsla profile -- {' '.join(words)}"
        )
    ignored = {"--runs": runs, "--interval-ms": interval_ms}
    if given := [name for name, value in ignored.items() if value is not None]:
        raise SettingError(
            f"{' and '.join(given)} is for a command that is to be run; leave it out for a run "
            "that was profiled."
        )


def _tell(path: Path, rules: list[str] | None) -> None:
    from rich.console import Console

    from vizsla.cli.profile_summary import print_profile
    from vizsla.profiling.judging import judge_profile
    from vizsla.runs.folder import RunFolder

    run = RunFolder.open(path)
    judged = judge_profile(run, _joined(rules))
    print_profile(Console(highlight=False), run, judged)


def _write_frames_alone(
    path: Path, frame: Path | None, steps: Path | None, rules: list[str] | None
) -> None:
    from vizsla.profiling.recorded import open_profile
    from vizsla.runs.folder import RunFolder

    if rules:
        raise SettingError("--rule is for findings alone; write frames by a command of its own.")
    _write_frames(open_profile(RunFolder.open(path).path), frame, steps)


def _write_frames(profile: Profile, frame: Path | None, steps: Path | None) -> None:
    if frame is not None:
        if not profile.nodes:
            raise SettingError(f"{profile.run} has no samples to write, only steps: use --steps.")
        _write_table("frame", frame, profile.system_frame())
    if steps is not None:
        if not profile.ranks:
            raise SettingError(
                f"{profile.run} has no steps to write: the machine alone was sampled. Put "
                "vizsla.profiling.profile around the loop to have them."
            )
        _write_table("steps", steps, profile.steps_frame())


def _write_table(name: str, path: Path, table: pd.DataFrame) -> None:
    try:
        table.to_csv(path, index=False)
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror or error}.") from None
    print(f"{name:<9} {path}")


def _run(
    command: list[str],
    runs: Path,
    interval_ms: int | None,
    rules: list[str] | None,
    frame: Path | None,
    steps: Path | None,
) -> int:
    """Run a command, tell of it, and give its exit code, whatever may be wrong with the telling."""
    from vizsla.profiling.command import run_command
    from vizsla.profiling.format import DEFAULT_INTERVAL_MS
    from vizsla.profiling.rules.choosing import choose_rules

    choose_rules(_joined(rules))  # a mistake is told before the command takes its hours
    interval_ms = DEFAULT_INTERVAL_MS if interval_ms is None else interval_ms
    ended = run_command(command, runs, interval_ms)
    try:
        _tell_of_command(ended, rules)
        if frame is not None or steps is not None:
            from vizsla.profiling.recorded import open_profile

            _write_frames(open_profile(ended.run.path), frame, steps)
    except (VizslaError, OSError) as error:
        with contextlib.suppress(OSError):
            print(f"vizsla: {error}", file=sys.stderr)
    except SystemExit:  # rich's, where the reader of what is told has left
        pass
    return ended.code


def _tell_of_command(ended: Ended, rules: list[str] | None) -> None:
    """Write and print what was found. It goes to standard error: the output is the command's."""
    from rich.console import Console

    from vizsla.cli.findings import new_of
    from vizsla.cli.profile_summary import print_profile
    from vizsla.profiling.judging import judge_profile

    judged = judge_profile(ended.run, _joined(rules))
    found = [finding for finding in judged.findings if finding.severity != "info"]
    ended.run.append_findings(new_of(found, ended.run.findings()))
    print_profile(Console(highlight=False, stderr=True), ended.run, judged, ended.reason)


def _joined(rules: list[str] | None) -> str | None:
    return ",".join(rules) if rules else None
