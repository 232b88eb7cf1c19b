"""What was promised of estimates against what came of it: the bench, and a run's own estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.estimators.stage_trust import AGREES_ERROR
from stagelens.trust.coverage import close_enough, coverage
from stagelens.wording.kinds_of_runs import kind_of_run
from stagelens.wording.trust_words import decimal, percent

from .effect_scatter import straight
from .style import (
    FAINT_AREA,
    KEPT,
    LIGHT,
    MUTED,
    NEITHER_SHAPE,
    OWN,
    Chart,
    Palette,
    escaped,
    style,
)

MOST_POINTS = 900
"""Estimates of the bench that are drawn; all are counted."""
_NAMED = 2
"""With more marks of its own, a run's are named only under the pointer."""
_HEIGHT = 400
_ENDS = (0.005, 10.0)
"""Errors outside are drawn at the edge."""
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_WRITTEN = (0.01, 0.05, 0.2, 1.0, 5.0)
"""Those that are written below the plot: a telephone has no room for more side by side."""
_BESIDE = ("top right", "bottom right", "top left", "bottom left")
"""Where names stand, in turn, because marks may be near each other."""


@dataclass(frozen=True)
class OwnEstimate:
    """One stage's effects by one estimate of the run that is open.

    Attributes:
        name: The stage and, where there are several estimates, which one.
        promised: Relative error that nine of ten such estimates stay within.
        error: The true one; NaN where no replay has shown it.
        known: What is known of it, in words with its figures.
    """

    name: str
    promised: float
    error: float
    known: str


