"""The observer that writes a run folder: epochs at once, steps a few at a time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vizsla.data.integrity import CorruptPictures
from vizsla.findings import Finding, judge_all
from vizsla.records import EpochRecord, PictureProblem
from vizsla.runs.folder import RunFolder
from vizsla.training.events import Observer, StepFacts

# Reading a loss waits for the device; a group of steps waits once.
_STEPS_HELD = 10


class RunRecorder(Observer):
    """Writes what happens into `run`. One recorder a run, in the main process alone."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._held: list[StepFacts] = []
        self._problems = {problem.path: problem for problem in run.problems()}

    def on_features(self, passes: Any, findings: list[Finding], **more: Any) -> None:
        facts, before = asdict(passes), self._run.trunk()
        if before is not None and not passes.passes:  # all was found: who made it still counts
            facts["engine"] = before["engine"]
        self._run.write_trunk(facts)
        self._run.append_findings(findings)

    def on_step(self, facts: StepFacts, **more: Any) -> None:
        self._held.append(facts)
        if len(self._held) >= _STEPS_HELD:
            self._write_steps()

    def on_problems(self, problems: list[PictureProblem], **more: Any) -> None:
        self._problems.update({problem.path: problem for problem in problems})
        self._run.write_problems(self._problems.values())

    def on_epoch(self, record: EpochRecord, **more: Any) -> None:
        self._run.append_epoch(record)

    def on_save(self, **more: Any) -> None:
        self._write_steps()

    def on_end(self, **more: Any) -> None:
        self._write_steps()
        self._judge_problems()

    def on_bundle(self, run: RunFolder, **more: Any) -> None:
        self._judge_problems()  # the test split's have come since

    def _judge_problems(self) -> None:
        self._run.append_findings(judge_all([CorruptPictures()], list(self._problems.values())))

    def _write_steps(self) -> None:
        held, self._held = self._held, []
        if held:
            self._run.append_steps([_line(facts) for facts in held])


def _line(facts: StepFacts) -> dict[str, Any]:
    return {
        "step": facts.step,
        "epoch": facts.epoch,
        "loss": float(facts.loss),
        "learning_rate": facts.learning_rate,
        "pictures": facts.pictures,
        "seconds": round(facts.seconds, 6),
        "wait_seconds": round(facts.wait_seconds, 6),
    }
