"""A study as sections of a report: what was found, on which evidence, in words and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from vizsla.records import Section
from vizsla.tuning.plots import title_of
from vizsla.tuning.storage import without_password
from vizsla.tuning.study import Study
from vizsla.tuning.trials import TrialRecord

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TOP = 10


def lead_of(study: Study) -> str:
    """The study in two sentences: what was searched, and what came of it."""
    records, objective = study.records, study.objectives[0]
    over = [record for record in records if record.is_over]
    seconds = sum(record.seconds or 0.0 for record in over)
    tried = f"{len(over)} trials over {_listed(list(study.space))}, {seconds:,.0f} s in all."
    if not any(record.status == "finished" for record in records):
        return f"{tried} None has finished yet."
    best = study.best
    return (
        f"{tried} The best {title_of(objective)} is {best.values[objective]:.4f}, of trial "
        f"{best.number}: {_described(best)}."
    )


def sections_of(study: Study) -> list[Section]:
    """Every section for which there is something to show."""
    return list(_sections(study))


def _sections(study: Study) -> Iterator[Section]:
    records, objective = study.records, study.objectives[0]
    findings = study.findings()
    if findings:
        yield Section(
            "Findings",
            columns=("severity", "what", "advice"),
            rows=tuple((one.severity, one.meaning, one.advice) for one in findings),
        )
    ended = [record for record in records if record.status in ("finished", "pruned")]
    if ended:
        yield _drawn("Best trials", f"The {_TOP} best of {len(records)}.", study.plot_top, _TOP)
    yield _table("Top 10", records[:_TOP], study)
    if study.screening:
        yield Section(
            "Screening",
            "Each model by a linear probe on a part of the pictures, before the trials.",
            ("rank", "model", "value", "seconds", "note"),
            tuple(
                (str(rank), one.model, _short(one.value), f"{one.seconds:.1f}", one.reason or "")
                for rank, one in enumerate(study.screening, start=1)
            ),
        )
    if len(study.objectives) > 1 and study.front:
        yield _drawn(
            "Compromises",
            "No trial of the Pareto front is beaten in one objective by another that is as good "
            "in the rest.",
            study.plot_front,
        )
    if ended:
        yield _drawn(
            "History",
            "Each trial's value in order, and the best so far; of a pruned trial, here and below, "
            "the best value that it came to.",
            study.plot_history,
        )
    yield from _of_settings(study, ended)
    if any(record.curve for record in records):
        yield _drawn(
            "Curves",
            f"The {title_of(objective)} of each trial by epoch; trials in grey were pruned.",
            study.plot_curves,
        )
    yield _table("All trials", records, study)
    yield _of_searching(study)


def _of_settings(study: Study, ended: list[TrialRecord]) -> Iterator[Section]:
    """How the value depends on the settings."""
    if len(ended) < 2:
        return
    importances = study.importances()
    if importances:
        yield _drawn(
            "Importances",
            "How much each setting decided which trials were among the best (PED-ANOVA). With few "
            "trials this is a hint, not a measurement.",
            study.plot_importances,
        )
    yield _drawn(
        "Parallel coordinates", "Every trial as a line through its settings.", study.plot_parallel
    )
    yield _drawn("Slices", "The value over each setting alone.", study.plot_slice)
    if len(study.space) > 1:
        yield _drawn(
            "Contour", "The value over the two settings that decided most.", study.plot_contour
        )


def _of_searching(study: Study) -> Section:
    facts = study.folder.facts()
    rows = [("data", facts["data"]["source"]), ("pictures", f"{facts['data']['pictures']:,}")]
    rows += [(f"search {name}", str(values)) for name, values in study.space.items()]
    settings = dict(facts["study"])
    if "storage" in settings:
        settings["storage"] = without_password(settings["storage"])
    rows += [(name, str(value)) for name, value in settings.items()]
    rows += [(f"recipe {name}", str(value)) for name, value in study.base.items()]
    return Section("How it was searched", columns=("what", "value"), rows=tuple(rows))


def _table(title: str, records: list[TrialRecord], study: Study) -> Section:
    names = list(study.space)
    rows = tuple(
        (
            str(rank),
            str(record.number),
            *(_short(record.values.get(one)) for one in study.objectives),
            *(_short(record.params.get(name)) for name in names),
            str(len(record.curve)),
            "" if record.seconds is None else f"{record.seconds:.1f}",
            record.status if not record.reason else f"{record.status}: {record.reason}",
        )
        for rank, record in enumerate(records, start=1)
    )
    quiet = {at for at, one in enumerate(records) if one.status in ("pruned", "failed", "refused")}
    figures = [title_of(one) for one in study.objectives]
    return Section(
        title,
        columns=("rank", "trial", *figures, *names, "epochs", "seconds", "status"),
        rows=rows,
        quiet_rows=frozenset(quiet),
    )


def _drawn(title: str, text: str, draw: Callable[..., go.Figure], *arguments: Any) -> Section:
    return Section(title, text, figure=draw(*arguments).to_json())


def _described(record: TrialRecord) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in record.params.items())


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
