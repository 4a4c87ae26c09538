"""What a study prints: a live table on a terminal, a line a trial elsewhere; and its result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vizsla.cli.console import UnbreakableConsole
from vizsla.findings import Finding
from vizsla.tuning.events import RunningTrial, StudyObserver, StudyState
from vizsla.tuning.folder import StudyFolder
from vizsla.tuning.screening import Screened
from vizsla.tuning.space import Space
from vizsla.tuning.study import Study
from vizsla.tuning.trials import TrialRecord, best_of, ranked

_SHOWN = 10
_STYLES = {"pruned": "bright_black", "refused": "bright_black", "failed": "red"}
_HEADINGS = {
    "accuracy": "val\naccuracy",
    "macro_f1": "val\nmacro F1",
    "top5_accuracy": "val\ntop-5",
    "loss": "val\nloss",
    "latency_ms": "ms",
    "size_mb": "MB",
}


class TuningDisplay(StudyObserver):
    """Shows a study while it runs. A context manager: leaving it restores the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or UnbreakableConsole(highlight=False)
        self._live: Live | None = None
        self._state: StudyState | None = None
        self._space: Space = {}
        self._earlier = 0
        self.study_path: Path | None = None

    def __enter__(self) -> TuningDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def on_study(self, folder: StudyFolder, space: Space, state: StudyState, **more: Any) -> None:
        self.study_path, self._state, self._space = folder.path, state, space
        facts = folder.facts()
        data, study = facts["data"], facts["study"]  # with what this sitting has changed
        self._print(f"study     {folder.path}")
        self._print(
            f"pictures  {data['pictures']:,}; {data['classes']} classes, from {data['source']}"
        )
        self._print(f"search    {', '.join(f'{name} {values}' for name, values in space.items())}")
        trials = f"{state.limit} trials" if state.limit is not None else "as many trials as fit"
        timeout = f" in {study['timeout']}" if "timeout" in study else ""
        self._print(
            f"by        {study.get('sampler', 'tpe')}, pruner {study.get('pruner', 'asha')}, best "
            f"{', '.join(state.objectives)}; {trials}{timeout}, {state.slots} at a time"
        )
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=4)
            self._live.start()

    def on_note(self, note: str, **more: Any) -> None:
        self._print(f"note      {note}")

    def on_screened(self, screened: Sequence[Screened], kept: Sequence[str], **more: Any) -> None:
        for line in _probes(screened):
            self._print(line)
        self._print(f"kept      {', '.join(kept)}")

    def on_trial_begun(self, trial: RunningTrial, **more: Any) -> None:
        if self._live is None:
            self._print(f"trial {trial.number:<3} {_settings(trial.params)}")

    def on_change(self, state: StudyState, **more: Any) -> None:
        if self._live is not None:
            self._live.update(self._picture(state))

    def on_trial_over(self, record: TrialRecord, **more: Any) -> None:
        if self._live is None and self._state is not None:
            self._print(f"trial {record.number:<3} {_outcome(record)}; {_standing(self._state)}")

    def on_end(self, **more: Any) -> None:
        self._close()

    def on_bundle_begun(self, record: TrialRecord, **more: Any) -> None:
        self._print(f"bundle    of trial {record.number}: evaluating and exporting …")

    def on_result(self, study: Study, findings: Sequence[Finding], **more: Any) -> None:
        print_study(self._console, study, findings)

    def _picture(self, state: StudyState) -> Group:
        """The trials at work, the best so far, and a line of totals."""
        table = _table(list(self._space), state.objectives)
        for running in state.running.values():
            table.add_row(*_running_row(running, list(self._space), state.objectives))
        best = ranked(state.over, state.objectives[0])[:_SHOWN]
        for rank, record in enumerate(best, start=1):
            row = _row(rank, record, list(self._space), state.objectives)
            table.add_row(*row, style=_STYLES.get(record.status))
        return Group(table, Text(_standing(state)))

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def print_study(console: Console, study: Study, findings: Sequence[Finding] | None = None) -> None:
    """The leaderboard, what rules say, and where everything lies."""
    for line in _probes(study.screening):
        console.print(line, soft_wrap=True, markup=False)
    records = study.records
    table = _table(list(study.space), study.objectives)
    front = {one.number for one in study.front} if len(study.objectives) > 1 else set()
    shown = [record for record in records if record.status != "refused"]
    for rank, record in enumerate(shown, start=1):
        row = _row(rank, record, list(study.space), study.objectives)
        mark = " ◆" if record.number in front else ""
        table.add_row(*row[:-1], row[-1] + mark, style=_STYLES.get(record.status))
    # A file or a pipe has no width that a table would have to fit.
    console.print(table, width=None if console.is_terminal else 200)
    if front:
        console.print("◆ the best compromises: none is better in one and as good in the others.")
    for finding in study.findings() if findings is None else findings:
        console.print(
            f"{finding.severity}: {finding.meaning} {finding.advice}", soft_wrap=True, markup=False
        )
    for line in _places(study):
        console.print(line, soft_wrap=True, markup=False)


