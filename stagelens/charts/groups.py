"""Groups of a set under several models: where each group stands, and the errors by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.effects.groups import GroupMetrics
from stagelens.wording.folding import strongest
from stagelens.wording.numbers import amount_text, is_share, scaled, value_text

from .style import BLAME, LIGHT, SHAPES, Chart, Palette, escaped, see_through, style

_COLOURED = 6
"""With more groups than this, only the best and the worst have a colour; the rest is grey."""
_ROW = 58
_ERROR_SCALE = ((0.0, see_through(BLAME, 0)), (1.0, see_through(BLAME, 0.95)))


def group_gaps(
    metrics: GroupMetrics,
    behaviour: Behaviour,
    notes: Mapping[str, str],
    palette: Palette = LIGHT,
) -> Chart:
    """One row per model, one mark per group with its interval, a bar from the worst to the best.

    Of many models, the first and those whose gap differs most from its.

    Args:
        metrics: The models, the first one being the final model.
        behaviour: What is shown: accuracy or the margin.
        notes: Model to a few words printed under its name, such as its trust.
        palette: Light or dark.
    """
    every = list(metrics.groups["model"].unique())
    models = shown_models(metrics, every)
    rows = metrics.groups[metrics.groups["group"].notna() & metrics.groups["model"].isin(models)]
    groups = sorted(rows["group"].unique())
    figure = go.Figure()
    style(figure, palette, height=_ROW * len(models) + 104)
    # Before the marks, which lie on top of them.
    _gap_bars(figure, metrics, behaviour, models, palette)
    for number, group in enumerate(groups):
        _marks(figure, rows[rows["group"] == group], behaviour, models, number, metrics, palette)
    gaps = metrics.gaps.set_index("model")["gap"] if len(metrics.gaps) else pd.Series(dtype=float)
    clear = clear_models(metrics)
    for place, model in enumerate(models):
        gap = gaps.get(model, np.nan)
        size = amount_text(gap, behaviour, unit=False)
        size = size if model in clear else f"({size})"
        figure.add_annotation(
            text=size if np.isfinite(gap) else "no number",
            x=1,
            xref="paper",
            xanchor="left",
            xshift=8,
            y=place,
            showarrow=False,
            font={"color": palette.text if model in clear else palette.muted, "size": 14},
        )
    if len(gaps):
        figure.add_annotation(
            text="gap",
            **{"x": 1, "xref": "paper", "xanchor": "left", "xshift": 8},
            **{"y": -0.5, "yanchor": "bottom", "showarrow": False},
            font={"color": palette.muted, "size": 13},
        )
    low, high = axis_ends(rows, behaviour)
    figure.update_xaxes(
        range=[low, high],
        ticksuffix=" %" if is_share(behaviour) else "",
        zeroline=False,
        showgrid=True,
        fixedrange=True,
        nticks=6,
        title={
            "text": behaviour.name if is_share(behaviour) else f"mean {behaviour.name}",
            "font": {"color": palette.muted, "size": 13},
            "standoff": 8,
        },
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(models))),
        ticktext=[_name(model, notes.get(model)) for model in models],
        ticks="",
        range=[len(models) - 0.5, -0.5],
        automargin=True,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_layout(
        # "no number" is longer than a number.
        margin={"l": 8, "r": 64 if gaps.notna().all() else 88, "t": 44, "b": 52},
        legend={"x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "yref": "paper"},
        hoverlabel={"align": "left"},
        hovermode="closest",
    )
    more = len(every) - len(models)
    said = in_words(metrics, behaviour, models, groups, notes)
    said += f" {more:,} more models change the gap less." if more else ""
    return Chart(figure, said, metrics.groups)


def shown_models(metrics: GroupMetrics, models: list[str]) -> list[str]:
    """The first model, and of many others those whose gap differs most from its."""
    changes = metrics.gaps.set_index("model")["change"] if len(metrics.gaps) else {}
    return [models[0], *(models[1 + n] for n in strongest(changes.get(m, 0) for m in models[1:]))]


def _name(model: str, note: str | None) -> str:
    name = f"<b>{escaped(model, 30)}</b> "
    return f"{name}<br><span style='font-size:12px'>{escaped(note)}</span> " if note else name


def clear_models(metrics: GroupMetrics) -> set[str]:
    """The models whose gap has an interval that leaves out zero: others may have none."""
    rows = metrics.gaps
    sure = (rows["gap_low"] > 0) | (rows["gap_high"] < 0)
    return set(rows.loc[sure.astype(bool), "model"])


def _gap_bars(
    figure: go.Figure,
    metrics: GroupMetrics,
    behaviour: Behaviour,
    models: Sequence[str],
    palette: Palette,
) -> None:
    if metrics.best is None:
        return
    values = metrics.groups.set_index(["model", "group"])[metrics.measure]
    clear = clear_models(metrics)
    for place, model in enumerate(models):
        if model not in clear:
            continue
        ends = [scaled(values[(model, g)], behaviour) for g in (metrics.worst, metrics.best)]
        figure.add_trace(
            go.Scatter(
                x=ends,
                y=[place, place],
                mode="lines",
                line={"color": palette.grid, "width": 14},
                hoverinfo="skip",
                showlegend=False,
            )
        )


def look_of(
    group: str, number: int, metrics: GroupMetrics, palette: Palette
) -> tuple[int | None, str]:
    """The place of a group among symbols, None where it is one of many, and its colour.

    Args:
        group: One of the groups.
        number: Its place among all of them.
        metrics: Of all groups.
        palette: Light or dark.
    """
    many = metrics.groups["group"].nunique() > _COLOURED
    ends = [name for name in (metrics.worst, metrics.best) if name is not None]
    if many and group not in ends:
        return None, palette.muted
    place = ends.index(group) if many else number
    return place, palette.groups[place % len(palette.groups)]


def _marks(
    figure: go.Figure,
    rows: pd.DataFrame,
    behaviour: Behaviour,
    models: Sequence[str],
    number: int,
    metrics: GroupMetrics,
    palette: Palette,
) -> None:
    """One group under every model."""
    kind = metrics.measure
    group = str(rows["group"].iloc[0])
    many = metrics.groups["group"].nunique() > _COLOURED
    place, color = look_of(group, number, metrics, palette)
    named = place is not None
    values = rows.set_index("model")[[kind, f"{kind}_low", f"{kind}_high", "n"]].reindex(models)
    x, low, high = (
        np.array([scaled(v, behaviour) for v in values[name]], dtype=float)
        for name in (kind, f"{kind}_low", f"{kind}_high")
    )
    # A little apart, so that equal groups and their intervals stay visible.
    count = 1 if many else metrics.groups["group"].nunique()
    apart = (number - (count - 1) / 2) * min(0.16, 0.6 / count) if not many else 0.0
    figure.add_trace(
        go.Scatter(
            x=x,
            y=np.arange(len(models)) + apart,
            mode="markers",
            name=escaped(group, 24),
            showlegend=named,
            marker={
                "color": color,
                "symbol": "line-ns-open" if place is None else SHAPES[place % len(SHAPES)][0],
                "size": 12 if named else 9,
                "line": {"color": color, "width": 0 if named else 1.5},
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": high - x,
                "arrayminus": x - low,
                "color": color,
                "thickness": 1.5,
                "width": 0,
                "visible": named,
            },
            customdata=[
                f"<b>{escaped(model)}</b><br>{escaped(group)}: "
                f"{value_text(row[kind], behaviour)}<br>interval "
                f"{value_text(row[f'{kind}_low'], behaviour)} to "
                f"{value_text(row[f'{kind}_high'], behaviour)}<br>{int(row['n']):,} examples"
                for model, row in zip(models, values.to_dict("records"), strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        )
    )


def axis_ends(rows: pd.DataFrame, behaviour: Behaviour) -> tuple[float, float]:
    """Of the axis, with room at both ends; the whole scale if the groups fill half of it anyway."""
    kind = "accuracy" if is_share(behaviour) else "margin"
    columns = rows[[kind, f"{kind}_low", f"{kind}_high"]].to_numpy(dtype=float)
    finite = columns[np.isfinite(columns)]
    if len(finite) == 0:
        return (0.0, 100.0) if is_share(behaviour) else (0.0, 1.0)
    low, high = scaled(finite.min(), behaviour), scaled(finite.max(), behaviour)
    pad = 0.05 * ((high - low) or abs(high) or 1.0)
    if not is_share(behaviour):
        return low - pad, high + pad
    return (-3.0 if low < 50 else low - pad), min(high + pad, 102.0)


def in_words(
    metrics: GroupMetrics,
    behaviour: Behaviour,
    models: Sequence[str],
    groups: Sequence[str],
    notes: Mapping[str, str],
) -> str:
    """The takeaway: where each group stands under every model."""
    values = metrics.groups.set_index(["model", "group"])[metrics.measure]
    few = groups if len(groups) <= _COLOURED else [metrics.worst, metrics.best]
    said = "; ".join(
        f"{model}{f' ({notes[model]})' if model in notes else ''}: "
        + ", ".join(f"{g} {value_text(values[(model, g)], behaviour)}" for g in few if g)
        for model in models
    )
    kind = behaviour.name if is_share(behaviour) else f"Mean {behaviour.name}"
    return f"{kind.capitalize()} of {len(groups)} groups under every model. {said}."


def class_errors(classes: pd.DataFrame, model: str, kind: str, palette: Palette = LIGHT) -> Chart:
    """Errors by class, groups from top to bottom, classes from left to right.

    Args:
        classes: ``GroupMetrics.classes``.
        model: The model whose errors these are.
        kind: ``"missed"`` (share of a class answered wrongly) or ``"false"`` (share of other
            classes answered with it).
        palette: Light or dark.
    """
    rows = classes[(classes["model"] == model) & classes["group"].notna()]
    table = rows.pivot(index="group", columns="label", values=kind)
    counts = rows.pivot(
        index="group", columns="label", values="n" if kind == "missed" else "others"
    )
    figure = go.Figure()
    style(figure, palette, height=34 * max(len(table), 1) + 76)
    shares = table.to_numpy(dtype=float)
    verb = "answered wrongly" if kind == "missed" else "of other classes wrongly answered with it"
    figure.add_trace(
        go.Heatmap(
            z=shares,
            x=list(range(len(table.columns))),
            y=list(range(len(table))),
            zmin=0,
            zmax=1,
            colorscale=[list(stop) for stop in _ERROR_SCALE],
            showscale=False,
            xgap=2,
            ygap=2,
            text=[["" if not np.isfinite(s) else f"{100 * s:.0f}" for s in row] for row in shares],
            texttemplate="%{text}",
            textfont={"color": palette.text, "size": 12},
            customdata=[
                [
                    f"<b>{escaped(str(g))}, class {escaped(str(c))}</b><br>"
                    f"{100 * table.loc[g, c]:.1f} % of {counts.loc[g, c]:,.0f} examples {verb}"
                    for c in table.columns
                ]
                for g in table.index
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 44})
    # By number, since long names may be equal once they are shortened.
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(table.columns))),
        ticktext=[f" {escaped(str(c), 12)} " for c in table.columns],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        ticks="",
        tickfont={"color": palette.text, "size": 13},
        title={"text": "class", "font": {"color": palette.muted, "size": 13}, "standoff": 4},
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(table))),
        ticktext=[f"{escaped(str(g), 18)} " for g in table.index],
        ticks="",
        autorange="reversed",
        automargin=True,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    return Chart(figure, _worst_cell(table, model, verb), rows)


def _worst_cell(table: pd.DataFrame, model: str, verb: str) -> str:
    cells = table.stack().sort_values(ascending=False)
    if cells.empty:
        return f"Errors by class, {model}: no number."
    (group, label), share = cells.index[0], cells.iloc[0]
    return (
        f"Errors by class, {model}: most in group {group}, class {label}, "
        f"{100 * share:.0f} % {verb}."
    )
