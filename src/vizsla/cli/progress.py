"""What a training prints: a live table on a terminal, plain lines elsewhere.

Either way each epoch also prints one line of `name=value` pairs on standard output, which
SageMaker's metric expressions (and grep) read.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vizsla.cli.console import UnbreakableConsole
from vizsla.findings import Finding
from vizsla.records import EpochRecord, PictureProblem
from vizsla.runs.folder import RunFolder
from vizsla.training.events import Observer, StepFacts, TrainingFacts
from vizsla.training.stopping import StopRequest


class TrainingDisplay(Observer):
    """Shows a training while it runs. A context manager: leaving it restores the terminal."""

    def __init__(self, console: Console | None = None) -> None:
        # Of several processes one speaks; each would print the same.
        quiet = os.environ.get("RANK", "0") != "0"
        self._console = console or UnbreakableConsole(highlight=False, quiet=quiet)
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._skipped = 0
        self._told: set[tuple[str, str]] = set()
        self._preparing = self._architecture = ""
        self._next_update = 0.0
        self._table_begun = False
        self.run_path: Path | None = None

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def on_run(self, run: RunFolder, **more: Any) -> None:
        facts = run.facts()
        self.run_path = run.path
        data, model = facts["data"], facts["model"]
        self._architecture = model["architecture"]
        counts = ", ".join(f"{count:,} {split}" for split, count in data["pictures"].items())
        self._print(f"run       {run.path}")
        self._print(f"pictures  {counts}; {len(data['classes'])} classes, from {data['source']}")
        self._print(f"model     {model['architecture']}, weights {model['weights']}")
        for finding in run.findings():
            self._print(f"{finding['severity']}: {finding['meaning']} {finding['advice']}")

    def on_note(self, note: str, **more: Any) -> None:
        self._print(f"note      {note}")

    def on_finding(self, finding: Finding, **more: Any) -> None:
        self._told.add((finding.rule, finding.where))
        against = "" if finding.threshold is None else f", threshold {finding.threshold:g}"
        measured = "" if finding.measured is None else f" ({finding.measured:.4g}{against})"
        self._print(
            f"{finding.severity}: {finding.rule}, {finding.where}{measured}: {finding.meaning} "
            f"{finding.advice}"
        )

    def on_trunk_progress(self, passes: int, of: int, found: int, **more: Any) -> None:
        self._show_progress("trunk", "passes", passes, of, found)

    def on_features(self, passes: Any, findings: list[Finding], **more: Any) -> None:
        for finding in findings:
            self._print(f"{finding.severity}: {finding.meaning} {finding.advice}")
        self._print(
            f"trunk     {self._architecture} up to {passes.boundary}, {passes.pictures:,} pictures "
            f"{'as they are' if passes.views == 1 else f'× {passes.views} views'}, "
            f"{passes.passes:,} passes, {passes.seconds:.1f} s (cached: {passes.cached:,}), "
            f"{passes.bytes / 1e6:,.1f} MB {'on' if passes.place == 'disk' else 'in'} "
            f"{passes.place}"
        )
        if passes.passes:
            self._print(f"engine    {passes.engine} ({passes.engine_why})")

    def on_decoding_progress(self, pictures: int, of: int, found: int, **more: Any) -> None:
        self._show_progress("decoding", "pictures", pictures, of, found)

    def on_pictures_kept(self, count: Any, **more: Any) -> None:
        self._print(
            f"decoded   {count.decoded:,} pictures (cached: {count.found:,}), "
            f"{count.bytes / 1e6:,.1f} MB on disk"
        )

    def on_start(self, facts: TrainingFacts, stop: StopRequest, **more: Any) -> None:
        share = facts.trained_numbers / facts.all_numbers
        how = (
            f"{facts.epochs} epochs of {facts.steps_per_epoch} steps of {facts.batch_size} "
            f"pictures, peak rate {facts.learning_rate:g}"
            if facts.solver == "gradient"
            else "L-BFGS, one weight decay after the other"
        )
        self._print(
            f"training  {facts.trained_numbers:,} of {facts.all_numbers:,} weights ({share:.1%}), "
            f"{how}, {facts.precision} on {facts.device}"
        )
        if facts.first_epoch:
            self._print(f"resuming  in epoch {facts.first_epoch + 1}")
        if facts.note is not None:
            self._print(f"note      frozen layers are computed every epoch: {facts.note}")
        self._begin_bar("", facts.steps_per_epoch)

    def _begin_bar(self, description: str, total: int) -> None:
        if self._live is None and self._console.is_terminal:
            self._task = self._bar.add_task(description, total=total, loss="")
            self._live = Live(self._bar, console=self._console, transient=True)
            self._live.start()
        elif self._live is not None:
            self._bar.reset(self._task, description=description, total=total, loss="")

    def _show_progress(self, description: str, what: str, done: int, of: int, found: int) -> None:
        """Progress before the first step; a line at its beginning where there is no terminal."""
        if done == 0 or description != self._preparing:
            self._preparing = description
            self._begin_bar(description, of)
            if self._live is None and of:
                self._print(f"{description:<9} {of:,} {what} to compute (cached: {found:,}) …")
        if self._live is not None:
            self._bar.update(self._task, completed=done)

    def on_step(self, facts: StepFacts, **more: Any) -> None:
        # Reading a loss waits for the device, so only as often as an eye can follow.
        if self._live is None or time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + 0.25
        self._bar.update(
            self._task,
            description=f"epoch {facts.epoch}",
            completed=facts.step_in_epoch,
            loss=f", loss {float(facts.loss):.4f}",
        )

    def on_problems(self, problems: list[PictureProblem], **more: Any) -> None:
        self._skipped += len(problems)

    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        if not self._table_begun:
            self._print(_header(record))
            self._table_begun = True
        self._print(_row(record))
        self._print(
            f"train:loss={record.train.loss:.6f} train:accuracy={record.train.accuracy:.6f} "
            f"validation:loss={record.valid.loss:.6f} "
            f"validation:accuracy={record.valid.accuracy:.6f} "
            f"validation:macro_f1={record.valid.macro_f1:.6f}",
            style="dim",
        )

    def on_end(self, **more: Any) -> None:
        self._close()
        if self._skipped:
            what = "1 picture" if self._skipped == 1 else f"{self._skipped:,} pictures"
            self._print(
                f"warning: {what} did not decode fully; see {self.run_path}/corrupt_pictures.csv"
            )

    def on_evaluation(self, split: str, figures: dict[str, Any], **more: Any) -> None:
        name = {"valid": "validation"}.get(split, split)
        self._print(
            f"{name}:accuracy={figures['accuracy']:.6f} {name}:loss={figures['loss']:.6f} "
            f"{name}:macro_f1={figures['macro_f1']:.6f} "
            f"({figures['pictures']} pictures, best weights)"
        )

    def on_bundle(self, run: RunFolder, **more: Any) -> None:
        for finding in run.findings():
            told = (finding["rule"], finding["where"]) in self._told
            if finding["severity"] == "error" and not told:
                self._print(f"error: {finding['meaning']} {finding['advice']}")
        self._print(f"bundle    {run.bundle}")
        self._print(f"next      vizsla predict {run.path} PICTURE")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, soft_wrap=True, markup=False, style=style)

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


_COLUMNS = (
    ("epoch", 5), ("loss", 8), ("top-1", 7), ("val loss", 9), ("val top-1", 10), ("top-5", 7),
    ("macro F1", 9), ("rate", 9), ("seconds", 8), ("pics/s", 7), ("wait", 6),
)  # fmt: skip


def _header(record: EpochRecord) -> str:
    titles = {"epoch": "try", "rate": "decay"} if record.weight_decay is not None else {}
    return " ".join(titles.get(name, name).rjust(width) for name, width in _COLUMNS)


def _row(record: EpochRecord) -> str:
    seconds = record.train_seconds + record.valid_seconds
    cells = (
        str(record.epoch),
        f"{record.train.loss:.4f}",
        f"{record.train.accuracy:.2%}",
        f"{record.valid.loss:.4f}",
        f"{record.valid.accuracy:.2%}",
        f"{record.valid.top5_accuracy:.2%}",
        f"{record.valid.macro_f1:.4f}",
        f"{record.learning_rate if record.weight_decay is None else record.weight_decay:.2e}",
        f"{seconds:.1f}",
        f"{record.pictures_per_second:.0f}",
        f"{record.wait_seconds / max(record.train_seconds, 1e-9):.1%}",
    )
    line = " ".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
    return f"{line} *" if record.best else line