def _probes(screened: Sequence[Screened]) -> list[str]:
    return [
        f"probe {rank:<3} {one.model} {'failed' if one.value is None else f'{one.value:.4f}'} in "
        f"{one.seconds:.1f} s{f': {one.reason}' if one.reason else ''}"
        for rank, one in enumerate(screened, start=1)
    ]


def _places(study: Study) -> list[str]:
    folder = study.folder
    lines = []
    if folder.best_recipe.is_file():
        lines.append(f"recipe    {folder.best_recipe}")
    if (folder.bundle / "bundle.json").is_file():
        lines.append(f"bundle    {folder.bundle}")
    if folder.leaderboard.is_file():
        lines.append(f"figures   {folder.leaderboard}")
    if folder.report.is_file():
        lines.append(f"report    {folder.report}")
    else:
        lines.append(f"next      vizsla report {folder.path}")
    return lines


def _table(names: Sequence[str], objectives: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    figures = [_HEADINGS[one] for one in objectives]
    for title in ("rank", "trial", *figures, *(name.replace("_", "_\n") for name in names)):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("epochs", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    return table


def _row(
    rank: int, record: TrialRecord, names: Sequence[str], objectives: Sequence[str]
) -> list[str]:
    return [
        str(rank) if record.values else "-",
        str(record.number),
        *(_figure(record.values.get(one), one) for one in objectives),
        *(_value(record.params.get(name)) for name in names),
        str(len(record.curve)) if record.curve else "-",
        "-" if record.seconds is None else f"{record.seconds:.1f}",
        record.status,
    ]


def _running_row(
    running: RunningTrial, names: Sequence[str], objectives: Sequence[str]
) -> list[str]:
    return [
        "…",
        str(running.number),
        _figure(running.last, objectives[0]),
        *("-" for _ in objectives[1:]),
        *(_value(running.params.get(name)) for name in names),
        f"{running.epoch}/{running.epochs or '?'}",
        f"{running.earlier_seconds + time.monotonic() - running.started:.0f}",
        running.doing,
    ]


def _figure(value: float | None, objective: str) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if objective in ("latency_ms", "size_mb") else f"{value:.4f}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "-" if value is None else str(value)


def _settings(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in params.items())


def _outcome(record: TrialRecord) -> str:
    figures = ", ".join(f"{name} {_figure(value, name)}" for name, value in record.values.items())
    seconds = "" if record.seconds is None else f" in {record.seconds:.1f} s"
    if record.status == "failed":
        return f"failed{seconds}: {record.reason}"
    epochs = "1 epoch" if len(record.curve) == 1 else f"{len(record.curve)} epochs"
    by = f" by {record.pruned_by}" if record.pruned_by is not None else ""
    return f"{record.status}{by} after {epochs}{seconds}: {figures}"


def _standing(state: StudyState) -> str:
    """How many trials are over, the best of them, and an estimate of what is left."""
    of = f" of {state.limit}" if state.limit is not None else ""
    words = [f"{len(state.over)}{of} trials over"]
    best = best_of(state.over, state.objectives[0])
    if best is not None:
        figure = _figure(best.values[state.objectives[0]], state.objectives[0])
        words.append(f"best {figure} (trial {best.number})")
    now = time.monotonic()
    left = state.seconds_left(now)
    words.append(f"{_span(now - state.begun)} gone")
    if left is None:
        words.append("time left unknown until a trial is over")
    elif left > 0:
        words.append(f"about {_span(left)} left")
    return ", ".join(words)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
