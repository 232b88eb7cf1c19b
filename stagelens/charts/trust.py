"""Estimates against replay: one scatter per stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import Agreement
from stagelens.wording.numbers import axis_unit, phrase, scaled
from stagelens.wording.signs import gain_text
from stagelens.wording.trust_words import decimal, percent

from .effect_scatter import around_zero, drawn_of, drawn_points, shade_other_signs, straight
from .style import (
    BLAME,
    BLAME_SHAPE,
    CREDIT,
    CREDIT_SHAPE,
    LIGHT,
    MUTED,
    NEITHER_SHAPE,
    ZERO,
    Chart,
    Palette,
    escaped,
    style,
)

_HEIGHT = 284
_KINDS = (
    ("credit", CREDIT, CREDIT_SHAPE),
    ("blame", BLAME, BLAME_SHAPE),
    ("within noise", MUTED, NEITHER_SHAPE),
)


@dataclass(frozen=True)
class Plane:
    """What is drawn of an estimate against replay; both axes point towards credit.

    Attributes:
        points: The examples that have both numbers.
        x: (N,) the estimate, as it is printed.
        y: (N,) replay.
        ends: Of both axes.
        along: Two values of the estimate and two of replay that the slope goes through; None
            without a slope.
        wrong: Share of the examples whose sign is wrong; NaN without any.
        towards: What the axes say.
        said: The takeaway.
    """

    points: pd.DataFrame
    x: np.ndarray
    y: np.ndarray
    ends: tuple[float, float]
    along: tuple[tuple[float, float], tuple[float, float]] | None
    wrong: float
    towards: str
    said: str


def plane(
    points: pd.DataFrame, behaviour: Behaviour, stage: str, estimate: str, slope: float
) -> Plane:
    """What :func:`agreement` draws of the same arguments."""
    points = points[np.isfinite(points["estimate"]) & np.isfinite(points["replay"])]
    x = np.asarray([scaled(behaviour.sign * v, behaviour) for v in points["estimate"]], float)
    y = np.asarray([scaled(behaviour.sign * v, behaviour) for v in points["replay"]], float)
    ends = _range(np.concatenate([x, y]))
    wrong = _wrong_share(x, y)
    unit = f", {axis_unit(behaviour)}" if axis_unit(behaviour) else ""
    return Plane(
        points,
        x,
        y,
        ends,
        _clipped(slope, *ends) if np.isfinite(slope) else None,
        wrong,
        f"{behaviour.name} {behaviour.better}{unit} →",
        _said(points, behaviour, stage, estimate, slope, wrong),
    )


def agreement(
    points: pd.DataFrame,
    behaviour: Behaviour,
    stage: str,
    estimate: str,
    slope: float,
    palette: Palette = LIGHT,
) -> Chart:
    """Effect by an estimate against effect by replay, one point per example or for some of them.

    Both axes point towards credit, whatever the behaviour's own direction. A point on the solid
    diagonal is right; the dashed line is the slope of replay on estimate through the origin; in
    the shaded corners the estimate has the wrong sign.

    Args:
        points: ``example_id``, ``estimate``, ``replay`` (effects) and ``within_noise`` (nullable).
        behaviour: What was measured.
        stage: The stage that is left out, for the alternative text.
        estimate: Name of the estimate.
        slope: Of replay on estimate; NaN draws no line.
        palette: Light or dark.
    """
    drawn = plane(points, behaviour, stage, estimate, slope)
    points, x, y, (low, high) = drawn.points, drawn.x, drawn.y, drawn.ends
    figure = go.Figure()
    style(figure, palette, height=_HEIGHT)
    _corners(figure, low, high, palette, drawn.wrong)
    straight(figure, (low, high), (low, high), "solid", 1.5, palette.muted)
    if drawn.along is not None:
        straight(figure, *drawn.along, "dash", 2.5, palette.line)
    # The share above is of all examples; only from here on may some be left out.
    seen = drawn_points(x, y)
    x, y, shown = x[seen], y[seen], points.iloc[seen]
    kinds = kinds_of(y, shown["within_noise"])
    for number, (name, color, symbol) in enumerate(_KINDS):
        of = kinds == number
        figure.add_trace(
            go.Scatter(
                x=x[of],
                y=y[of],
                mode="markers",
                name=name,
                marker={
                    "color": color,
                    "symbol": symbol,
                    "size": 7 if number < 2 else 6,
                    "opacity": 0.5 if number < 2 else 0.7,
                    "line": {"color": color, "width": 0 if number < 2 else 1},
                },
                ids=shown.loc[of, "example_id"].astype(str).tolist(),
                customdata=[
                    f"<b>{escaped(str(one))}</b><br>estimate {gain_text(e, behaviour)}"
                    f"<br>replay {gain_text(r, behaviour)}"
                    for one, e, r in shown.loc[of, ["example_id", "estimate", "replay"]].itertuples(
                        index=False
                    )
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    _axes(figure, low, high, drawn.towards, palette)
    return Chart(figure, drawn.said, points)


def kinds_of(gains: np.ndarray, within_noise: pd.Series) -> np.ndarray:
    """0 credit, 1 blame, 2 within training noise, by what replay says."""
    noisy = within_noise.fillna(False).astype(bool).to_numpy()
    return np.where(noisy, 2, np.where(gains >= 0, 0, 1))


def _wrong_share(x: np.ndarray, y: np.ndarray) -> float:
    return float((np.sign(x) != np.sign(y)).mean()) if len(x) else float("nan")


def _range(values: np.ndarray) -> tuple[float, float]:
    """One range for both axes, with zero inside and room at both ends."""
    low, high = around_zero(values)
    room = 0.15 / 1.12 * (high - low)  # of the values' own span, 1.12 of which around_zero gives
    return min(low, -room), max(high, room)


def _clipped(
    slope: float, low: float, high: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The part of ``y = slope x`` that lies in the square."""
    ends = []
    for end in (low, high):
        y = slope * end
        if low <= y <= high:
            ends.append((end, y))
        else:
            edge = high if y > high else low
            # Not 0 here: a level line never leaves the range, which has 0 in it.
            ends.append((edge / slope, edge))
    return (ends[0][0], ends[1][0]), (ends[0][1], ends[1][1])


