"""Two measurements of a stage's effect against each other: one point per example."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from ..comparing import Comparison, Side
from ..standing import decimal
from ..summary import axis_unit, phrase, scaled, signed_text
from .style import BLAME, CREDIT, FAINT_AREA, LIGHT, MUTED, ZERO, Chart, Palette, escaped, style

_WEBGL_FROM = 1000
_HEIGHT = 420
_KINDS = (
    ("credit by both", CREDIT, "circle"),
    ("blame by both", BLAME, "diamond"),
    ("credit by one, blame by the other", MUTED, "x-thin-open"),
)


def effect_against_effect(found: Comparison, stage: str, palette: Palette = LIGHT) -> Chart:
    """Gains by one side against gains by the other.

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
    x_range, y_range = _range(x), _range(y)
    if found.one_unit:
        x_range = y_range = (min(x_range[0], y_range[0]), max(x_range[1], y_range[1]))
    figure = go.Figure()
    style(figure, palette, height=_HEIGHT)
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
    if found.one_unit:
        _line(figure, 1.0, x_range, "solid", palette.muted)
    if np.isfinite(found.figures["slope"]):
        factor = scaled(1.0, found.second.behaviour) / scaled(1.0, found.first.behaviour)
        _line(figure, found.figures["slope"] * factor, x_range, "dash", palette.line)
    kinds = np.where(np.sign(x) != np.sign(y), 2, np.where(y >= 0, 0, 1))
    scatter = go.Scattergl if len(points) >= _WEBGL_FROM else go.Scatter
    for number, (name, color, symbol) in enumerate(_KINDS):
        of = kinds == number
        figure.add_trace(
            scatter(
                x=x[of],
                y=y[of],
                mode="markers",
                name=name,
                marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.6},
                customdata=[
                    f"<b>{escaped(str(row.example_id))}</b>"
                    f"<br>{_hover(found.first, row.first)}<br>{_hover(found.second, row.second)}"
                    for row in points[of].itertuples(index=False)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    _axes(figure, found, x_range, y_range, palette)
    said = (
        f"Effect of {stage} by {found.first.name} against {found.second.name}, {len(points):,} "
        f"examples: r {decimal(found.figures['r'])}, slope {decimal(found.figures['slope'])}."
    )
    return Chart(figure, said)


def _hover(side: Side, gain: float) -> str:
    return f"{escaped(side.name, 40)}: {signed_text(gain * side.behaviour.sign, side.behaviour)}"


def _range(values: np.ndarray) -> tuple[float, float]:
    """With zero inside and room at both ends."""
    low, high = min(0.0, *values, -1e-9), max(0.0, *values, 1e-9)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def _line(
    figure: go.Figure, slope: float, across: tuple[float, float], dash: str, color: str
) -> None:
    figure.add_trace(
        go.Scatter(
            x=list(across),
            y=[slope * end for end in across],
            mode="lines",
            line={"color": color, "width": 2, "dash": dash},
            hoverinfo="skip",
            showlegend=False,
        )
    )


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
        margin={"l": 56, "r": 4, "t": 8, "b": 46},
        legend={"y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
        hoverlabel={"align": "left"},
    )
