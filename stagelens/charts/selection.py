"""What choosing training examples is worth: bars of replayed models, and the curve of horizons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.wording.numbers import count_text, is_share, phrase, scaled, value_text

from .marked_rows import Mark, Row, marked_rows
from .style import KEPT, LIGHT, ZERO, Chart, Palette, escaped, see_through, style
from .tokens import Markup

_ROW = 44
"""Height of a bar with the room around it."""
_ROOM = 1.25
"""How far the axis goes beyond the longest interval, so that numbers have a place."""


def trained_rows(rows: pd.DataFrame, behaviour: Behaviour) -> Markup:
    """A behaviour after a stage was replayed with parts of its examples, as bars in markup.

    Args:
        rows: ``trained_on`` (printable), ``mean``, ``low`` and ``high`` over draws, and ``chosen``,
            whether these are the chosen ones; from top to bottom.
        behaviour: What was measured.
    """
    ends = _ends(rows, behaviour)
    unit = " %" if is_share(behaviour) else ""
    made = []
    for row in rows.to_dict("records"):
        value, low, high = (scaled(float(row[name]), behaviour) for name in ("mean", "low", "high"))
        color, glyph = _look(bool(row["chosen"]))
        text = value_text(float(row["mean"]), behaviour)
        mark = Mark(value, low, high, color, glyph, _said_of(row, behaviour), text=text)
        made.append(Row(str(row["trained_on"]), "", [mark], bar=(0.0, value)))
    title = f"{phrase(behaviour)}, mean over draws with its 95 % interval"
    return marked_rows(made, ends, [], _said(rows, behaviour), unit, title)


def trained_bars(rows: pd.DataFrame, behaviour: Behaviour, palette: Palette = LIGHT) -> Chart:
    """:func:`trained_rows` as a figure."""
    values = np.array([scaled(float(value), behaviour) for value in rows["mean"]])
    lows, highs = (
        rows[name].map(lambda v: scaled(float(v), behaviour)) for name in ("low", "high")
    )
    names = [str(name) for name in rows["trained_on"]]
    figure = go.Figure(
        go.Bar(
            x=values.tolist(),
            y=list(range(len(rows))),
            orientation="h",
            width=0.6,
            marker={
                "color": [see_through(_look(bool(one))[0], 0.75) for one in rows["chosen"]],
                "line": {"color": [_look(bool(one))[0] for one in rows["chosen"]], "width": 1.5},
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(highs - values),  # no interval: of no length
                "arrayminus": np.nan_to_num(values - lows),
                "color": palette.text,
                "thickness": 1.5,
            },
            customdata=[escaped(_said_of(row, behaviour)) for row in rows.to_dict("records")],
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    )
    style(figure, palette, height=64 + _ROW * len(rows))
    figure.update_xaxes(
        range=list(_ends(rows, behaviour)),
        ticksuffix=" %" if is_share(behaviour) else "",
        title_text=f"{phrase(behaviour)}, mean over draws",
        title_font={"color": palette.muted, "size": 12},
        fixedrange=True,
        nticks=6,
        zeroline=True,
        zerolinecolor=ZERO,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=[
            f"{escaped(name, 24)}<br><span style='font-size:12px'>"
            f"{value_text(float(mean), behaviour)}</span> "
            for name, mean in zip(names, rows["mean"], strict=True)
        ],
        range=[len(rows) - 0.5, -0.5],
        automargin=True,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_layout(margin={"l": 8, "r": 16, "t": 8, "b": 44}, bargap=0.3)
    return Chart(figure, _said(rows, behaviour), rows)


def horizon_curve(
    rows: pd.DataFrame, best: int, behaviour: Behaviour, palette: Palette = LIGHT
) -> Chart:
    """What each horizon's choice did to the target, by replay: every draw, and their mean.

    Args:
        rows: ``horizon``, ``draw`` and ``value``.
        best: The horizon that was taken.
        behaviour: What ``value`` is of.
        palette: Light or dark.
    """
    means = rows.groupby("horizon")["value"].mean()
    figure = go.Figure(
        [
            go.Scatter(
                x=means.index.tolist(),
                y=[scaled(float(value), behaviour) for value in means],
                mode="lines+markers",
                line={"color": palette.line, "width": 2},
                marker={
                    "size": [14 if one == best else 9 for one in means.index],
                    "symbol": ["square" if one == best else "diamond" for one in means.index],
                    "color": [KEPT if one == best else ZERO for one in means.index],
                },
                customdata=[
                    f"{count_text(int(one), 'step')} later{', taken' if one == best else ''}<br>"
                    f"mean {value_text(float(value), behaviour)}"
                    for one, value in means.items()
                ],
                hovertemplate="%{customdata}<extra></extra>",
                name="mean over draws (green: taken)",
                cliponaxis=False,
            ),
            go.Scatter(
                x=rows["horizon"].tolist(),
                y=[scaled(float(value), behaviour) for value in rows["value"]],
                mode="markers",
                marker={"size": 5, "color": ZERO, "symbol": "circle"},
                hoverinfo="skip",
                name="single draws",
                cliponaxis=False,
            ),
        ]
    )
    style(figure, palette, height=270)
    small = {"color": palette.muted, "size": 12}
    horizons = [int(one) for one in means.index]
    figure.update_xaxes(
        type="log",
        tickmode="array",
        tickvals=horizons,
        ticktext=[f"{one:,}" for one in horizons],
        title_text="horizon: how many steps later the target is asked",
        title_font=small,
        fixedrange=True,
        zeroline=False,
    )
    figure.update_yaxes(
        title_text=f"{phrase(behaviour)} of the target",
        title_font=small,
        ticksuffix=" %" if is_share(behaviour) else "",
        fixedrange=True,
        zeroline=False,
        nticks=5,
    )
    figure.update_layout(
        margin={"l": 64, "r": 20, "t": 34, "b": 48},
        legend={"x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    said = "; ".join(
        f"{int(one):,}: {value_text(float(value), behaviour)}" for one, value in means.items()
    )
    alt = (
        f"The {phrase(behaviour)} of the target after the stage was replayed with each horizon's "
        f"choice, by steps: {said}. Taken: {best:,}."
    )
    return Chart(figure, alt, rows)


def _look(chosen: bool) -> tuple[str, str]:
    return (KEPT, "■") if chosen else (ZERO, "◆")


def _ends(rows: pd.DataFrame, behaviour: Behaviour) -> tuple[float, float]:
    """Of the axis: bars begin at zero."""
    values = np.array([scaled(float(v), behaviour) for v in rows[["mean", "low", "high"]].stack()])
    values = values[np.isfinite(values)]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    return (low * _ROOM, high * _ROOM) if low or high else (0.0, 1.0)


def _said_of(row: dict[str, object], behaviour: Behaviour) -> str:
    mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))  # type: ignore[arg-type]
    said = f"{row['trained_on']}: {value_text(mean, behaviour)}"
    if not np.isfinite(low):
        return said
    return f"{said} ({value_text(low, behaviour)} to {value_text(high, behaviour)})"


def _said(rows: pd.DataFrame, behaviour: Behaviour) -> str:
    every = "; ".join(_said_of(row, behaviour) for row in rows.to_dict("records"))
    return (
        f"Mean {phrase(behaviour)} after the stage was replayed with parts of its examples, with "
        f"95 % intervals over draws. {every}."
    )