def calibration_plot(
    points: pd.DataFrame, own: Sequence[OwnEstimate], palette: Palette = LIGHT
) -> Chart:
    """True errors of the bench's estimates against the promised ones, on logarithmic axes.

    Points in the shaded half were further off than promised; those below the level line have an
    error that is close enough to rely on.

    Args:
        points: ``calibration.points()``.
        own: The run's estimates of which an error was promised.
        palette: Light or dark.
    """
    figure = go.Figure()
    style(figure, palette, height=_HEIGHT)
    _areas(figure, palette)
    known = points[np.isfinite(points["promised"]) & np.isfinite(points["error"])]
    drawn = known.iloc[_drawn(known)]
    reliable = drawn["reliable"].astype(bool).to_numpy()
    for name, of, color, symbol in (
        ("not called reliable", ~reliable, MUTED, NEITHER_SHAPE),
        ("called reliable", reliable, KEPT, "square"),
    ):
        rows = drawn[of]
        figure.add_trace(
            go.Scatter(
                x=_within_ends(rows["promised"]),
                y=_within_ends(rows["error"]),
                mode="markers",
                name=name,
                marker={"color": color, "symbol": symbol, "size": 6, "opacity": 0.6},
                customdata=[
                    f"{escaped(kind_of_run(str(row.family)), 60)}, "
                    f"{escaped(str(row.estimator), 40)}"
                    f"<br>promised: up to {percent(row.promised)}"
                    f"<br>true: {percent(row.error)}, r {decimal(row.r)}"
                    for row in rows.itertuples(index=False)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    _own(figure, own, palette)
    _axes(figure, palette)
    return Chart(figure, _said(points, own, len(known) - len(drawn)), _rows(points, own))


def _drawn(points: pd.DataFrame) -> np.ndarray:
    """Which points are drawn: every reliable one that was not close, and a sample of the rest."""
    missed = (points["reliable"].astype(bool) & ~close_enough(points)).to_numpy()
    others = np.flatnonzero(~missed)
    room = max(MOST_POINTS - int(missed.sum()), 0)
    if len(others) > room:
        # Seeded, so that a chart keeps its points when a page runs again.
        others = np.random.default_rng(0).choice(others, room, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(missed), others]))


def _within_ends(values: pd.Series | Sequence[float]) -> np.ndarray:
    return np.clip(np.asarray(values, float), *_ENDS)


def _areas(figure: go.Figure, palette: Palette) -> None:
    low, high = _ENDS
    # A path, because a filled line would be a trace that the report takes for data.
    figure.add_shape(
        type="path",
        path=f"M {low} {low} L {high} {high} L {low} {high} Z",
        fillcolor=FAINT_AREA,
        line={"width": 0},
        layer="below",
    )
    straight(figure, _ENDS, _ENDS, "solid", 1.5, palette.muted)
    straight(figure, _ENDS, (AGREES_ERROR, AGREES_ERROR), "dot", 1.5, palette.line)
    for text, x, y, end in (
        ("further off than promised", low, high, "top"),
        (f"below: error at most {percent(AGREES_ERROR)}", low, AGREES_ERROR, "top"),
    ):
        figure.add_annotation(
            text=text,
            x=np.log10(x),
            y=np.log10(y),
            xanchor="left",
            yanchor=end,
            xshift=4,
            showarrow=False,
            font={"color": palette.muted, "size": 12},
        )


def _own(figure: go.Figure, own: Sequence[OwnEstimate], palette: Palette) -> None:
    """A vertical mark at every promise, and the true error on it where it is known."""
    if not own:
        return
    x = _within_ends([one.promised for one in own])
    gaps = [value for one in x for value in (one, one, None)]
    figure.add_trace(
        go.Scatter(
            x=gaps,
            y=[*_ENDS, None] * len(own),
            mode="lines",
            name="this run",
            line={"color": OWN, "width": 1.5, "dash": "dash"},
            opacity=0.8,
            hoverinfo="skip",
            showlegend=False,
        )
    )
    checked = [bool(np.isfinite(one.error)) for one in own]
    figure.add_trace(
        go.Scatter(
            x=x,
            y=[_within_ends([one.error])[0] if seen else _ENDS[0] * 1.3
               for one, seen in zip(own, checked, strict=True)],
            mode="markers+text" if len(own) <= _NAMED else "markers",
            name="this run (★ true error, ✚ not checked)",
            text=[escaped(one.name, 20) for one in own],
            textposition=[_beside(number, seen) for number, seen in enumerate(checked)],
            textfont={"color": palette.text, "size": 12},
            marker={
                "symbol": ["star" if seen else "cross" for seen in checked],
                "size": 12,
                "color": OWN,
                "line": {"color": OWN, "width": 2},
            },
            customdata=[
                f"<b>{escaped(one.name)}</b><br>promised: up to {percent(one.promised)}<br>"
                f"{escaped(one.known)}"
                for one in own
            ],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        )
    )  # fmt: skip


def _beside(number: int, checked: bool) -> str:
    """Where the name of a mark stands; of one without a true error, which is at the edge, above."""
    place = _BESIDE[number % len(_BESIDE)]
    return place if checked else place.replace("bottom", "top")


def _axes(figure: go.Figure, palette: Palette) -> None:
    common = {
        "type": "log",
        "range": [float(np.log10(end)) for end in _ENDS],
        "tickmode": "array",
        "tickvals": list(_TICKS),
        "zeroline": False,
        "fixedrange": True,
        "tickfont": {"color": palette.muted, "size": 12},
        "title": {"font": {"color": palette.muted, "size": 12}, "standoff": 6},
    }
    written = [percent(tick) for tick in _TICKS]
    below = [text if tick in _WRITTEN else "" for tick, text in zip(_TICKS, written, strict=True)]
    promised = "promised: error up to, without a replay"
    figure.update_xaxes(**common, title_text=promised, ticktext=below, tickangle=0)
    figure.update_yaxes(**common, title_text="true error, by replay", ticktext=written)
    figure.update_layout(
        margin={"l": 60, "r": 12, "t": 34, "b": 48},
        legend={"x": 0, "y": 1.01, "yanchor": "bottom"},
        hovermode="closest",
        hoverlabel={"align": "left"},
    )


def _rows(points: pd.DataFrame, own: Sequence[OwnEstimate]) -> pd.DataFrame:
    mine = pd.DataFrame(
        {
            "family": ["this run"] * len(own),
            "stage": [one.name for one in own],
            "promised": [one.promised for one in own],
            "error": [one.error for one in own],
        }
    )
    columns = ["family", "recording", "stage", "estimator", "promised", "error", "r", "reliable"]
    bench = points[columns].astype({"reliable": object})
    return pd.concat([mine, bench], ignore_index=True) if len(own) else bench


def _said(points: pd.DataFrame, own: Sequence[OwnEstimate], left_out: int) -> str:
    found = coverage(points)
    said = (
        f"Promised against true errors of {found.estimates:,} estimates on {found.families} "
        f"kinds of training runs: {found.within:,} are within the promised error, and "
        f"{found.close:,} of the {found.reliable:,} called reliable are close enough to a replay."
    )
    mine = [
        f"{one.name}: up to {percent(one.promised)}"
        + (f", true {percent(one.error)}" if np.isfinite(one.error) else ", not checked")
        for one in own
    ]
    said += f" This run: {'; '.join(mine)}." if mine else ""
    return said + (f" {left_out:,} more points are not drawn." if left_out > 0 else "")
