"""Captured tensors and what rules found in them, as sections of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vizsla.debugging import plots
from vizsla.debugging.format import COLLECTIONS, IN_LINES
from vizsla.debugging.tensors import Tensors
from vizsla.findings import SEVERITIES, Finding, worst_first
from vizsla.notes import notes_of
from vizsla.records import Section
from vizsla.thinning import evenly
from vizsla.words import counted, listed

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FOUND = "Debugger findings"
_SPREAD_OF = 4  # tensors whose histograms the report shows, from the first layer to the last
_SEVERAL = {"error": "errors", "warning": "warnings", "info": "info"}
_AT_ONE_STEP = "Captured at one step; --capture-every 1 captures each."
_DAMAGED = "Lines or files of the recording are missing or damaged; what they held is not shown."
_OF_TENSORS = {
    "Losses": "",
    "Norms": "The l2 norm over steps.",
    "Means": "The mean of each tensor, in a band from the 5th to the 95th percentile of its "
    "values.",
    "Histograms": "How the values of each tensor are spread: the stronger the colour, the more "
    "there.",
}


def lead_of(tensors: Tensors, findings: Sequence[Finding]) -> str:
    """The recording in a few sentences: how much was recorded, and what rules make of it."""
    recorded = _amount_of(tensors)  # reads every file, and so tells which are damaged
    if tensors.damaged:
        recorded += f" {_DAMAGED}"
    if not findings:
        return f"{recorded} There are no findings."
    counts = [
        counted(number, severity, _SEVERAL[severity])
        for severity in SEVERITIES
        if (number := sum(one.severity == severity for one in findings))
    ]
    return f"{recorded} Rules found {listed(counts)}: {worst_first(findings)[0].meaning}"


def sections_of(tensors: Tensors, findings: Sequence[Finding]) -> list[Section]:
    """Findings, every picture for which something was recorded, and what that was."""
    return list(_sections(tensors, findings))


def section_without() -> Section:
    """What stands in the report of a run whose training nobody looked into."""
    return Section(
        "Debugger",
        "No tensors were captured, so nobody looked inside this training. Capture those of a "
        "training with the first of these lines, and of a loop of your own with the others.",
        code="vizsla train --debug PICTURES\n\nfrom vizsla.debugging import watch\n"
        "with watch(model, FOLDER, loss_fn=criterion, optimizer=optimizer) as debugger:\n"
        "    ...  # the loop, with debugger.step() after each step",
    )


def sections_of_tensors(tensors: Tensors, regex: str) -> list[Section]:
    """Pictures of the tensors whose name matches. Raises `TensorUnavailable` if there are none."""
    sections = [
        Section(title, _about(title, figure), figure=figure.to_json())
        for title, figure in plots.of_tensors(tensors, regex).items()
    ]
    names = tensors.tensor_names(regex)
    rows = tuple((name, tensors.tensor(name).collection, _shape(tensors, name)) for name in names)
    text = _DAMAGED if tensors.damaged else ""
    return [*sections, Section("Tensors", text, ("name", "collection", "shape"), rows)]


def _sections(tensors: Tensors, findings: Sequence[Finding]) -> Iterator[Section]:
    yield _found(findings)
    yield from _drawn(
        "Losses",
        "The validation loss stands at the training step after which it was measured.",
        plots.losses(tensors),
    )
    yield from _drawn(
        "Gradients",
        "The size (l2 norm) of each layer's gradient, from the input at the top to the output. "
        "Where the colour fades from bottom to top, gradients vanish on their way back; where it "
        "grows with time, they explode.",
        plots.norms(tensors),
    )
    yield from _drawn(
        "Updates",
        "How far one step moves the weights, as a share of them. Far above the usual range "
        "training is unsteady, far below it hardly moves.",
        plots.updates(tensors),
    )
    yield from _dead(plots.dead_relus(tensors))
    yield from _drawn(
        "Weights",
        "How the weights of some layers are spread: the stronger the colour, the more of them have "
        "that value.",
        plots.histograms(tensors, _leading(tensors, "weights")),
    )
    yield from _drawn(
        "Spread of gradients",
        "The same of the gradients of these layers.",
        plots.histograms(tensors, _leading(tensors, "gradients")),
    )
    yield _recorded(tensors)


def _found(findings: Sequence[Finding]) -> Section:
    if not findings:
        return Section(_FOUND, "There are none.")
    return Section(_FOUND, notes=notes_of(findings))


def _dead(figure: go.Figure) -> Iterator[Section]:
    share = f"{plots.DEAD_BELOW:.0%} of their values"
    if figure.data and not np.nanmax(figure.data[0].z):
        text = f"No ReLU is dead: all units were active for {share} or more."
        yield Section("Dead ReLUs", text)
        return
    yield from _drawn(
        "Dead ReLUs",
        f"The share of units that were active for less than {share}: they learn nothing while "
        "they stay so.",
        figure,
    )


def _recorded(tensors: Tensors) -> Section:
    """What there is to look at closer with `vizsla debug RUN --tensor`."""
    names = {one: tensors.collection(one) for one in COLLECTIONS}
    rows = tuple(
        (collection, f"{len(some):,}", some[0], COLLECTIONS[collection])
        for collection, some in names.items()
        if some
    )
    text = _DAMAGED if tensors.damaged else ""
    return Section("Recorded", text, ("collection", "tensors", "for example", "what"), rows)


def _amount_of(tensors: Tensors) -> str:
    """How much was recorded; losses are of every step, tensors of some."""
    steps, losses = len(tensors.steps("train")), len(tensors.losses("train"))
    captured = len(tensors.matrix("mean").steps)
    parts = [f"losses of {counted(losses, 'step')}"] if losses else []
    if captured:
        at = f"{captured:,} of them" if losses else counted(captured, "step")
        parts.append(f"{counted(_reduced(tensors), 'tensor')} at {at}")
    if evaluations := len(tensors.evaluations()):
        parts.append(counted(evaluations, "evaluation"))
    if not parts:
        return f"{counted(steps, 'step')} recorded."
    told = listed(parts)
    hint = f" {_AT_ONE_STEP}" if captured == 1 < steps else ""
    return f"{told[0].upper()}{told[1:]} were recorded.{hint}"


def _drawn(title: str, text: str, figure: go.Figure) -> Iterator[Section]:
    if figure.data:
        yield Section(title, text, figure=figure.to_json())


def _about(title: str, figure: go.Figure) -> str:
    """What a picture of chosen tensors shows."""
    kind = title.partition(" (")[0]
    text = _OF_TENSORS[kind]
    alone = kind != "Losses" and plots.only_step(figure) is not None
    return f"{text} {_AT_ONE_STEP}" if alone else text


def _leading(tensors: Tensors, collection: str) -> list[str]:
    """Some tensors of a collection, from the first layer to the last; matrices and kernels, for
    biases and scales are few numbers each."""
    names = [name for name in tensors.collection(collection) if len(tensors.shape(name)) > 1]
    return [names[at] for at in evenly(np.arange(len(names)), _SPREAD_OF)]


def _reduced(tensors: Tensors) -> int:
    return sum(len(tensors.collection(one)) for one in COLLECTIONS if one not in IN_LINES)


def _shape(tensors: Tensors, name: str) -> str:
    return " × ".join(map(str, tensors.shape(name)))
