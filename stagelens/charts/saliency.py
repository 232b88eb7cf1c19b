"""Where in one input two models' behaviour and a stage's effect sit: three maps side by side."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stagelens.analyses.saliency.concentration import densest_patch
from stagelens.analyses.saliency.map_table import Map
from stagelens.analyses.saliency.spans import runs_on, strongest_span
from stagelens.contracts import Behaviour
from stagelens.wording.numbers import amount_text, phrase, signed_text
from stagelens.wording.signs import gain, gain_text

from .style import (
    BLAME,
    CREDIT,
    LIGHT,
    MUTED,
    NEITHER,
    PAPER,
    Chart,
    Palette,
    escaped,
    see_through,
    short,
    style,
)
from .tokens import MOST, TEXT, Markup, legend, shaded, visible

_ACROSS = 64
"""Most cells along one side; in larger images each holds the sum of some pixels."""
_SIGNED = 12
"""With at most so many cells along one side, they show their sign too."""
_STRONG = 0.3
"""Share of the range from which cells show their sign."""
_OPAQUE, _FAINT = 0.92, 0.45
"""Of the strongest cells; faint is what is not to be relied on."""
_INPUT = 0.35
"""Opacity of the image behind a map."""
_MARGIN = {"l": 4, "r": 4, "t": 28, "b": 40}


def titles(stage: str) -> tuple[str, str, str]:
    """What the three maps are called."""
    return "final model", f"without {stage}", f"effect of {stage}"


def pixel_maps(
    one: Map,
    picture: str,
    behaviour: Behaviour,
    stage: str,
    palette: Palette = LIGHT,
    height: int = 216,
    faint: bool = False,
    signed: bool = True,
) -> Chart:
    """The maps of the final model, of the one without a stage, and of the stage, over the image.

    All three have one range, symmetric about zero, so that the third can be read as the first minus
    the second.

    Args:
        one: The maps of one image.
        picture: The image as a ``data:`` address.
        behaviour: What is attributed; tells credit from blame.
        stage: The stage.
        palette: Light or dark.
        height: Of the chart, in pixels.
        faint: Whether the effect is not to be relied on.
        signed: Whether the effect's sign is known; else its map is grey at either end.
    """
    maps = [_cells(each) for each in (one.final, one.without, one.stage)]
    # Not 0, since a scale from 0 to 0 has no colours.
    largest = max(float(np.abs(each).max()) for each in maps) or 1.0
    figure = make_subplots(
        rows=1,
        cols=3,
        subplot_titles=[escaped(name, 26) for name in titles(stage)],
        horizontal_spacing=0.025,
    )
    style(figure, palette, height)
    figure.update_annotations(font={"color": palette.text, "size": 13})
    step = -(-max(one.final.shape) // _ACROSS)
    for column, cells in enumerate(maps, start=1):
        gains = gain(cells, behaviour)
        figure.add_trace(
            go.Heatmap(
                z=gains,
                coloraxis="coloraxis" if signed or column < 3 else "coloraxis2",
                customdata=_said(cells, behaviour, step, stage if column == 3 else "", signed),
                hovertemplate="%{customdata}<extra></extra>",
                text=_signs(gains, largest) if signed or column < 3 else None,
                texttemplate="%{text}" if max(cells.shape) <= _SIGNED else None,
                textfont={"color": PAPER, "size": 11},
                xgap=0,
                ygap=0,
            ),
            row=1,
            col=column,
        )
        _picture(figure, picture, cells.shape, column)
    axis = {"showgrid": False, "zeroline": False, "showticklabels": False, "ticks": ""}
    figure.update_xaxes(**axis, constrain="domain", fixedrange=True)
    figure.update_yaxes(**axis, autorange="reversed", fixedrange=True, constrain="domain")
    for column in (1, 2, 3):
        figure.update_yaxes(scaleanchor=f"x{column if column > 1 else ''}", row=1, col=column)
    figure.update_layout(margin=_MARGIN, coloraxis=_colors(largest, behaviour, palette, faint))
    if not signed:
        grey = [[0.0, see_through(NEITHER, _OPAQUE)], [0.5, see_through(NEITHER, 0)]]
        grey.append([1.0, see_through(NEITHER, _OPAQUE)])
        ends = {"cmin": -largest, "cmax": largest, "colorscale": grey, "showscale": False}
        figure.update_layout(coloraxis2=ends)
    places = np.indices(maps[0].shape).reshape(2, -1) * step
    columns = dict(zip(("row", "column"), places, strict=True))
    gains = (gain(each, behaviour).ravel() for each in maps)
    columns |= dict(zip(titles(stage), gains, strict=True))
    return Chart(figure, _takeaway(one, behaviour, stage, signed), pd.DataFrame(columns))


def _cells(values: np.ndarray) -> np.ndarray:
    """A map with at most :data:`_ACROSS` cells along a side; sums do not change."""
    step = -(-max(values.shape) // _ACROSS)
    height, width = (-(-size // step) * step for size in values.shape)
    # Filled up with zeros, which add nothing to the sum of a cell at the edge.
    padded = np.zeros((height, width))
    padded[: values.shape[0], : values.shape[1]] = values
    cells: np.ndarray = padded.reshape(height // step, step, width // step, step).sum((1, 3))
    return cells


def _signs(gains: np.ndarray, largest: float) -> np.ndarray:
    marks = np.where(gains > 0, "+", "−")
    found: np.ndarray = np.where(np.abs(gains) >= _STRONG * largest, marks, "")
    return found


def _said(
    cells: np.ndarray, behaviour: Behaviour, step: int, stage: str, signed: bool
) -> np.ndarray:
    """What cells say when somebody points at them."""
    texts = np.empty(cells.shape, dtype=object)
    for (row, column), value in np.ndenumerate(cells):
        better = gain(float(value), behaviour)
        way = "nothing" if better == 0 else "better" if better > 0 else "worse"
        if stage and better:
            way = _way(better, "▲ ", "▼ ") if signed else "± sign uncertain"
        amount = f"{gain_text(value, behaviour)} ({way})"
        texts[row, column] = f"{_span('row', row, step)}, {_span('column', column, step)}: {amount}"
    return texts


def _span(name: str, at: int, step: int) -> str:
    return f"{name} {at}" if step == 1 else f"{name}s {at * step}–{at * step + step - 1}"


def _picture(figure: go.Figure, picture: str, shape: tuple[int, ...], column: int) -> None:
    height, width = shape
    figure.add_layout_image(
        source=picture,
        # Cells are centred on whole numbers.
        x=-0.5,
        y=-0.5,
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
        opacity=_INPUT,
        row=1,
        col=column,
    )
    figure.add_shape(
        type="rect",
        x0=-0.5,
        y0=-0.5,
        x1=width - 0.5,
        y1=height - 0.5,
        line={"color": MUTED, "width": 1},
        row=1,
        col=column,
    )


def _colors(
    largest: float, behaviour: Behaviour, palette: Palette, faint: bool
) -> dict[str, object]:
    opacity = _FAINT if faint else _OPAQUE
    ends = [signed_text(end, behaviour) for end in (-largest, largest)]
    return {
        "cmin": -largest,
        "cmax": largest,
        "colorscale": [
            [0.0, see_through(BLAME, opacity)],
            # Two stops at zero, or plotly would blend the two colours around it.
            [0.5, see_through(BLAME, 0)],
            [0.5, see_through(CREDIT, 0)],
            [1.0, see_through(CREDIT, opacity)],
        ],
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "len": 0.6,
            "y": 0,
            "yanchor": "top",
            "ypad": 14,
            "outlinewidth": 0,
            "tickvals": [-largest, 0, largest],
            "ticktext": [f"▼ {ends[0]}", "0", f"▲ {ends[1]}"],
            "tickfont": {"color": palette.muted, "size": 12},
        },
    }


def _way(gain: float, up: str = "", down: str = "") -> str:
    return f"{up}credit" if gain > 0 else f"{down}blame"


def _takeaway(one: Map, behaviour: Behaviour, stage: str, signed: bool) -> str:
    opening = f"Where in example {one.example_id} the effect of {stage} on the {phrase(behaviour)}"
    found = densest_patch([one.stage])
    if found is None:
        return f"{opening} sits: nowhere, it is zero in every pixel."
    row, column = np.unravel_index(int(np.abs(one.stage).argmax()), one.stage.shape)
    value = float(one.stage[row, column])
    way = _way(gain(value, behaviour)) if signed else "sign uncertain"
    return (
        f"{opening} sits: {100 * found.share:.0f} % of it, by size, lies in {found.name}; most in "
        f"row {row}, column {column}: {way}, {amount_text(value, behaviour)}."
    )


def token_maps(one: Map, behaviour: Behaviour, stage: str, signed: bool = True) -> Markup:
    """The same for a text: its tokens shaded three times, with one range and one legend.

    Args:
        one: The maps of one text.
        behaviour: What is attributed; tells credit from blame.
        stage: The stage.
        signed: Whether the effect's sign is known; else its tokens are grey.
    """
    assert one.tokens is not None, "the maps are of a text"
    maps = [each[:MOST] for each in (one.final, one.without, one.stage)]
    largest = max(float(np.abs(each).max()) for each in maps)
    blocks = []
    for name, values in zip(titles(stage), maps, strict=True):
        spans = "".join(
            shaded(
                token,
                gain(float(value), behaviour),
                largest,
                f"{gain_text(float(value), behaviour)} in the {phrase(behaviour)}, {name}",
                signed or values is not maps[2],
            )
            # Without it, pieces that have lost their spaces would read as one word.
            + " " * (not runs_on(one.tokens))
            for token, value in zip(one.tokens, values, strict=False)
        )
        blocks.append(
            f"<div style='font-size:.85em;opacity:.75;margin-top:.5em'>{html.escape(name)}</div>"
            f"<div dir='ltr' style=\"{TEXT}\">{spans}</div>"
        )
    more = f"In the two models' own maps: makes the {phrase(behaviour)} worse, or better."
    if len(one.tokens) > MOST:
        more += f" Shown: the first {MOST:,} of {len(one.tokens):,} tokens."
    span, value = strongest_span(one.tokens, one.stage)
    way = _way(gain(value, behaviour)) if signed else "sign uncertain"
    if not signed:
        more += " Grey: the sign of the effect is uncertain."
    where = f"most in {short(visible(span), 40)!r} ({way}, {amount_text(value, behaviour)})"
    alt = (
        f"Where in example {one.example_id} the effect of {stage} on the {phrase(behaviour)} sits: "
        f"{where if value else 'nowhere, it is zero for every token'}."
    )
    return Markup(
        f"<div role='group' aria-label='{html.escape(alt, quote=True)}'>{''.join(blocks)}"
        f"{legend(largest, behaviour, more)}</div>",
        alt,
    )
