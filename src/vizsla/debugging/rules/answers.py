"""Rules over classes: how often they occur, and which are taken for which.

Shares of few pictures vary by chance, and of a hundred classes some always look bad. Shares are
therefore held against their threshold with a margin of two standard deviations, and classes that
were hardly seen are not judged. A rule names the worst class and lists others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vizsla.debugging.record import TrainingRecord
from vizsla.debugging.rules.base import DebugRule, in_words
from vizsla.debugging.tensors import Answers
from vizsla.findings import Finding

Counts = NDArray[np.int64]

# Fewest labels of a class that is judged by its answers.
_FEWEST = 20
# So often the rarest class would have been seen, were it at its threshold.
_EXPECTED = 10
# Batches hold fewer classes than this share of those that chance would draw (less one, as each
# batch holds one) if pictures come in the order of their classes; samplers that group some stay
# above.
_UNMIXED = 0.15
_BATCHED = 50_000  # labels whose batches are looked at
LISTED = 20


class ClassImbalance(DebugRule):
    """Some classes are much rarer than others, or answered wrongly much more often.

    Over all training labels, once there are `samples`. Fires when the most frequent class has more
    than `threshold_imbalance` times the labels of the rarest, or a class of the run never occurs;
    for the most frequent class must have been seen ten times as often as the threshold, else the
    rarest may be so by chance. And when in the later half a class is mispredicted in more than
    `threshold_misprediction` of its labels (20 at least) while half of the classes are answered
    rightly more often than not: SageMaker's fires from the first steps on, when everything is
    mispredicted, as it is while answers are no better than chance. A loss or sampling that is
    balanced already (class_balance) is not reproached. Besides, which SageMaker's does not, it says
    when nearly every batch is of one class.
    """

    name: ClassVar[str] = "class_imbalance"
    needs: ClassVar[tuple[str, ...]] = ("labels", "predictions")

    threshold_imbalance: float = Field(
        10.0, ge=1, le=1e6, description="Labels of the largest class over those of the smallest."
    )
    threshold_misprediction: float = Field(
        0.7, gt=0, le=1, description="Share of a class's labels that may be answered wrongly."
    )
    samples: int = Field(500, ge=1, description="Labels before anything is judged.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        answers = answers_in(record, "train", broken=True)
        if len(answers) < self.samples:
            return []
        counts = np.bincount(answers.labels, minlength=len(_classes(record)))
        balanced = record.facts.get("recipe", {}).get("class_balance", "none") != "none"
        step = int(answers.steps[-1])
        findings = (
            []
            if balanced
            else self._absent(record, counts, step) + self._rare(record, counts, step)
        )
        later = last_answers(answers, 1 / 2)
        known = part_of(later, np.isfinite(later.confidences))
        return findings + self._unmixed(later) + self._mispredicted(record, known)

    def _absent(self, record: TrainingRecord, counts: Counts, step: int) -> list[Finding]:
        absent = np.flatnonzero(counts == 0)
        if not len(_classes(record)) or not len(absent) or not self._tells(counts):
            return []
        names = [record.class_name(int(label)) for label in absent]
        return [
            self.finding(
                f"{in_words(names)} never occurred in {counts.sum():,} training labels: the "
                "network cannot learn what it is not shown.",
                "Add pictures of these classes to the training split, or leave the classes out.",
                step=step,
                layer=names[0],
                cause="absent",
                measured=0.0,
                threshold=1 / self.threshold_imbalance,
                classes=names[:LISTED],
                labels=int(counts.sum()),
            )
        ]

    def _rare(self, record: TrainingRecord, counts: Counts, step: int) -> list[Finding]:
        there = np.flatnonzero(counts)
        most = int(counts.max())
        ratios = most / counts[there]
        over = there[ratios > self.threshold_imbalance]
        if not len(over) or not self._tells(counts):
            return []
        over = over[np.argsort(counts[over], kind="stable")]
        names = [record.class_name(int(label)) for label in over]
        weight = counts[there].mean() / counts[over[0]]
        largest = record.class_name(int(counts.argmax()))
        also = f", {in_words(names[1:])} likewise" if len(names) > 1 else ""
        return [
            self.finding(
                f"{largest} has {ratios.max():.0f} times the labels of {names[0]} ({most:,} and "
                f"{counts[over[0]]:,}{also}): the network gains little by learning the rare ones.",
                f"Weigh the loss of {names[0]} by {weight:.2g}, or draw rare classes more often "
                "(class_balance=loss or sampling).",
                step=step,
                layer=names[0],
                cause="rare",
                measured=float(ratios.max()),
                threshold=self.threshold_imbalance,
                classes=names[:LISTED],
                counts=counts[over][:LISTED].tolist(),
                largest=largest,
                largest_count=most,
            )
        ]

    def _tells(self, counts: Counts) -> bool:
        return bool(counts.max() >= _EXPECTED * self.threshold_imbalance)

    def _unmixed(self, answers: Answers) -> list[Finding]:
        steps, labels = answers.steps[-_BATCHED:], answers.labels[-_BATCHED:]
        _, sizes = np.unique(steps, return_counts=True)
        size = int(labels.max()) + 1
        seen = len(np.unique(steps * size + labels)) / len(sizes)
        shares = np.bincount(labels) / len(labels)
        drawn = float((1 - (1 - shares) ** sizes.mean()).sum())
        if drawn < 1.5 or (seen - 1) / (drawn - 1) >= _UNMIXED:
            return []
        return [
            self.finding(
                f"A batch of {sizes.mean():.0f} holds {seen:.1f} classes on average, where chance "
                f"would draw {drawn:.1f}: each batch unteaches what those before it taught.",
                "Shuffle the training pictures: DataLoader(..., shuffle=True).",
                step=int(steps[-1]),
                cause="unmixed",
                measured=seen,
                threshold=1 + _UNMIXED * (drawn - 1),
                expected=drawn,
            )
        ]

    def _mispredicted(self, record: TrainingRecord, answers: Answers) -> list[Finding]:
        tally = tally_of(answers)
        judged = tally.seen >= _FEWEST
        shares = tally.wrong / np.maximum(tally.seen, 1)
        if not judged.any() or np.median(shares[judged]) > 0.5 or is_chance(tally):
            return []
        over = judged & exceeds(tally.wrong, tally.seen, self.threshold_misprediction)
        worst_first = np.argsort(-shares, kind="stable")
        over = worst_first[over[worst_first]]
        if not len(over):
            return []
        worst, names = over[0], [record.class_name(int(label)) for label in over]
        taken = record.class_name(int(tally.columns[tally.rows == worst][0]))
        also = f"; {in_words(names[1:])} too" if len(names) > 1 else ""
        return [
            self.finding(
                f"{names[0]} is answered wrongly in {shares[worst]:.0%} of its labels, mostly as "
                f"{taken}, while others are learned{also}.",
                f"Weigh {names[0]} by {tally.seen[judged].mean() / tally.seen[worst]:.2g} in the "
                f"loss, and look at its pictures beside those of {taken}: their labels may be "
                "mixed up.",
                step=int(answers.steps[-1]),
                layer=names[0],
                cause="mispredicted",
                measured=float(shares[worst]),
                threshold=self.threshold_misprediction,
                classes=names[:LISTED],
                mispredicted=_rounded(shares[over]),
                labels=tally.seen[over][:LISTED].tolist(),
            )
        ]


class Confusion(DebugRule):
    """Classes are taken for others.

    Fires when a class's share of right answers is below `min_diag`, or more than `max_off_diag` of
    a class's pictures are answered as one other class; both beyond chance, in classes with
    `samples` labels. Judged is the last evaluation, else the last quarter of the training. While
    answers are right no more often than by chance, that is all it says, as a hint (info).

    Deviates from SageMaker's: its documented formula divides a class's right answers by those of
    all classes, which no more than one class can pass; here each row of the matrix is divided by
    its sum (the class's recall). Labels and predictions are always the recorded ones, so that
    names and collections of tensors are no parameters.
    """

    name: ClassVar[str] = "confusion"
    needs: ClassVar[tuple[str, ...]] = ("labels", "predictions")

    category_no: int | None = Field(
        None, ge=2, le=1_000_000, description="Number of classes; by default as many as occur."
    )
    min_diag: float = Field(0.9, ge=0, le=1, description="Least share of right answers of a class.")
    max_off_diag: float = Field(
        0.1, ge=0, le=1, description="Largest share of a class that may be answered as another."
    )
    samples: int = Field(_FEWEST, ge=1, description="Labels of a class before it is judged.")

    def judge(self, record: TrainingRecord) -> Iterable[Finding]:
        evaluations = answers_of_evaluations(record)
        if evaluations:
            answers, where = evaluations[-1], "the last evaluation"
            steps = [one.step for one in record.tensors.evaluations()]
        else:
            answers, where = last_answers(answers_in(record, "train"), 1 / 4), "training"
            steps = answers.steps.tolist()
        tally = tally_of(answers, self.category_no)
        step = steps[-1] if steps else None
        found = self._missed(record, tally, where, step)
        found += self._mistaken(record, tally, where, step)
        return [self._unlearned(tally, where, step)] if found and is_chance(tally) else found

    def _unlearned(self, tally: Tally, where: str, step: int | None) -> Finding:
        right = 1 - float(tally.wrong.sum() / tally.seen.sum())
        return self.finding(
            f"In {where} {right:.0%} are answered rightly, which is chance: nothing is learned yet "
            "that classes could be confused by.",
            "Train on, and if the loss does not fall see what loss_not_decreasing and the rules on "
            "the learning rate say.",
            severity="info",
            step=step,
            cause="chance",
            measured=right,
            threshold=float(tally.seen.max() / tally.seen.sum()),
        )

    def _missed(
        self, record: TrainingRecord, tally: Tally, where: str, step: int | None
    ) -> list[Finding]:
        recalls = 1 - tally.wrong / np.maximum(tally.seen, 1)
        over = (tally.seen >= self.samples) & exceeds(tally.wrong, tally.seen, 1 - self.min_diag)
        worst_first = np.argsort(recalls, kind="stable")
        over = worst_first[over[worst_first]]
        if not len(over):
            return []
        names = [record.class_name(int(label)) for label in over]
        also = f"; below {self.min_diag:.0%} also {in_words(names[1:])}" if names[1:] else ""
        return [
            self.finding(
                f"Of {names[0]} only {recalls[over[0]]:.0%} are answered rightly in {where}{also}.",
                f"Add pictures of {in_words(names)}, or train longer or more of the network "
                "(unfreeze) if training pictures are missed as well.",
                step=step,
                layer=names[0],
                cause="recall",
                measured=float(recalls[over[0]]),
                threshold=self.min_diag,
                classes=names[:LISTED],
                recalls=_rounded(recalls[over]),
                labels=tally.seen[over][:LISTED].tolist(),
            )
        ]

    def _mistaken(
        self, record: TrainingRecord, tally: Tally, where: str, step: int | None
    ) -> list[Finding]:
        of = tally.seen[tally.rows]
        shares = tally.counts / of
        over = (of >= self.samples) & exceeds(tally.counts, of, self.max_off_diag)
        worst_first = np.argsort(-shares, kind="stable")
        over = worst_first[over[worst_first]]
        if not len(over):
            return []
        pairs = pair_names(record, tally, over, "as")
        also = f"; likewise {in_words(pairs[1:])}" if pairs[1:] else ""
        worst = float(shares[over[0]])
        return [
            self.finding(
                f"In {where} {worst:.0%} of one class are taken for another: {pairs[0]}{also}.",
                "Look at pictures of both classes side by side: mixed-up labels and classes that "
                "overlap are the usual causes; else larger pictures (size_px) show finer marks.",
                step=step,
                layer=record.class_name(int(tally.rows[over[0]])),
                cause="mistaken",
                measured=worst,
                threshold=self.max_off_diag,
                pairs=pairs[:LISTED],
                shares=_rounded(shares[over]),
            )
        ]


class Tally(NamedTuple):
    """Answers by class: labels of each and wrong answers to them, (classes,); and of each pair of
    classes that was confused, most often first, label, answer and count, (pairs,)."""

    seen: Counts
    wrong: Counts
    rows: Counts
    columns: Counts
    counts: Counts


def tally_of(answers: Answers, classes: int | None = None) -> Tally:
    """Count answers; labels and answers outside of `classes` are left out. A whole matrix would
    not fit in memory where classes are a vocabulary."""
    labels, predictions = answers.labels, answers.predictions
    size = classes or int(max(labels.max(initial=-1), predictions.max(initial=-1))) + 1
    inside = (labels < size) & (predictions < size)
    labels, predictions = labels[inside], predictions[inside]
    wrong = labels != predictions
    pairs, counts = np.unique(labels[wrong] * size + predictions[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return Tally(
        np.bincount(labels, minlength=size),
        np.bincount(labels[wrong], minlength=size),
        pairs[order] // max(size, 1),
        pairs[order] % max(size, 1),
        counts[order],
    )


def is_chance(tally: Tally) -> bool:
    """Whether answers are right as often as drawn ones, or as always the same one, would be."""
    count, right = tally.seen.sum(), (tally.seen - tally.wrong).sum()
    if not count:
        return False
    least, most = 1 / np.count_nonzero(tally.seen), tally.seen.max() / count
    room = 2 * np.sqrt(count * least * (1 - least))
    return bool(right >= count * least - room and not exceeds(right, count, most))


def pair_names(record: TrainingRecord, tally: Tally, which: Counts, word: str) -> list[str]:
    """Pairs of a tally in words: `collie as sheltie`."""
    return [
        f"{record.class_name(int(tally.rows[one]))} {word} "
        f"{record.class_name(int(tally.columns[one]))}"
        for one in which
    ]


def answers_in(record: TrainingRecord, mode: str, broken: bool = False) -> Answers:
    """Answers of a mode, less those to labels that the loss ignores (below 0) and, unless `broken`,
    those of a network that answers NaN, which are no answers."""
    answers = record.tensors.answers(mode)
    there = answers.labels >= 0
    if not broken:
        there &= np.isfinite(answers.confidences)
    return answers if there.all() else part_of(answers, there)


def answers_of_evaluations(record: TrainingRecord) -> list[Answers]:
    """Answers of each evaluation, oldest first."""
    answers = answers_in(record, "eval")
    numbers = np.unique(answers.evaluations)
    return [part_of(answers, answers.evaluations == number) for number in numbers]


def last_answers(answers: Answers, share: float) -> Answers:
    """The last share of answers."""
    return part_of(answers, slice(len(answers) - int(len(answers) * share), None))


def part_of(answers: Answers, part: slice | NDArray[np.bool_]) -> Answers:
    """Some of the answers."""
    return Answers(
        answers.steps[part],
        answers.labels[part],
        answers.predictions[part],
        answers.confidences[part],
        answers.evaluations[part],
    )


def exceeds(counts: Any, of: Any, share: float) -> Any:
    """Whether counts exceed a share of `of` by more than two standard deviations."""
    return counts > of * share + 2 * np.sqrt(of * share * (1 - share))


def _classes(record: TrainingRecord) -> list[str]:
    return list(record.facts.get("data", {}).get("classes", []))


def _rounded(shares: NDArray[np.float64]) -> list[float]:
    return [round(float(share), 4) for share in shares[:LISTED]]
