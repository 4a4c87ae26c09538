"""A run is a folder. This file knows its layout, makes it, locks it, writes and reads it.

    run.toml               recipe, data, model, seed, versions, hardware
    catalogue.csv          every picture with its class and split; itself a manifest
    metrics.jsonl          a line an epoch
    steps.jsonl            a line an optimiser update
    trunk.json             what the frozen layers were computed with, and how often
    findings.jsonl         what rules noticed
    footprint.json         size and speed of the network, where a study asked
    outcome.json           how a training ended without a bundle: trained, pruned, failed, or
                           stopped by rule
    debug.json             how the debugger was set
    tensors.jsonl          what the debugger captured, with tensors/
    profile.json           how the profiler was set
    profile-NODE.jsonl     samples of a machine, a line each
    timeline.jsonl         where the time of each step went, and of what lies between steps
    corrupt_pictures.csv   pictures that were skipped or repaired, and why
    checkpoints/           last.pt and best.pt
    evaluation-valid.json, evaluation-test.json, predictions-valid.csv, predictions-test.csv
    bundle/                the model that leaves

Lines are never rewritten: a resumed run repeats the steps after its last checkpoint, and for
those a reader takes the later line.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from vizsla.errors import RunError, StorageError
from vizsla.findings import Finding, identity_of
from vizsla.records import EpochRecord, PictureProblem, SplitMetrics
from vizsla.runs.files import append_lines, read_lines, storage_error, write_json, write_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FORMAT_VERSION = 1
# The status of a run that a finding of the debugger stopped; it can be taken up again.
STOPPED_BY_RULE = "stopped by rule"
# The `kind` in `run.toml` of a run whose loop is not vizsla's: it was only watched.
WATCHED = "watched"


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. Holds no open file and no state: two objects of one path are the same."""

    path: Path

    @classmethod
    def create(cls, parent: Path, model: str, now: datetime | None = None) -> RunFolder:
        """A new, empty run folder `YYYY-MM-DD-HHMMSS-model` in `parent`."""
        return cls.at(new_folder(parent, model, now))

    @classmethod
    def at(cls, path: Path) -> RunFolder:
        """A new run folder at `path`, which holds no run yet."""
        if (path / "run.toml").exists():
            raise RunError(f"{path} is a run already; go on with: vizsla train --resume {path}")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(path, error) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises `RunError` if `path` is none, or of another format."""
        if not (path / "run.toml").is_file():
            hint = " It looks like a bundle." if (path / "bundle.json").is_file() else ""
            raise RunError(f"{path} is not a run: it has no run.toml.{hint} See: vizsla runs list")
        run = cls(path)
        version = run.facts().get("format_version")
        if version != FORMAT_VERSION:
            raise RunError(
                f"The run {path} has format version {version}, and this vizsla reads version "
                f"{FORMAT_VERSION}. Use the vizsla that wrote it "
                f"({run.facts().get('versions', {}).get('vizsla', 'unknown')})."
            )
        return run

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def bundle(self) -> Path:
        return self.path / "bundle"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def catalogue(self) -> Path:
        return self.path / "catalogue.csv"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for writing; raises `RunError` where another process does."""
        with self._held(".lock", "trained"):
            for leftover in (*self.path.glob(".*.part*"), *self.checkpoints.glob(".*.part")):
                if leftover.is_file():  # of a writer that was killed
                    leftover.unlink(missing_ok=True)
            yield

    def profiled(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run for writing a profile, beside whoever trains or watches; raises `RunError`
        where another process does."""
        return self._held(".profile.lock", "profiled")

    def timed(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run of a command for writing the steps of a loop in it; raises `RunError` where
        another process does."""
        return self._held(".timeline.lock", "timed")

    @contextlib.contextmanager
    def _held(self, name: str, how: str) -> Iterator[None]:
        lock = FileLock(self.path / name, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise RunError(
                f"The run {self.path} is being {how} by another process; wait for it or stop it."
            ) from None
        except OSError as error:
            raise storage_error(self.path / name, error) from error
        try:
            yield
        finally:
            lock.release()

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write `run.toml`, which makes the folder a run."""
        write_text(
            self.path / "run.toml", tomli_w.dumps({"format_version": FORMAT_VERSION, **facts})
        )

    def facts(self) -> dict[str, Any]:
        """The content of `run.toml`."""
        try:
            return tomllib.loads((self.path / "run.toml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{self.path / 'run.toml'} cannot be read: {error}.") from None

    def append_epoch(self, record: EpochRecord) -> None:
        append_lines(self.path / "metrics.jsonl", [asdict(record)])

    def epochs(self) -> list[EpochRecord]:
        """One record for each finished epoch, in order."""
        found = map(_epoch_record, read_lines(self.path / "metrics.jsonl"))
        by_epoch = {record.epoch: record for record in found if record is not None}
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def append_steps(self, lines: list[dict[str, Any]]) -> None:
        append_lines(self.path / "steps.jsonl", lines)

    def steps(self) -> list[dict[str, Any]]:
        """One line for each optimiser update, in order."""
        lines = read_lines(self.path / "steps.jsonl")
        by_step = {line["step"]: line for line in lines if isinstance(line.get("step"), int)}
        return [by_step[step] for step in sorted(by_step)]

    def append_findings(self, findings: Iterable[Finding]) -> None:
        lines = [finding.to_dict() for finding in findings]
        if lines:
            append_lines(self.path / "findings.jsonl", lines)

    def findings(self) -> list[dict[str, Any]]:
        """The findings so far, each once, as it was last."""
        lines = filter(_is_finding, read_lines(self.path / "findings.jsonl"))
        return list({identity_of(line): line for line in lines}.values())

    def write_trunk(self, facts: Mapping[str, Any]) -> None:
        """Write what became of the outputs of the frozen layers."""
        write_json(self.path / "trunk.json", facts)

    def trunk(self) -> dict[str, Any] | None:
        """What became of the outputs of the frozen layers; None where they were not kept."""
        return self._read_json("trunk.json")

    def debug_settings(self) -> dict[str, Any] | None:
        """How the debugger was set; None where there was none."""
        return self._read_json("debug.json")

    def profile_settings(self) -> dict[str, Any] | None:
        """How the profiler was set; None where there was none."""
        return self._read_json("profile.json")

    def write_problems(self, problems: Iterable[PictureProblem]) -> None:
        """Write the list of pictures that were skipped or repaired."""
        rows = [(problem.path, problem.action, problem.problem) for problem in problems]
        self._write_table("corrupt_pictures.csv", ("path", "action", "problem"), rows)

    def problems(self) -> list[PictureProblem]:
        path = self.path / "corrupt_pictures.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [PictureProblem(**row) for row in csv.DictReader(file)]

    def write_evaluation(
        self, split: str, facts: Mapping[str, Any], predictions: Iterable[tuple[Any, ...]]
    ) -> None:
        """Write a split's figures, and what was answered for each of its pictures."""
        header = ("path", "label", "predicted", "confidence")
        self._write_table(f"predictions-{split}.csv", header, predictions)
        write_json(self.path / f"evaluation-{split}.json", facts)

    def evaluation(self, split: str) -> dict[str, Any] | None:
        """The figures of a split, or None before it has been evaluated."""
        return self._read_json(f"evaluation-{split}.json")

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}.") from None
        if not isinstance(facts, dict):
            raise RunError(f"{path} is damaged: it holds no JSON object.")
        return facts

    def write_footprint(self, figures: Mapping[str, float]) -> None:
        """Write what the network costs where it serves: `size_mb`, `latency_ms`."""
        write_json(self.path / "footprint.json", figures)

    def footprint(self) -> dict[str, Any] | None:
        """What the network costs where it serves; None where nobody asked."""
        return self._read_json("footprint.json")

    def write_outcome(self, status: str, reason: str | None = None) -> None:
        """Write how a training ended without a bundle: `trained`, `pruned`, `failed`, or
        `STOPPED_BY_RULE`."""
        write_json(self.path / "outcome.json", {"status": status, "reason": reason})

    def outcome(self) -> dict[str, Any] | None:
        """What `write_outcome` wrote; None where training goes on or ended otherwise."""
        return self._read_json("outcome.json")

    def forget_outcome(self) -> None:
        """The training is taken up again."""
        (self.path / "outcome.json").unlink(missing_ok=True)

    @property
    def is_finished(self) -> bool:
        """Whether the bundle, which comes last, is there."""
        return (self.bundle / "bundle.json").is_file() and self.evaluation("valid") is not None

    def status(self) -> str:
        """`finished`, `running` (another process holds it), `interrupted`, or its outcome."""
        if self.is_finished:
            return "finished"
        try:
            # Not `locked`, which would clear away what a loop that is only profiled is writing.
            with self._held(".lock", "trained"), self.profiled():
                pass
        except RunError:
            return "running"
        except StorageError:  # nobody can be training in a folder that cannot be written
            pass
        return str((self.outcome() or {}).get("status", "interrupted"))

    def _write_table(
        self, name: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]
    ) -> None:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
        write_text(self.path / name, text.getvalue())


