"""How the figures of reports look: few colours, a quiet ground, no title.

What is drawn is decided by its callers; a page (`reports`) puts its own ink and ground on top.
Plotly reads a few tags in its texts, so every name that a figure shows passes through here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vizsla.words import apart, shortened

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACCENT, SECOND, MUTED = "#b3541e", "#3d7a94", "#9aa5b1"
# Of curves that stand side by side, as a page draws them.
SERIES = (
    ACCENT, SECOND, "#7d8b35", "#8b5a8c", "#c2922b", "#4f8f77", "#7d6f63", "#c0697c",
)  # fmt: skip
# From little to much. A page turns light and dark round with its ground.
HEAT = ((0.0, "#f3e8da"), (0.5, "#cf8048"), (1.0, "#4d1c05"))


# Plotly keeps the categories of an axis as properties of an object, which has some from the start:
# cells of a class called so would stand in a row without a name.
_NO_WIDTH = "\u200b"
_OF_OBJECTS = frozenset(
    "constructor hasOwnProperty isPrototypeOf propertyIsEnumerable toLocaleString toString valueOf "
    "__defineGetter__ __defineSetter__ __lookupGetter__ __lookupSetter__ __proto__".split()
)
# What of Plotly's own looks a page does not set: a twentieth of `plotly_white`, which every figure
# of a page would carry along, and which takes longer to check than most figures to draw.
_AXIS = {
    "automargin": True, "gridcolor": "#ebf0f8", "linecolor": "#ebf0f8", "zerolinecolor": "#ebf0f8",
    "ticks": "", "title": {"standoff": 15}, "zerolinewidth": 2,
}  # fmt: skip
_TEMPLATE = {
    "layout": {
        "colorway": SERIES, "autotypenumbers": "strict", "hovermode": "closest",
        "hoverlabel": {"align": "left"}, "xaxis": _AXIS, "yaxis": _AXIS,
    },
    "data": {"contour": [{"colorscale": HEAT}], "heatmap": [{"colorscale": HEAT}]},
}  # fmt: skip


def dressed(figure: go.Figure) -> go.Figure:
    """The house's looks: quiet ground, no title (the page has one), room for labels."""
    figure.layout.template = _TEMPLATE  # an update would only add it to what is there
    figure.update_layout(
        title=None,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    return figure


def faded(colour: str, opacity: float) -> str:
    """A colour `#rrggbb` that lets through what lies below it, for grounds of curves.

    >>> faded("#b3541e", 0.18)
    'rgba(179,84,30,0.18)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def in_figure(text: str) -> str:
    """Text as Plotly shows it unchanged."""
    return html.escape(text, quote=False)


def axis_names(names: Sequence[str]) -> list[str]:
    """Names for an axis of categories: short, each there once, and shown as they are."""
    known = (f"{_NO_WIDTH}{name}" if name in _OF_OBJECTS else name for name in names)
    return [in_figure(name) for name in apart(shortened(name) for name in known)]
