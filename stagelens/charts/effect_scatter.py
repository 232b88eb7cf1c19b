"""Shared by charts that plot one stage effect against another, both pointing towards credit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from .style import FAINT_AREA

Range = tuple[float, float]

MOST_POINTS = 400
"""Points that are drawn; more of them are slow in a browser, and hide each other."""
_OUTERMOST = 25  # at each end of both axes: extremes are what people look for


def around_zero(values: np.ndarray) -> Range:
    """A range with zero inside and room at both ends."""
    # Never an empty range, even if all values are 0.
    low, high = min(0.0, *values, -1e-9), max(0.0, *values, 1e-9)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def drawn_points(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points to draw: all, or the outermost along both axes and a fixed sample of the rest.

    Args:
        x: (N,) finite.
        y: (N,) finite.

    Returns:
        (min(N, MOST_POINTS),) ascending positions, the same for the same points.
    """
    if len(x) <= MOST_POINTS:
        return np.arange(len(x))
    # Stable, and seeded below, so that a chart keeps its points when a page runs again.
    ranked = [np.argsort(along, kind="stable") for along in (x, y)]
    kept = np.unique([[ranks[:_OUTERMOST], ranks[-_OUTERMOST:]] for ranks in ranked])
    others = np.setdiff1d(np.arange(len(x)), kept)
    more = np.random.default_rng(0).choice(others, MOST_POINTS - len(kept), replace=False)
    return np.sort(np.concatenate([kept, more]))


def drawn_of(count: int) -> str:
    """What is left out of a chart of this many points, as a sentence; empty where nothing is."""
    if count <= MOST_POINTS:
        return ""
    return f"Showing {MOST_POINTS} of {count:,} examples, including the most extreme ones."


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
