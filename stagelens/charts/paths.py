"""A behaviour after each boundary, as one line per group or for one example."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import BASE, Behaviour
from stagelens.wording.folding import listed
from stagelens.wording.numbers import is_share, phrase, scaled, value_text

from .style import SHAPES, Palette, escaped

_GROUP_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot", "dash")


def draw_paths(
    figure: go.Figure,
    boundaries: pd.DataFrame,
    behaviour: Behaviour,
    edges: Sequence[float],
    stages: Sequence[str],
    pixels: int,
    palette: Palette,
    row: int | None = None,
) -> str:
    """Draw one line per group with its name at the end; returns the takeaway."""
    place = {} if row is None else {"row": row, "col": 1}
    where = dict(zip((BASE, *stages), edges, strict=True))
    low, high = _value_range(boundaries["value"], behaviour)
    # NaN stands for all examples, and goes first.
    groups = sorted(boundaries["group"].unique(), key=lambda g: "" if pd.isna(g) else str(g))
    ends: list[tuple[str, float]] = []
    said = []
    number = 0
    for group in groups:
        overall = bool(pd.isna(group))
        part = boundaries[boundaries["group"].isna() if overall else boundaries["group"] == group]
        name = "all" if overall else str(group)
        color = palette.line if overall else palette.groups[number % 6]
        pattern = (number + number // 6) % 6  # a colour that recurs has another dash and symbol
        values = [scaled(value, behaviour) for value in part["value"]]
        figure.add_trace(
            go.Scatter(
                x=[where[boundary] for boundary in part["boundary"]],
                y=values,
                mode="lines+markers",
                line={
                    "color": color,
                    "width": 2.5,
                    "dash": "solid" if overall else _GROUP_DASHES[pattern],
                },
                marker={
                    "size": 9,
                    "color": color,
                    "symbol": "pentagon" if overall else SHAPES[pattern][0],
                },
                customdata=[
                    f"{escaped(_boundary_name(b))}<br>{escaped(name)}: "
                    f"{phrase(behaviour)} {value_text(v, behaviour)}"
                    for b, v in zip(part["boundary"], part["value"], strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
                cliponaxis=False,
            ),
            **place,
        )
        if len(part):
            ends.append((name, values[-1]))
            course = listed([value_text(v, behaviour) for v in part["value"]])
            said.append(f"{name}: {course}")
        number += 0 if overall else 1
    if len(groups) > 1:
        # The height of a label, 17 pixels, in units of the axis.
        gap = 17 * (high - low) / pixels
        places = _apart([end[1] for end in ends], gap, low + gap / 2, high - gap / 2)
        for (name, _), y in zip(ends, places, strict=True):
            figure.add_annotation(
                x=edges[-1],
                y=y,
                text=escaped(name, 14),
                xanchor="left",
                xshift=12,
                showarrow=False,
                font={"color": palette.text, "size": 13},
                **place,
            )
    figure.update_yaxes(
        range=[low, high],
        nticks=5,
        gridcolor=palette.grid,
        ticksuffix=" %" if is_share(behaviour) else "",
        **place,
    )
    names = listed([_boundary_name(name) for name in (BASE, *stages)])
    return f"{phrase(behaviour).capitalize()} at {names}. " + "; ".join(said) + "."


def _boundary_name(boundary: str) -> str:
    return BASE if boundary == BASE else f"after {boundary}"


def _value_range(values: pd.Series, behaviour: Behaviour) -> tuple[float, float]:
    if is_share(behaviour):
        return -4.0, 104.0  # so that marks at 0 and 100 % are not on the edge
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    # A loss is read by its distance from zero.
    if behaviour.better == "lower" and low >= 0:
        low = 0.0
    pad = 0.12 * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def _apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The same values, moved just far enough to be ``gap`` apart and stay in the range.

    Where they cannot all be ``gap`` apart, they are as far apart as the range allows.
    """
    if not values:
        return []
    order = np.argsort(values)
    gap = min(gap, (high - low) / max(len(values) - 1, 1))
    placed = np.clip(np.asarray(values, dtype=float), low, high)
    # Upwards first, which may push the last one out of the range; then back down from its end.
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    placed[order[-1]] = min(placed[order[-1]], high)
    for after, before in pairwise(reversed(order)):
        placed[before] = min(placed[before], placed[after] - gap)
    return placed.tolist()
