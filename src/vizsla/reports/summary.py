"""The first screen of a run's report: how it stands, its figures, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from vizsla.findings import Finding
from vizsla.records import Note, Section, SplitMetrics, Tile
from vizsla.reports.reading import SPLIT_WORDS, Reading
from vizsla.reports.recipe import tune_command
from vizsla.words import counted, duration, listed, number, percent, shortened

# More would not fit the screen; the rest stand in their own sections.
_MOST_NEXT = 3
_LONGEST_COMMAND = 120
_FEW_CLASSES = 5  # among which the five likeliest say nothing
# Runs to which the advice of a finding says all that is to be done.
_ADVISED = ("finished", "stopped by rule", "failed")
_RAN_AWAY = Note(
    "error",
    "The loss ran away: to go on from here would not help.",
    "Train anew with a lower --lr or with --clip-norm 1, and look for broken labels.",
)
_MARKS = {
    "running": "still training",
    "interrupted": "interrupted",
    "stopped by rule": "stopped by a rule",
    "failed": "failed",
    "pruned": "ended early",
}


def lead_of(reading: Reading, findings: Sequence[Finding]) -> str:
    """The verdict: how the run stands, how well it answers, and the worst that was found."""
    worst = _worst(findings, reading.reason)
    parts = [_standing(reading), _answering(reading), worst, *reading.damage]
    return " ".join(part for part in parts if part)


def section_of(reading: Reading, findings: Sequence[Finding], more: Sequence[Tile] = ()) -> Section:
    """The figures at a glance, `more` of the caller's among them, and what to do next."""
    told = [one for one in findings if one.severity != "info"][:_MOST_NEXT] or findings[:1]
    notes = tuple(Note(one.severity, one.meaning, one.advice) for one in told)
    if reading.status in ("interrupted", "failed") and reading.ran_away:
        notes = (_RAN_AWAY, *notes)[:_MOST_NEXT]
    tiles = (
        *_figure_tiles(reading),
        *_course_tiles(reading),
        *_subject_tiles(reading),
        *more,
    )
    grave = any(one.severity != "info" for one in told)
    return Section(
        "Summary",
        "What to do next:",
        tiles=tiles,
        notes=notes,
        code="" if grave and reading.status in _ADVISED else _commands(reading),
        mark=_MARKS.get(reading.status, "") if not _is_plain_watching(reading) else "",
    )


def _is_plain_watching(reading: Reading) -> bool:
    """A loop that was watched has no status of its own before it ended."""
    return reading.is_watched and reading.status == "interrupted"


def _standing(reading: Reading) -> str:
    if reading.is_watched:
        return f"{_what_was_watched(reading)} {_watched_standing(reading)}".strip()
    last = reading.epochs[-1].epoch if reading.epochs else 0
    after = f"after {_epochs(reading, last)}"
    reason = f": {reading.reason.rstrip('.')}." if reading.reason else "."
    if reading.status == "running":
        step = max([0, *(one["step"] for one in reading.steps[-1:])])
        wanted = reading.table("recipe").get("epochs", "?")
        return (
            f"Still training: this is the report so far, with {last} of {wanted} epochs done, at "
            f"step {step:,}."
        )
    if reading.status == "finished":
        return f"Finished {after}, in {duration(reading.seconds)}."
    if reading.status == "trained":
        return f"Trained {after}, without a bundle yet."
    if reading.status in _MARKS and reading.status != "interrupted":
        told = _MARKS[reading.status]
        return f"{told[0].upper()}{told[1:]} {after}{reason}"
    if reading.ran_away:
        return (
            f"Interrupted {after}, with a loss that ran away, from {reading.steps[0]['loss']:.3g} "
            f"to {reading.steps[-1]['loss']:.3g}."
        )
    return f"Interrupted {after}; it can go on from its last checkpoint."


def _watched_standing(reading: Reading) -> str:
    reason = f": {reading.reason.rstrip('.')}." if reading.reason else "."
    endings = {
        "running": "It is still going on: this is the report so far.",
        "trained": "It came to its end.",
        "done": "It came to its end.",
        "stopped by rule": f"A rule stopped it{reason}",
        "failed": f"It failed{reason}",
    }
    return endings.get(reading.status, "")


def _what_was_watched(reading: Reading) -> str:
    if not reading.command:
        return "A loop of your own, which vizsla watched."
    words = " ".join(reading.command.split())
    return f"A command that vizsla profiled: {shortened(words, _LONGEST_COMMAND)}."


def _epochs(reading: Reading, count: int) -> str:
    if reading.is_lbfgs:
        return counted(count, "weight decay", "weight decays")
    wanted = reading.table("recipe").get("epochs")
    of = f" of {wanted}" if wanted is not None and wanted != count else ""
    return f"{count:,}{of} {'epoch' if count == 1 and not of else 'epochs'}"