def _corners(figure: go.Figure, low: float, high: float, palette: Palette, wrong: float) -> None:
    shade_other_signs(figure, (low, high), (low, high))
    if np.isfinite(wrong):
        right = high >= -low  # in the wider of the two corners
        figure.add_annotation(
            text=f"wrong sign {100 * wrong:.0f} %",
            x=high if right else low,
            y=low if right else high,
            xanchor="right" if right else "left",
            yanchor="bottom" if right else "top",
            xshift=-4 if right else 4,
            showarrow=False,
            font={"color": palette.muted, "size": 12},
        )


def _axes(figure: go.Figure, low: float, high: float, towards: str, palette: Palette) -> None:
    common = {
        "range": [low, high],
        "zeroline": True,
        "zerolinecolor": ZERO,
        "zerolinewidth": 1,
        "nticks": 5,
        "fixedrange": True,
        "title": {"font": {"color": palette.muted, "size": 12}, "standoff": 6},
        "tickfont": {"color": palette.muted, "size": 12},
    }
    figure.update_xaxes(**common, title_text=f"estimate ({towards})")
    figure.update_yaxes(**common, title_text=f"replay ({towards})")
    figure.update_layout(
        margin={"l": 46, "r": 4, "t": 8, "b": 46},
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
    )


def _said(
    points: pd.DataFrame,
    behaviour: Behaviour,
    stage: str,
    estimate: str,
    slope: float,
    wrong: float,
) -> str:
    if points.empty:
        return f"Stage {stage}: no example has both an estimate and a replay."
    r, error = np.nan, np.nan
    if len(points) > 1 and points["estimate"].std() > 0 and points["replay"].std() > 0:
        r = float(np.corrcoef(points["estimate"], points["replay"])[0, 1])
        gap = np.linalg.norm(points["estimate"] - points["replay"])
        error = float(gap / np.linalg.norm(points["replay"]))
    found = Agreement(behaviour=behaviour.name, r=r, slope=slope, relative_error=error)
    verdict = "is verified by replay" if found.agrees else "does not agree with replay"
    figures = f"r {decimal(r)}, slope {decimal(slope)}, relative error {percent(error)}"
    return (
        f"Stage effect of {stage} on the {phrase(behaviour)} by {estimate} against replay, "
        f"{len(points):,} examples. The estimate {verdict}: {figures}; {100 * wrong:.0f} % have "
        f"the wrong sign. {drawn_of(len(points))}"
    ).rstrip()
