"""Rules on whether a training goes on: as it was before a resume, and at all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule, in_words
from vizsla.debugging.rules.losses import NOTHING, finite_losses, noise_of
from vizsla.debugging.tensors import Series
from vizsla.findings import Finding

# Losses on either side of a resume that are compared, and the fewest that tell anything.
_AROUND, _FEWEST = 10, 3


class DivergedFromCheckpoint(DebugRule):
    """After a resume the loss is not what it was: something was not restored.

    SageMaker has no such rule. Fires when steps that were computed twice differ in their loss by
    more than `tolerance` (of the first loss) in the mean of the first ten; or, where no step was
    computed twice, when the ten losses after the resume lie above the ten before by as much. The
    difference must also be three times what noise explains, for a resumed training may draw other
    batches. An error if the loss is back where training began: then no weights were loaded.
    """

    name: ClassVar[str] = "diverged_from_checkpoint"
    needs: ClassVar[tuple[str, ...]] = ("losses",)

    tolerance: float = Field(
        0.1, ge=0, le=1e6, description="Relative difference of the losses that is let pass."
    )

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        losses = finite_losses(record, "train")
        found = [jump for jump in _jumps(record, losses) if self._is_too_far(jump)]
        if not found:
            return []
        worst = max(found, key=lambda jump: abs(jump.after - jump.before))
        start = float(losses.values[:_FEWEST].mean())
        forgot = worst.at_once - worst.before > 0.7 * (start - worst.before) > 0
        others = [f"step {jump.step}" for jump in found if jump is not worst]
        return [
            self.finding(
                f"The training resumed at step {worst.step} with a loss of {worst.after:.4g}, "
                f"which had been {worst.before:.4g}"
                + (": it began anew, without the weights of its checkpoint." if forgot else ".")
                + (f" So it did at {in_words(others)}." if others else ""),
                "Load the weights (model.load_state_dict) before the first step."
                if forgot
                else "See that the checkpoint holds, and resuming loads, the optimiser, "
                "the schedule's step and the buffers of batch norm, and that data and "
                "augmentation are the same.",
                severity="error" if forgot else "warning",
                step=worst.step,
                measured=worst.relative,
                threshold=self.tolerance,
                loss_before=worst.before,
                loss_after=worst.after,
                repeated_steps=worst.repeated,
                resumes=[jump.step for jump in found][:20],
            )
        ]

    def _is_too_far(self, jump: _Jump) -> bool:
        far = abs(jump.after - jump.before)
        # Other batches in a new order may well be easier; the same steps may not.
        worse = jump.repeated > 0 or jump.after > jump.before
        return worse and jump.relative > self.tolerance and far > max(jump.chance, NOTHING)


class StalledTraining(DebugRule):
    """Nothing has been recorded for a while, although the training is said to run.

    Fires when a run that goes on has recorded nothing for more than `threshold` seconds. As in
    SageMaker the rule can end the run: with `stop` whoever watches it does so, the rule itself only
    says what it saw. An evaluation or a checkpoint that takes longer than `threshold` without a
    recorded step looks the same.
    """

    name: ClassVar[str] = "stalled_training"

    threshold: float = Field(1800, gt=0, le=1e7, description="Seconds without a record.")
    stop: bool = Field(False, description="Whether who watches the training is to end it.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        silent = record.seconds_silent
        if silent is None or silent <= self.threshold:
            return []
        steps = record.tensors.steps("train")
        pid = record.tensors.sessions[-1].get("pid") if record.tensors.sessions else None
        return [
            self.finding(
                f"Nothing has been recorded for {_span(silent)}: the training hangs, or its "
                "process is gone.",
                "See where it waits"
                + (f" (py-spy dump --pid {pid})" if pid else "")
                + ": often the loader's workers (try workers=0), a full or slow disk, or another "
                "process of the same training that has ended.",
                severity="error",
                step=steps[-1] if steps else None,
                measured=silent,
                threshold=self.threshold,
                pid=pid,
            )
        ]


def _span(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} minutes"
    return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"


class _Jump(NamedTuple):
    """Mean losses on both sides of a resume, that of the very first steps after it, and the
    difference that chance may make."""

    step: int
    before: float
    after: float
    at_once: float
    chance: float
    repeated: int

    @property
    def relative(self) -> float:
        return abs(self.after - self.before) / max(abs(self.before), 1e-12)


def _jumps(record: TrainingRecord, losses: Series) -> Iterable[_Jump]:
    """One for each resume whose steps are still there and that has losses to compare."""
    resumes = [int(session["first_step"]) for session in record.tensors.sessions[1:]]
    again = _repeated(record)
    for at, first in enumerate(resumes):
        # A later session may have computed all of this one again: then nothing is left of it.
        end = min(resumes[at + 1 :], default=np.inf)
        old = losses.values[losses.steps < first]
        pairs = [again[step] for step in sorted(again) if first <= step < end][:_AROUND]
        if pairs:
            before, after = np.array(pairs).T
        else:
            before = old[-_AROUND:]
            after = losses.values[(losses.steps >= first) & (losses.steps < end)][:_AROUND]
            if min(len(before), len(after)) < _FEWEST:
                continue
        noise = noise_of(old[-5 * _AROUND :] if len(old) > _FEWEST else before)
        chance = 3 * noise * float(np.sqrt(1 / len(before) + 1 / len(after)))
        was, now, at_once = (float(part.mean()) for part in (before, after, after[:_FEWEST]))
        yield _Jump(first, was, now, at_once, chance, len(pairs))


def _repeated(record: TrainingRecord) -> dict[int, tuple[float, float]]:
    """The loss then and again of each step that was computed twice."""
    found: dict[int, tuple[float, float]] = {}
    last = None
    for step, before, after in record.tensors.repeated_losses():
        # Of several losses of a step the first is the one that is trained on.
        if step != last and np.isfinite([before, after]).all():
            found[step] = before, after
        last = step
    return found
