"""Before and after an edit: accuracy by group, calibration, confusion, and strengths by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from .marked_rows import Mark, Row, marked_rows
from .style import (
    AMOUNT,
    BEFORE_AFTER,
    LIGHT,
    PAPER,
    SHAPES,
    ZERO,
    Chart,
    Palette,
    escaped,
    see_through,
    style,
)
from .tokens import Markup

_MARKS = tuple((color, *shape) for color, shape in zip(BEFORE_AFTER, SHAPES, strict=False))
"""Colour, symbol and glyph by position: before, after, by replay."""

_ROW = 36
"""Height of a mark with its number."""
_CONFUSED = [[0.0, see_through(AMOUNT, 0.06)], [1.0, see_through(AMOUNT, 1.0)]]
_STRONG = 0.8
"""From this share on a cell is dark enough, on any background, for white text."""


def group_accuracy(
    rows: pd.DataFrame, palette: Palette = LIGHT, approximate: str | None = None
) -> Chart:
    """Accuracy per group, one mark per model with its 95 % interval.

    Args:
        rows: ``model``, ``group`` (printable), ``n``, ``accuracy``, ``accuracy_low`` and
            ``accuracy_high`` (NaN: no interval); models and groups in the order of the rows.
        palette: Light or dark.
        approximate: A model whose figures are interpolated; its marks are pale.
    """
    groups = list(dict.fromkeys(rows["group"]))
    models = list(dict.fromkeys(rows["model"]))
    shifts = np.linspace(-0.3, 0.3, len(models)) if len(models) > 2 else [-0.13, 0.13]
    figure = go.Figure()
    for (color, symbol, _), shift, model in zip(_MARKS, shifts, models, strict=False):
        own = rows[rows["model"] == model]
        accuracy = 100 * own["accuracy"].to_numpy(float)
        high = 100 * own["accuracy_high"].to_numpy(float) - accuracy
        low = accuracy - 100 * own["accuracy_low"].to_numpy(float)
        sign = "≈ " if model == approximate else ""
        figure.add_trace(
            go.Scatter(
                x=accuracy,
                y=[groups.index(group) + shift for group in own["group"]],
                mode="markers+text",
                name=escaped(model),
                text=[f"{sign}{value:.1f}" for value in accuracy],
                # A number to the right of a mark near 100 % would be cut off.
                textposition=["middle left" if value > 88 else "middle right" for value in accuracy]
                if not np.isfinite(high).any()
                else ("bottom center" if shift == shifts[-1] else "top center"),
                textfont={"color": palette.text, "size": 12},
                marker={
                    "color": color,
                    "symbol": symbol,
                    "size": 11,
                    "opacity": 0.55 if model == approximate else 1.0,
                    "line": {"color": color, "width": 2},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": np.nan_to_num(high),  # no interval: a bar of length 0
                    "arrayminus": np.nan_to_num(low),
                    "color": color,
                    "thickness": 1.5,
                    "width": 0,
                },
                cliponaxis=False,
                hovertemplate="%{customdata}<extra></extra>",
                customdata=[_hover(model, row) for row in own.to_dict("records")],
            )
        )
    style(figure, palette, height=76 + _ROW * max(len(models), 2) * max(len(groups), 1))
    counts = rows.drop_duplicates("group").set_index("group")["n"]
    figure.update_xaxes(
        range=list(_accuracy_ends(rows)),
        ticksuffix=" %",
        fixedrange=True,
        zeroline=False,
        nticks=6,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(groups))),
        ticktext=[
            f"<b>{escaped(group, 22)}</b> <br>"
            f"<span style='font-size:12px'>{counts[group]:,} examples</span> "
            for group in groups
        ],
        range=[len(groups) - 0.5, -0.62],
        automargin=True,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_layout(
        margin={"l": 8, "r": 12, "t": 34, "b": 32},
        legend={"x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    return Chart(figure, _accuracies(rows))


def accuracy_rows(rows: pd.DataFrame, approximate: str | None = None) -> Markup:
    """:func:`group_accuracy` as markup, for pages whose reader may switch the theme."""
    models = list(dict.fromkeys(rows["model"]))
    looks = {
        model: (color, glyph) for model, (color, _, glyph) in zip(models, _MARKS, strict=False)
    }
    made = []
    for group, own in rows.groupby("group", sort=False):
        marks = [
            Mark(
                100 * row["accuracy"],
                100 * row["accuracy_low"],
                100 * row["accuracy_high"],
                *looks[row["model"]],
                _plain(row["model"], row),
                text=f"{'≈ ' if row['model'] == approximate else ''}{100 * row['accuracy']:.1f}",
                pale=row["model"] == approximate,
            )
            for row in own.to_dict("records")
        ]
        made.append(Row(str(group), f"{own['n'].iloc[0]:,} examples", marks))
    legend = [(glyph, color, model) for model, (color, glyph) in looks.items()]
    return marked_rows(made, _accuracy_ends(rows), legend, _accuracies(rows), " %", "accuracy")


def _accuracy_ends(rows: pd.DataFrame) -> tuple[float, float]:
    known = rows[["accuracy", "accuracy_low"]].min(axis=1).dropna()
    lowest = 100 * float(known.min()) if len(known) else 0.0
    return max(0.0, 10 * float(np.floor((lowest - 6) / 10))), 103.0


def _accuracies(rows: pd.DataFrame) -> str:
    said = "; ".join(
        f"{row['group']}, {row['model']}: {100 * row['accuracy']:.1f} %"
        for row in rows.to_dict("records")
    )
    return f"Accuracy by group. {said}."


def _plain(model: str, row: Mapping[Any, Any]) -> str:
    low, high = float(row["accuracy_low"]), float(row["accuracy_high"])
    between = f", 95 % interval {100 * low:.1f} to {100 * high:.1f} %" if low == low else ""
    return f"{row['group']}, {model}: accuracy {100 * row['accuracy']:.1f} %{between}"


def _hover(model: str, row: Mapping[str, object]) -> str:
    low, high = float(row["accuracy_low"]), float(row["accuracy_high"])  # type: ignore[arg-type]
    between = f"<br>95 % interval {100 * low:.1f} to {100 * high:.1f} %" if low == low else ""
    share = 100 * float(row["accuracy"])  # type: ignore[arg-type]
    name = escaped(str(row["group"]))
    return f"<b>{name}</b>, {escaped(model)}<br>accuracy {share:.1f} %{between}"


def calibration_curve(models: Mapping[str, pd.DataFrame], palette: Palette = LIGHT) -> Chart:
    """How often answers are right against how sure the model was; honest ones lie on the diagonal.

    Args:
        models: Name to bins, as ``comparison.calibration`` makes them.
        palette: Light or dark.
    """
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line={"color": palette.muted, "width": 1.5, "dash": "dot"},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    for (color, symbol, _), (model, bins) in zip(_MARKS, models.items(), strict=False):
        figure.add_trace(
            go.Scatter(
                x=100 * bins["confidence"],
                y=100 * bins["accuracy"],
                mode="lines+markers",
                name=escaped(model),
                line={"color": color, "width": 2},
                marker={
                    "color": color,
                    "symbol": symbol,
                    # The root, so that areas grow with the counts.
                    "size": 6 + 10 * np.sqrt(bins["n"] / max(bins["n"].max(), 1)),
                    "line": {"color": color, "width": 2},
                },
                customdata=bins["n"],
                hovertemplate="sure %{x:.0f} %<br>right %{y:.0f} %<br>"
                "%{customdata:,} examples<extra></extra>",
            )
        )
    style(figure, palette, height=330)
    axis = {
        "range": [-3, 103],
        "ticksuffix": " %",
        "fixedrange": True,
        "zeroline": False,
        "nticks": 6,
        "tickfont": {"color": palette.muted, "size": 12},
    }
    title = {"font": {"color": palette.muted, "size": 12}, "standoff": 6}
    figure.update_xaxes(**axis, title={**title, "text": "how sure the model is of its answer"})
    figure.update_yaxes(**axis, title={**title, "text": "how often it is right"})
    figure.update_layout(
        margin={"l": 58, "r": 8, "t": 34, "b": 48},
        legend={"x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
    )
    return Chart(figure, f"Calibration of {' and '.join(models)}: accuracy by confidence.")


def confusion_map(counts: pd.DataFrame, model: str, palette: Palette = LIGHT) -> Chart:
    """Labels by answers: each row's shares as shades, counts as numbers.

    Args:
        counts: As ``comparison.confusion`` makes them, C by C.
        model: Its name, for the alternative text.
        palette: Light or dark.
    """
    names = [escaped(str(name), 12) for name in counts.index]
    values = counts.to_numpy()
    totals = np.maximum(values.sum(1, keepdims=True), 1)  # a class may have no example
    shares = values / totals
    # By number, since long names may be equal once they are shortened.
    places = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=places,
            y=places,
            zmin=0,
            zmax=1,
            colorscale=_CONFUSED,
            showscale=False,
            xgap=2,
            ygap=2,
            customdata=values,
            hovertemplate="label %{y}, answer %{x}: %{customdata}<extra></extra>",
        )
    )
    if len(names) <= 12:  # more numbers than that would not be legible
        for row, column in zip(*np.nonzero(values), strict=True):
            figure.add_annotation(
                x=int(column),
                y=int(row),
                text=str(values[row, column]),
                showarrow=False,
                font={
                    "size": 12,
                    "color": PAPER if shares[row, column] > _STRONG else palette.text,
                },
            )
    style(figure, palette, height=min(150 + 30 * len(names), 560))
    axis = {
        "tickmode": "array",
        "tickvals": places,
        "ticktext": names,
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "ticks": "",
        "tickfont": {"color": palette.muted, "size": 12},
    }
    title = {"font": {"color": palette.muted, "size": 12}, "standoff": 4}
    figure.update_xaxes(**axis, automargin=True, title={**title, "text": "answer"})
    figure.update_yaxes(
        **axis, automargin=True, autorange="reversed", title={**title, "text": "label"}
    )
    figure.update_layout(margin={"l": 8, "r": 4, "t": 6, "b": 8})
    wrong = int(values.sum() - np.trace(values))
    said = f"Confusion matrix of the {model}: {wrong:,} of {int(values.sum()):,} answers are wrong."
    return Chart(figure, said)


def layer_strengths(
    stages: Mapping[str, Mapping[str, float]], colors: Sequence[str], palette: Palette = LIGHT
) -> Chart:
    """How much of each stage is taken out of each layer, in the order of the model.

    Args:
        stages: Stage to layer to strength, 0 to 1.
        colors: One per stage.
        palette: Light or dark.
    """
    layers = list(dict.fromkeys(layer for own in stages.values() for layer in own))
    figure = go.Figure()
    for color, (stage, own) in zip(colors, stages.items(), strict=True):
        values = [100 * own.get(layer, 0.0) for layer in layers]
        figure.add_trace(
            go.Bar(
                name=escaped(stage),
                orientation="h",
                x=values,
                y=list(range(len(layers))),
                marker={"color": color},
                text=[f"{value:.0f} %" for value in values],
                textposition="outside",
                textfont={"color": palette.text, "size": 12},
                cliponaxis=False,
                hovertemplate="%{x:.0f} %<extra></extra>",
            )
        )
    style(figure, palette, height=60 + (16 + 14 * len(stages)) * max(len(layers), 1))
    figure.update_xaxes(
        # Room for the number behind a bar of 100 %.
        range=[0, 116],
        tickvals=[0, 50, 100],
        ticksuffix=" %",
        fixedrange=True,
        zeroline=True,
        zerolinecolor=ZERO,
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(layers))),
        ticktext=[f"{escaped(layer, 32)} " for layer in layers],
        range=[len(layers) - 0.5, -0.5],
        automargin=True,
        showgrid=False,
        ticks="",
    )
    figure.update_layout(
        margin={"l": 8, "r": 8, "t": 28, "b": 24},
        legend={"x": 0.0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"},
        showlegend=len(stages) > 1,
        barmode="group",
    )
    said = "; ".join(
        f"{stage}: " + ", ".join(f"{layer} {100 * value:.0f} %" for layer, value in own.items())
        for stage, own in stages.items()
    )
    return Chart(figure, f"Strength by layer. {said}.")
