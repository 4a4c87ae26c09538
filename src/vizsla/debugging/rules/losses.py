"""Rules over losses: that they fall, in training and on pictures that were never trained on.

A loss of one batch is noisy, so nothing here compares two single batches. What separates a change
from chance is the noise itself, measured by how much neighbouring losses differ: a jump in the
loss, or a fall, moves few of those differences, and so leaves their median alone. Losses that are
not finite are another rule's (exploding_tensor) and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule
from vizsla.debugging.rules.learning_rate import way_out
from vizsla.debugging.tensors import Evaluation, Series
from vizsla.findings import Finding

# A loss, or a difference of losses, that is too small to matter: cross entropy of this many nats
# is a confidence of 99 % in the right class.
NOTHING = 0.01
# Neighbours' differences of normal noise have this median, in standard deviations.
_MEDIAN_DIFFERENCE = 0.954
# As long as noise may hide a fall of this share of the loss, a slow fall is given more time.
_HIDDEN = 0.03
# An evaluation counts as worse than the best one from here, so that a plateau's ripple does not.
_WORSE = 1.02
# Validation losses that are so many times the first training loss are not learned by heart, even
# where the training loss is gone; nor are those twice as high where it has not even halved.
_DIVERGED, _DIVERGED_UNLEARNED = 10, 2


class LossNotDecreasing(DebugRule):
    """The loss does not fall, or rises.

    Fires when the loss has fallen by less than `diff_percent` since the beginning, or by no more
    than its noise explains; or when the last `num_steps` lie more than `increase_threshold_percent`
    (and three times the noise) above the best `num_steps` before them. It needs three windows of
    `num_steps`, counted from the middle of a learning rate's warm-up, and as many steps as it takes
    until noise can hide no fall of 3 %.

    Unlike SageMaker's it compares windows instead of single steps, and the end with the beginning
    instead of with the step `num_steps` before: a training that has converged no longer falls, and
    is well. A loss within 0.01 of 0 is fine whatever it does. A training whose beginning was not
    recorded is judged for rising only. `mode` is train, or eval, which compares whole evaluations;
    in capitals too. GLOBAL means train: SageMaker's lets training and evaluation losses take turns,
    which rise and fall by turns.
    """

    name: ClassVar[str] = "loss_not_decreasing"
    needs: ClassVar[tuple[str, ...]] = ("losses",)

    num_steps: int = Field(
        10, ge=1, le=1_000_000, description="Recorded losses in a window (evaluations of eval)."
    )
    diff_percent: float = Field(
        0.1, ge=0, le=100, description="Least fall since the beginning, in percent."
    )
    increase_threshold_percent: float = Field(
        5.0, ge=0, le=1e6, description="Rise over the best window that is let pass, in percent."
    )
    mode: Literal["train", "eval"] = Field("train", description="Whose losses are judged.")

    @field_validator("mode", mode="before")
    @classmethod
    def _of_old(cls, mode: Any) -> Any:
        small = mode.lower() if isinstance(mode, str) else mode
        return "train" if small == "global" else small

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        losses = finite_losses(record, self.mode)
        count, width = len(losses), self.num_steps
        if count < 3 * width or abs(np.median(losses.values[-width:])) <= NOTHING:
            return []
        rates = record.tensors.learning_rates()
        if not len(rates):
            return self._rise(losses, None) or self._no_fall(record, losses, None)
        # Before this the steps were too short to show anything.
        peak = float(rates.values.max())
        warm = rates.steps[np.argmax(rates.values >= peak / 2)]
        if int((losses.steps >= warm).sum()) < 3 * width:
            return []
        rise = self._rise(losses, float(rates.values[-1]))
        return rise or self._no_fall(record, losses, peak)

    def _rise(self, losses: Series, rate: float | None) -> list[Finding]:
        width = self.num_steps
        whole = losses.values[len(losses) % width :].reshape(-1, width)  # the last one ends now
        medians = np.median(whole, axis=1)  # a mean would take one odd batch for a rise
        at = int(medians[:-1].argmin())
        best, last = float(medians[at]), float(medians[-1])
        rise = last - best
        least = self.increase_threshold_percent / 100 * abs(best)
        if rise <= max(least, 3 * noise_of(losses.values[:-width]), NOTHING):
            return []
        # A first window may have fallen far by its middle.
        start = max(float(medians[0]), float(np.median(losses.values[:3])))
        beyond_start = last > start + least
        slower = f"to {rate / 10:.2g}, a tenth of what it is" if rate else "to a tenth"
        step = int(losses.steps[len(losses) % width + at * width])
        return [
            self.finding(
                f"The loss rose from {best:.4g} at step {step} to {last:.4g}"
                + (", more than it began with: the training diverges." if beyond_start else "."),
                f"Lower the learning rate {slower}, clip gradients (clip_norm 1), and go back to "
                f"the checkpoint before step {step + width}.",
                severity="error" if beyond_start else "warning",
                step=int(losses.steps[-1]),
                measured=100 * rise / max(abs(best), 1e-12),
                threshold=self.increase_threshold_percent,
                best_step=step,
                best_loss=best,
                last_loss=last,
                learning_rate=rate,
            )
        ]

    def _no_fall(self, record: TrainingRecord, losses: Series, rate: float | None) -> list[Finding]:
        gap = int(losses.steps[1] - losses.steps[0])
        if losses.steps[0] > gap + 1:  # the beginning is missing
            return []
        values, noise = _without_odd_ones(losses.values), noise_of(losses.values)
        still, falls, hidden = rate == 0, [], 0.0
        # A fall at once shows in the first window against the rest, a slow one in the thirds.
        for early, late in (
            (self.num_steps, len(values) - self.num_steps),
            (len(values) // 3, len(values) // 3),
        ):
            first, last = float(values[:early].mean()), float(values[-late:].mean())
            percent = 100 * (first - last) / max(abs(first), 1e-12)
            chance = 2 * noise * float(np.sqrt(1 / early + 1 / late))
            if percent >= self.diff_percent and first - last > chance:
                return []
            falls.append(percent)
            hidden = chance / max(abs(first), 1e-12)
        if hidden > _HIDDEN and not still:
            return []
        return [
            self.finding(
                f"The loss has not fallen in {len(values)} recorded steps: it began at "
                f"{values[: self.num_steps].mean():.4g} and is at "
                f"{values[-self.num_steps :].mean():.4g}.",
                way_out(record, rate),
                severity="error" if still else "warning",
                step=int(losses.steps[-1]),
                measured=max(falls),
                threshold=self.diff_percent,
                noise=noise,
                learning_rate=rate,
            )
        ]


class Overfit(DebugRule):
    """The loss on validation pictures lies above that on training pictures.

    Fires when (validation loss - training loss) / training loss exceeds `ratio_threshold` in
    `patience` evaluations in a row. It is a hint while the validation loss still finds a new best,
    and a warning once the evaluations since the best one (`patience`, at least two) lie more than
    2 % above it, which SageMaker's does not tell apart. The training loss is the mean since the
    evaluation before, so that it lags: the ratio is too small rather than too large. A gap of less
    than 0.01 is none. A validation loss that is no number, or a multiple of the first training
    loss (ten times, or twice where training did not halve it), was not learned by heart: it is told
    as one that diverges.
    """

    name: ClassVar[str] = "overfit"
    needs: ClassVar[tuple[str, ...]] = ("losses",)

    ratio_threshold: float = Field(
        0.1, ge=0, le=1e6, description="Gap over training loss that is let pass."
    )
    patience: int = Field(1, ge=1, le=100_000, description="Evaluations in a row that must exceed.")
    start_step: int = Field(0, ge=0, description="Training step to begin at.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        if diverged := self._diverged(record):
            return [diverged]
        seen = [one for one in _evaluations(record) if one.step >= self.start_step]
        recent = seen[-self.patience :]
        if len(recent) < self.patience or not all(self._gapes(one) for one in recent):
            return []
        last = seen[-1]
        best = min(seen, key=lambda one: one.valid_loss)
        since = [one.valid_loss for one in seen[seen.index(best) + 1 :]]
        limit = best.valid_loss + (_WORSE - 1) * abs(best.valid_loss)
        worsens = len(since) >= max(self.patience, 2) and float(np.mean(since)) > limit
        gap = (
            f"The loss is {last.valid_loss:.4g} in validation and {last.train_loss:.4g} in training"
        )
        best_place = _place(record, best.step)
        if worsens:
            meaning = (
                f"{gap}, and in validation was best ({best.valid_loss:.4g}) at {best_place}: since "
                "then the network learns training pictures by heart."
            )
            advice = f"Stop at {best_place}, or train with {_stronger(record)}."
        else:
            meaning = f"{gap}: the network knows its training pictures better than others."
            advice = (
                "Nothing is lost while the validation loss falls. Once it does not, stop; "
                f"what narrows the gap is {_stronger(record)}."
            )
        return [
            self.finding(
                meaning,
                advice,
                severity="warning" if worsens else "info",
                step=last.step,
                measured=_ratio(last),
                threshold=self.ratio_threshold,
                best_step=best.step,
                best_valid_loss=best.valid_loss,
                valid_loss=last.valid_loss,
                train_loss=last.train_loss,
            )
        ]

    def _diverged(self, record: TrainingRecord) -> Finding | None:
        """Whether validation parts from training in all of the last `patience` evaluations."""
        seen = [one for one in record.tensors.evaluations() if one.step >= self.start_step]
        recent = [one for one in seen if np.isfinite(one.train_loss)][-self.patience :]
        if len(recent) < self.patience:
            return None
        first = float(np.median(finite_losses(record, "train").values[:3]))
        if not all(self._parts(one, first) for one in recent):
            return None
        last = recent[-1]
        known = bool(np.isfinite(last.valid_loss))
        return self.finding(
            f"The loss is {last.valid_loss:.4g} in validation and {last.train_loss:.4g} in "
            f"training, which began at {first:.4g}: validation diverges from training.",
            "Lower the learning rate, and look at batch normalisation, whose statistics in eval "
            "mode need not fit (batch_norm_mismatch tells), and whether validation pictures are "
            "prepared like those of training.",
            step=last.step,
            measured=_ratio(last) if known else None,
            threshold=self.ratio_threshold,
            cause="diverged",
            valid_loss=last.valid_loss if known else None,
            train_loss=last.train_loss,
        )

    def _parts(self, one: Evaluation, first: float) -> bool:
        """Whether a validation loss is out of all proportion to what training began with."""
        if not np.isfinite(one.valid_loss):
            return True
        times = _DIVERGED_UNLEARNED if one.train_loss > first / 2 else _DIVERGED
        return self._gapes(one) and 0 < times * first < one.valid_loss

    def _gapes(self, one: Evaluation) -> bool:
        return _ratio(one) > self.ratio_threshold and one.valid_loss - one.train_loss > NOTHING


class Overtraining(DebugRule):
    """Training goes on although it no longer improves anything.

    Fires when the validation loss has found no best that is lower by `delta` for
    `patience_validation` evaluations, or when neither loss has for `patience_train` evaluations. It
    is a warning if the validation loss is by now more than `delta` above its best, else a hint that
    time is wasted. SageMaker's counts steps; here evaluations are counted, and the training loss
    is its mean between them, since single batches differ by more than `delta`. Losses that are both
    below 0.01 are fine, and a training loss that never improved is loss_not_decreasing's.
    """

    name: ClassVar[str] = "overtraining"
    needs: ClassVar[tuple[str, ...]] = ("losses",)

    patience_train: int = Field(
        5, ge=1, le=100_000, description="Evaluations without a better training loss."
    )
    patience_validation: int = Field(
        10, ge=1, le=100_000, description="Evaluations without a better validation loss."
    )
    delta: float = Field(0.01, ge=0, le=1e6, description="What a better loss is lower by.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        seen = _evaluations(record)
        if not seen:
            return []
        best, train_best = (
            _last_best([getattr(one, loss) for one in seen], self.delta)
            for loss in ("valid_loss", "train_loss")
        )
        valid_for, train_for = len(seen) - 1 - best, len(seen) - 1 - train_best
        both = min(valid_for, train_for) >= self.patience_train
        last = seen[-1]
        lowest = min(seen, key=lambda one: one.valid_loss)
        small = max(abs(last.valid_loss), abs(last.train_loss)) <= NOTHING
        never = train_best == 0 and abs(last.train_loss) > NOTHING
        if (valid_for < self.patience_validation and not both) or small or never:
            return []
        keep = f"Stop, and keep the weights of {_place(record, lowest.step)};"
        gains = last.valid_loss <= lowest.valid_loss  # by less than delta
        also = f"; training loss neither for {train_for}" if both else ""
        stop = f"patience={min(self.patience_train, self.patience_validation)}"
        return [
            self.finding(
                f"For {valid_for} evaluations the validation loss has been no better by "
                f"{self.delta:g} than {seen[best].valid_loss:.4g} at "
                f"{_place(record, seen[best].step)} (now {last.valid_loss:.4g}{also})"
                + (": further training gains less than that." if gains else "."),
                f"Stop, which saves time, or let training stop itself with {stop}; the present "
                "weights are the best."
                if gains
                else f"{keep} let training stop itself with {stop}.",
                severity="warning" if last.valid_loss > lowest.valid_loss + self.delta else "info",
                step=last.step,
                measured=float(valid_for),
                threshold=float(self.patience_train if both else self.patience_validation),
                best_step=last.step if gains else lowest.step,
                best_valid_loss=lowest.valid_loss,
                valid_loss=last.valid_loss,
                train_evaluations=train_for,
            )
        ]


def finite_losses(record: TrainingRecord, mode: str) -> Series:
    """Finite losses of a mode; of eval one for each evaluation."""
    if mode == "eval":
        seen = [one for one in record.tensors.evaluations() if np.isfinite(one.valid_loss)]
        return Series(
            np.array([one.step for one in seen], np.int64),
            np.array([one.valid_loss for one in seen], np.float64),
        )
    losses = record.tensors.losses(mode)
    there = np.isfinite(losses.values)
    return Series(losses.steps[there], losses.values[there])


def _evaluations(record: TrainingRecord) -> list[Evaluation]:
    """Those with finite losses on both sides."""
    return [
        one
        for one in record.tensors.evaluations()
        if np.isfinite(one.valid_loss) and np.isfinite(one.train_loss)
    ]


def noise_of(values: NDArray[np.float64]) -> float:
    """The standard deviation of a loss around its trend."""
    if len(values) < 2:
        return 0.0
    return float(np.median(np.abs(np.diff(values)))) / _MEDIAN_DIFFERENCE


def _without_odd_ones(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of each three neighbours, which a single odd batch does not move."""
    middle = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    return np.concatenate([values[:1], middle, values[-1:]])


def _ratio(one: Evaluation) -> float:
    return (one.valid_loss - one.train_loss) / max(abs(one.train_loss), 1e-12)


def _last_best(losses: list[float], delta: float) -> int:
    """Where a loss was last lower than the best before it by more than `delta`."""
    best = 0
    for at, loss in enumerate(losses):
        if loss < losses[best] - delta:
            best = at
    return best


def _place(record: TrainingRecord, step: int) -> str:
    epoch = next((one.epoch for one in record.epochs if one.step >= step), None)
    return f"step {step}" if epoch is None else f"step {step} (epoch {epoch})"


def _stronger(record: TrainingRecord) -> str:
    """More of each regularisation than the run had."""
    recipe = record.facts.get("recipe", {})
    dropout = min(0.5, float(recipe.get("drop_rate", 0)) + 0.2)
    decay = max(0.05, 2 * float(recipe.get("weight_decay", 0)))
    return (
        f"dropout {dropout:g}, weight decay {decay:g}, more augmentation (randaugment, mixup 0.2)"
    )
