"""What charts share that hold one stage effect against another, both pointing towards credit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from .style import FAINT_AREA

Range = tuple[float, float]


def around_zero(values: np.ndarray) -> Range:
    """A range with zero inside and room at both ends."""
    low, high = min(0.0, *values, -1e-9), max(0.0, *values, 1e-9)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def shade_other_signs(figure: go.Figure, x_range: Range, y_range: Range) -> None:
    """Shade the two corners of the plane in which the signs differ."""
    for across, up in (((x_range[0], 0), (0, y_range[1])), ((0, x_range[1]), (y_range[0], 0))):
        figure.add_shape(
            type="rect",
            x0=across[0],
            x1=across[1],
            y0=up[0],
            y1=up[1],
            fillcolor=FAINT_AREA,
            line={"width": 0},
            layer="below",
        )


def straight(
    figure: go.Figure, x: Sequence[float], y: Sequence[float], dash: str, width: float, color: str
) -> None:
    """A line between two points, without a name or a tooltip."""
    figure.add_trace(
        go.Scatter(
            x=list(x),
            y=list(y),
            mode="lines",
            line={"color": color, "width": width, "dash": dash},
            hoverinfo="skip",
            showlegend=False,
        )
    )
