"""Two measurements of a stage's effect against each other: one point per example."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from stagelens.trust.comparing import Comparison, Side
from stagelens.wording.numbers import axis_unit, phrase, scaled, signed_text
from stagelens.wording.trust_words import decimal, signs_known

from .effect_scatter import Range, around_zero, drawn_of, drawn_points, shade_other_signs, straight
from .style import (
    BLAME,
    BLAME_SHAPE,
    CREDIT,
    CREDIT_SHAPE,
    LIGHT,
    MUTED,
    NEITHER,
    NEITHER_SHAPE,
    ZERO,
    Chart,
    Palette,
    escaped,
    style,
)

_HEIGHT = 420
_KINDS = (
    ("credit by both", CREDIT, CREDIT_SHAPE),
    ("blame by both", BLAME, BLAME_SHAPE),
    ("credit by one, blame by the other", MUTED, NEITHER_SHAPE),
)
_UNSIGNED = (("sign uncertain", NEITHER, "square-open"),)
"""Where too many signs of either side may be wrong."""


def effect_against_effect(found: Comparison, stage: str, palette: Palette = LIGHT) -> Chart:
    """Gains by one side plotted against gains by the other.

    Both axes point towards credit. The solid line is equality, where both are of one behaviour; the
    dashed one is the slope through the origin; in the shaded corners the signs differ.

    Args:
        found: The comparison.
        stage: Whose effects these are, for the alternative text.
        palette: Light or dark.
    """
    points = found.points
    x = scaled(1.0, found.first.behaviour) * points["first"].to_numpy(float)
    y = scaled(1.0, found.second.behaviour) * points["second"].to_numpy(float)
    x_range, y_range = around_zero(x), around_zero(y)
    if found.one_unit:
        # One range for both, so that equality is the diagonal.
        x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
    figure = go.Figure()
    style(figure, palette, height=_HEIGHT)
    shade_other_signs(figure, x_range, y_range)
    if found.one_unit:
        _line(figure, 1.0, x_range, "solid", palette.muted)
    if np.isfinite(found.figures["slope"]):
        # The slope is of values, and an axis may show them in percent.
        factor = scaled(1.0, found.second.behaviour) / scaled(1.0, found.first.behaviour)
        _line(figure, found.figures["slope"] * factor, x_range, "dash", palette.line)
    kinds = np.where(np.sign(x) != np.sign(y), 2, np.where(y >= 0, 0, 1))
    sides = (found.first, found.second)
    signed = all(signs_known(side.trust, side.behaviour.name) for side in sides)
    kinds = kinds if signed else np.zeros_like(kinds)
    seen = drawn_points(x, y)
    for number, (name, color, symbol) in enumerate(_KINDS if signed else _UNSIGNED):
        of = seen[kinds[seen] == number]
        figure.add_trace(
            go.Scatter(
                x=x[of],
                y=y[of],
                mode="markers",
                name=name,
                marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.6},
                ids=points["example_id"].iloc[of].astype(str).tolist(),
                customdata=[
                    f"<b>{escaped(str(row.example_id))}</b>"
                    f"<br>{_hover(found.first, row.first)}<br>{_hover(found.second, row.second)}"
                    for row in points.iloc[of].itertuples(index=False)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    _axes(figure, found, x_range, y_range, palette)
    said = (
        f"Effect of {stage} by {found.first.name} against {found.second.name}, {len(points):,} "
        f"examples: r {decimal(found.figures['r'])}, slope {decimal(found.figures['slope'])}. "
        f"{'' if signed else 'The sign is uncertain. '}{drawn_of(len(points))}"
    )
    named = {"first": found.first.name, "second": found.second.name}  # may be the same
    names = {side: f"{side}: {name}, towards credit" for side, name in named.items()}
    rows = points.rename(columns=names)
    return Chart(figure, said.rstrip(), rows)


def _hover(side: Side, gain: float) -> str:
    return f"{escaped(side.name, 40)}: {signed_text(gain, side.behaviour)}"


def _line(figure: go.Figure, slope: float, across: Range, dash: str, color: str) -> None:
    straight(figure, across, [slope * end for end in across], dash, 2, color)


def _axes(
    figure: go.Figure,
    found: Comparison,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    palette: Palette,
) -> None:
    common = {
        "zeroline": True,
        "zerolinecolor": ZERO,
        "zerolinewidth": 1,
        "nticks": 6,
        "fixedrange": True,
        "tickfont": {"color": palette.muted, "size": 12},
    }
    title = {"font": {"color": palette.muted, "size": 12}, "standoff": 6}
    for update, side, ends in (
        (figure.update_xaxes, found.first, x_range),
        (figure.update_yaxes, found.second, y_range),
    ):
        unit = axis_unit(side.behaviour)
        towards = f"{phrase(side.behaviour)} {side.behaviour.better}{f', {unit}' if unit else ''} →"
        text = f"{escaped(side.name, 40)} ({towards})"
        update(**common, range=list(ends), title={**title, "text": text})
    figure.update_layout(
        margin={"l": 56, "r": 4, "t": 32, "b": 46},
        legend={"y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        hoverlabel={"align": "left"},
    )