def new_folder(parent: Path, about: str, now: datetime | None = None) -> Path:
    """Make a new folder `YYYY-MM-DD-HHMMSS-about` in `parent`, numbered where there is one."""
    stamp = (now or datetime.now()).strftime("%Y-%m-%d-%H%M%S")
    name = f"{stamp}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', about)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, 1000):
            path = parent / (name if attempt == 1 else f"{name}-{attempt}")
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise storage_error(parent, error) from error
    raise RunError(f"{parent} holds a thousand folders called {name}; choose another folder.")


def list_runs(parent: Path) -> list[RunFolder]:
    """The runs in a folder, oldest first."""
    if not parent.is_dir():
        return []
    return [RunFolder(path) for path in sorted(parent.iterdir()) if (path / "run.toml").is_file()]


def _epoch_record(line: Mapping[str, Any]) -> EpochRecord | None:
    """The epoch of a line; None of one that is damaged."""
    try:
        parts = {name: SplitMetrics(**line[name]) for name in ("train", "valid")}
        return EpochRecord(**{**line, **parts})
    except (KeyError, TypeError):
        return None


def _is_finding(line: Mapping[str, Any]) -> bool:
    texts = (line.get(name) for name in ("rule", "severity", "where", "meaning", "advice"))
    return all(isinstance(text, str) for text in texts)
