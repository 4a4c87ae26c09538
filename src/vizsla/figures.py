"""How the figures of reports look: few colours, a quiet ground, no title.

What is drawn is decided by its callers; a page (`reports`) puts its own ink and ground on top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

ACCENT, SECOND, MUTED = "#b3541e", "#3d7a94", "#9aa5b1"
# Of curves that stand side by side, as a page draws them.
SERIES = (
    ACCENT, SECOND, "#7d8b35", "#8b5a8c", "#c2922b", "#4f8f77", "#7d6f63", "#c0697c",
)  # fmt: skip
# From little to much. A page turns light and dark round with its ground.
HEAT = ((0.0, "#f3e8da"), (0.5, "#cf8048"), (1.0, "#4d1c05"))


def dressed(figure: go.Figure) -> go.Figure:
    """The house's looks: quiet ground, no title (the page has one), room for labels."""
    figure.update_layout(
        template="plotly_white",
        title=None,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    return figure
