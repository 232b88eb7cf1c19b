"""What pairs of stages do only together, as a small matrix of numbers on a diverging scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.analyses.shares.pairs import Pair
from stagelens.contracts import Behaviour
from stagelens.wording.intervals import made_of
from stagelens.wording.numbers import axis_unit, phrase, scaled
from stagelens.wording.signs import gain, gain_text
from stagelens.wording.trust_words import may_be_finding, trust_label, trust_word

from .style import BLAME, CREDIT, LIGHT, ZERO, Chart, Palette, escaped, see_through, style

_CELL = 54
_FULLEST = 0.62
"""How much of the colour the strongest cell has: numbers must stay legible on white and on dark.

Cells are see-through where nothing is, so that brightness is monotone on either background: away
from zero, cells get darker on white and brighter on dark.
"""


def pair_matrix(
    pairs: Sequence[Pair],
    behaviour: Behaviour,
    palette: Palette = LIGHT,
    about: str = "all examples",
) -> Chart:
    """A cell per pair: rows came later, columns before; blue makes it better, vermilion worse.

    Args:
        pairs: At least one.
        behaviour: What was measured.
        palette: Light or dark.
        about: Which examples, for the alternative text.
    """
    columns = list(dict.fromkeys(pair.first for pair in pairs))
    rows = list(dict.fromkeys(pair.second for pair in pairs))
    z = np.full((len(rows), len(columns)), np.nan)
    said = np.full(z.shape, "", dtype=object)
    places = [(rows.index(pair.second), columns.index(pair.first)) for pair in pairs]
    for place, pair in zip(places, pairs, strict=True):
        said[place] = _hover(pair, behaviour)
        if stands_out(pair, behaviour):
            z[place] = scaled(gain(pair.given_all.mean, behaviour), behaviour)
    top = float(np.nanmax(np.abs(z))) if np.isfinite(z).any() else 1.0
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=list(range(len(columns))),
            y=list(range(len(rows))),
            zmin=-top,
            zmax=top,
            colorscale=[
                [0.0, see_through(BLAME, _FULLEST)],
                [0.4999, see_through(BLAME, 0.0)],
                [0.5001, see_through(CREDIT, 0.0)],
                [1.0, see_through(CREDIT, _FULLEST)],
            ],
            showscale=False,
            xgap=2,
            ygap=2,
            hoverinfo="skip",
            customdata=said.tolist(),
        )
    )
    _numbers(figure, pairs, places, behaviour, palette)
    for row, column in places:
        edges = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", **edges, line={"color": palette.grid, "width": 1})
    style(figure, palette, height=74 + _CELL * len(rows))
    figure.update_layout(margin={"l": 8, "r": 8, "t": 62, "b": 12}, showlegend=False)
    figure.update_xaxes(
        side="top",
        tickmode="array",
        tickvals=list(range(len(columns))),
        ticktext=[escaped(name, 12) for name in columns],
        range=[-0.5, len(columns) - 0.5],
        tickangle=0 if len(columns) <= 4 else -45,
        title={"text": "before", "font": {"size": 12, "color": palette.muted}, "standoff": 4},
        fixedrange=True,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_xaxes(tickfont={"color": palette.text, "size": 13})
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=[f"{escaped(name, 14)} " for name in rows],
        range=[len(rows) - 0.5, -0.5],
        automargin=True,
        fixedrange=True,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    return Chart(figure, _said(pairs, behaviour, about), _rows(pairs, behaviour))


def stands_out(pair: Pair, behaviour: Behaviour) -> bool:
    """Whether what a pair does only together leaves out zero, and its sign is known."""
    return pair.given_all.is_clear and may_be_finding(pair.given_all.trust, behaviour.name)


def _numbers(
    figure: go.Figure,
    pairs: Sequence[Pair],
    places: Sequence[tuple[int, int]],
    behaviour: Behaviour,
    palette: Palette,
) -> None:
    clear = [stands_out(pair, behaviour) for pair in pairs]
    figure.add_trace(
        go.Scatter(
            x=[place[1] for place in places],
            y=[place[0] for place in places],
            mode="markers+text",
            # Large and see-through, so that a pointer anywhere in the cell finds it.
            marker={
                "symbol": "square",
                "size": _CELL - 6,
                "color": see_through(ZERO, 0.0),
                "line": {"width": 0},
            },
            text=[_number(pair, behaviour) for pair in pairs],
            textfont={
                "size": [14 if one else 12 for one in clear],
                "color": [palette.text if one else palette.muted for one in clear],
            },
            customdata=[_hover(pair, behaviour) for pair in pairs],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        )
    )


def _number(pair: Pair, behaviour: Behaviour) -> str:
    mean = pair.given_all.mean
    if not np.isfinite(mean):
        return "n/a"
    text = gain_text(mean, behaviour, unit=False)
    return text if stands_out(pair, behaviour) else f"({text})"


def _hover(pair: Pair, behaviour: Behaviour) -> str:
    lines = [f"<b>{escaped(pair.second)}</b>, because <b>{escaped(pair.first)}</b> came before"]
    if np.isfinite(pair.given_all.mean):
        lines.append(
            f"{gain_text(pair.given_all.mean, behaviour)}: what leaving out "
            f"{escaped(pair.second)} changes, less the same without {escaped(pair.first)}"
        )
        lines.append(made_of(pair.given_all.interval, behaviour))
    if np.isfinite(pair.together.mean):
        lines.append(f"over all contexts: {gain_text(pair.together.mean, behaviour)}")
    lines.append(trust_label(pair.given_all.trust, behaviour.name))
    return "<br>".join(lines)


def _said(pairs: Sequence[Pair], behaviour: Behaviour, about: str) -> str:
    unit = axis_unit(behaviour)
    parts = "; ".join(
        f"{pair.second} after {pair.first} {_number(pair, behaviour)}" for pair in pairs
    )
    return (
        f"What pairs of stages do to the {phrase(behaviour)} on {about} only together"
        f"{f', in {unit}' if unit else ''}; in brackets where the interval includes zero. {parts}."
    )


def _rows(pairs: Sequence[Pair], behaviour: Behaviour) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "stage": [pair.second for pair in pairs],
            "because of": [pair.first for pair in pairs],
            "only together": [pair.given_all.mean for pair in pairs],
            "low": [_end(pair, "low") for pair in pairs],
            "high": [_end(pair, "high") for pair in pairs],
            "over all contexts": [pair.together.mean for pair in pairs],
            "trust": [trust_word(pair.given_all.trust, behaviour.name) for pair in pairs],
        }
    )


def _end(pair: Pair, name: str) -> float:
    interval = pair.given_all.interval
    return float("nan") if interval is None else float(getattr(interval, name))