def _answering(reading: Reading) -> str:
    if (judged := reading.judged) is not None:
        return (
            f"The model is right on {percent(judged.figures.accuracy)} of "
            f"{counted(judged.figures.pictures, f'{SPLIT_WORDS[judged.split]} picture')}."
        )
    if (best := reading.best_epoch) is not None:
        return f"The best validation accuracy so far is {percent(best.valid.accuracy)}."
    return ""


def _worst(findings: Sequence[Finding], reason: str) -> str:
    """How many there are of what kind, and the worst, unless that is why the run was stopped."""
    grave = [one for one in findings if one.severity != "info"]
    if not grave:
        return "There are no warnings."
    counts = [
        counted(count, severity)
        for severity in ("error", "warning")
        if (count := sum(one.severity == severity for one in grave))
    ]
    there = f"There {'is' if len(grave) == 1 else 'are'} {listed(counts)}"
    told = grave[0].meaning
    return f"{there}." if told.rstrip(".") in reason else f"{there}: {told}"


def _figure_tiles(reading: Reading) -> list[Tile]:
    judged, best = reading.judged, reading.best_epoch
    if judged is not None:
        figures, words = judged.figures, f"{SPLIT_WORDS[judged.split]} split"
    elif best is not None:
        figures, words = best.valid, "validation, so far"
    else:
        return []
    many = _class_count(reading) > _FEW_CLASSES
    top5 = f"top-5 {percent(figures.top5_accuracy)}" if many else "mean of the classes"
    return [
        Tile("Accuracy", percent(figures.accuracy), f"{words}, {_give_or_take(figures)}"),
        Tile("Macro F1", number(figures.macro_f1), top5),
        Tile("Loss", number(figures.loss), "cross entropy"),
    ]


def _give_or_take(figures: SplitMetrics) -> str:
    """Half the width of Wilson's 95 % interval: how much chance has to say with few pictures."""
    count, rate, z = max(figures.pictures, 1), figures.accuracy, 1.96
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(max(rate * (1 - rate), 0) / count + z * z / (4 * count * count))
    )
    return f"± {100 * half:.1f} points"


def _course_tiles(reading: Reading) -> list[Tile]:
    tiles = []
    if reading.epochs:
        trunk = reading.trunk_seconds
        words = f"{duration(trunk)} of it frozen layers" if trunk >= 0.05 else "with evaluation"
        tiles.append(Tile("Training time", duration(reading.seconds), words))
    if (best := reading.best_epoch) is not None and reading.is_lbfgs:
        tiles.append(Tile("Best weight decay", f"{best.weight_decay:.3g}"))
    elif best is not None:
        tiles.append(Tile("Best epoch", str(best.epoch), f"of {len(reading.epochs)} so far"
                          if reading.is_running else f"of {len(reading.epochs)}"))  # fmt: skip
    return tiles


def _subject_tiles(reading: Reading) -> list[Tile]:
    tiles = []
    counts = reading.table("data").get("pictures")
    if isinstance(counts, Mapping) and counts:
        total = sum(int(count) for count in counts.values())
        tiles.append(
            Tile("Pictures", f"{total:,}", counted(_class_count(reading), "class", "classes"))
        )
    model = reading.table("model").get("architecture")
    if model:
        trained = reading.table("recipe").get("unfreeze")
        tiles.append(Tile("Model", str(model), f"trained: {trained}" if trained else ""))
    return tiles


def _class_count(reading: Reading) -> int:
    classes = reading.table("data").get("classes")
    if isinstance(classes, list):
        return len(classes)
    return len(reading.judged.names) if reading.judged is not None else 0


def _commands(reading: Reading) -> str:
    """Lines that suit how the run stands."""
    run = shlex.quote(str(reading.run.path))
    if reading.is_running:
        return f"vizsla report {run}"
    if reading.is_watched:
        kept = {"debug": "tensors.jsonl", "profile": "profile-*.jsonl"}
        verbs = [verb for verb, files in kept.items() if any(reading.run.path.glob(files))]
        return "\n".join(f"vizsla {verb} {run}" for verb in verbs)
    if reading.ran_away and reading.status in ("interrupted", "failed"):
        return ""
    if reading.status != "finished":
        return f"vizsla train --resume {run}"
    lines = [
        f"vizsla predict {run} PICTURE",
        f"vizsla evaluate {run} OTHER_PICTURES",
        f"vizsla serve {run}",
    ]
    source = reading.table("data").get("source")
    if source is not None and not reading.is_lbfgs:  # which has no learning rate
        lines.append(tune_command(str(source), reading.table("recipe")))
    return "\n".join(lines)
