"""How a behaviour came about: observed during training, and contributed by every step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate, pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stagelens.analyses.contributions.contribution_table import opposite
from stagelens.contracts import BASE, Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.numbers import axis_unit, is_share, phrase, scaled, signed_text, value_text
from stagelens.wording.signs import gain, gain_text
from stagelens.wording.trust_words import FIRST_ORDER, MARKS, TrustWord, trust_word

from .stages import draw_bands, heading, stage_edges
from .style import LIGHT, ZERO, Chart, Palette, color_of, escaped, see_through, style

MOST_BARS = 320
"""Most bars of a chart; in a longer stage, neighbouring steps are added up, so that charts of
thousands of steps stay light and their bars still add up to the stage."""


def observed_path(
    observed: pd.DataFrame,
    behaviour: Behaviour,
    counts: Mapping[str, int],
    palette: Palette = LIGHT,
) -> Chart:
    """A behaviour over the whole of training, where it was measured, below the stages.

    Args:
        observed: ``stage``, ``step`` (steps done in the stage; 0 before the first) and ``value``,
            in training order.
        behaviour: What ``value`` is.
        counts: Stage name to its number of steps, in training order.
        palette: Light or dark.
    """
    edges = stage_edges(list(counts.values()))
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[64, 150], vertical_spacing=0.04
    )
    style(figure, palette, height=270)
    figure.update_layout(showlegend=False, margin={"l": 62, "r": 28, "t": 10, "b": 20})
    figure.update_xaxes(
        range=[-0.012, 1.012], showgrid=False, zeroline=False, showticklabels=False, fixedrange=True
    )
    figure.update_yaxes(zeroline=False, fixedrange=True, nticks=5)
    draw_bands(figure, counts, edges)
    for edge in edges:
        figure.add_vline(
            x=edge, row=2, col=1, line={"color": ZERO, "width": 1, "dash": "dot"},
            opacity=0.5, layer="below",
        )  # fmt: skip
    place = dict(zip(counts, pairwise(edges), strict=True))
    x, words = [], []
    for row in observed.itertuples():
        left, right = place[row.stage]
        x.append(left + row.step / max(counts[row.stage], 1) * (right - left))
        when = BASE if not row.step else f"after {row.stage}"
        if 0 < row.step < counts[row.stage]:
            when = f"after step {row.step:,} of {row.stage}"
        words.append(f"{when}: {value_text(row.value, behaviour)}")
    figure.add_trace(
        go.Scatter(
            x=x,
            y=[scaled(value, behaviour) for value in observed["value"]],
            mode="lines+markers",
            line={"color": palette.line, "width": 2.5},
            marker={
                "size": [9 if row.step in (0, counts[row.stage]) else 6
                         for row in observed.itertuples()],
                "color": palette.line,
            },
            customdata=[escaped(each) for each in words],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        ),
        row=2,
        col=1,
    )  # fmt: skip
    # A loss is read by its distance from zero, also where a task gives no lowest value for it.
    low = {"rangemode": "tozero"} if behaviour.lowest == 0 or behaviour.name == "loss" else {}
    figure.update_yaxes(row=2, col=1, ticksuffix=" %" if is_share(behaviour) else "", **low)
    return Chart(figure, f"{phrase(behaviour).capitalize()} observed. {'; '.join(words)}.")


def step_contributions(
    steps: pd.DataFrame,
    rates: pd.DataFrame,
    behaviour: Behaviour,
    stage: str,
    effect: float,
    color: str,
    palette: Palette = LIGHT,
    trust: StageTrust | None = None,
) -> Chart:
    """What each step of a stage contributed, and how that adds up; credit points upwards.

    Args:
        steps: ``step`` and ``value``, the contribution in the behaviour's unit, in order.
        rates: ``step`` and ``lr``, drawn behind the steps; may be thinned.
        behaviour: Whose value the steps changed.
        stage: Their stage.
        effect: The stage's effect, to compare the sum with; NaN if it is not known.
        color: The stage's.
        palette: Light or dark.
        trust: What is known of the effect.
    """
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        row_heights=[150, 150],
        vertical_spacing=0.14,
        specs=[[{}], [{"secondary_y": True}]],
    )
    style(figure, palette, height=400)
    figure.update_layout(showlegend=False, margin={"l": 62, "r": 96, "t": 28, "b": 44}, bargap=0)
    bars = added_up(steps)
    total = float(steps["value"].sum())
    last = len(steps)
    figure.add_trace(
        go.Scatter(
            # At the middle of its step, as the bars are.
            x=rates["step"] + 0.5,
            y=rates["lr"],
            mode="lines",
            line={"color": color, "width": 1},
            fill="tozeroy",
            fillcolor=see_through(color, 0.14),
            hovertemplate="learning rate %{y:.3g}<extra></extra>",
        ),
        row=2,
        col=1,
    )
    gains = gain(bars["value"].to_numpy(), behaviour)
    figure.add_trace(
        go.Bar(
            x=(bars["first"] + bars["after"]) / 2,
            y=[scaled(value, behaviour) for value in gains],
            width=bars["after"] - bars["first"],
            marker={
                # Steps that add up to the opposite sign of the effect are neither credit nor blame.
                "color": [color_of(0.0 if opposite(effect, total) else v) for v in gains],
                "line": {"width": 0},
            },
            customdata=[
                f"{_named(row.first, row.after)}: {gain_text(row.value, behaviour)}"
                for row in bars.itertuples()
            ],
            hovertemplate="%{customdata}<extra></extra>",
        ),
        row=2,
        col=1,
        secondary_y=True,  # so that the bars are in front of the learning rate
    )
    sums = [0.0, *accumulate(gains)]
    figure.add_trace(
        go.Scatter(
            x=[0, *bars["after"]],
            y=[scaled(value, behaviour) for value in sums],
            mode="lines",
            line={"color": palette.line, "width": 2.5},
            customdata=[
                f"up to step {after:,}: {signed_text(value, behaviour)}"
                for after, value in zip([0, *bars["after"]], sums, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        ),
        row=1,
        col=1,
    )
    words = {"first order": FIRST_ORDER}
    if trust is not None:
        words["stage effect"] = trust_word(trust, behaviour.name)
    _ends(figure, {"first order": total, "stage effect": effect}, words, behaviour, last, palette)
    unit = axis_unit(behaviour)
    better = f"↑ credit: {phrase(behaviour)} {behaviour.better}{f', {unit}' if unit else ''}"
    heading(figure, f"steps added up ({better})", 1, palette)
    heading(figure, "contribution of each step; the shading shows the learning rate", 2, palette)
    figure.update_xaxes(
        range=[-0.01 * last, 1.01 * last], showgrid=False, zeroline=False, fixedrange=True
    )
    figure.update_xaxes(title={"text": f"step of {escaped(stage, 24)}", "standoff": 4,
                               "font": {"color": palette.muted, "size": 13}},
                        row=2, col=1)  # fmt: skip
    figure.update_yaxes(
        zeroline=True, zerolinecolor=ZERO, zerolinewidth=1, fixedrange=True, nticks=5
    )
    top = float(rates["lr"].max()) if len(rates) else 0.0
    figure.update_yaxes(
        row=2, col=1, secondary_y=False, visible=False, range=[0, 1.25 * (top or 1.0)]
    )
    figure.update_yaxes(row=2, col=1, secondary_y=True, side="left", tickmode="auto")
    said = (
        f"Contributions of the {last:,} steps of {stage} to the {phrase(behaviour)}, to first "
        f"order, positive for credit: together {gain_text(total, behaviour)}, {FIRST_ORDER}"
    )
    if np.isfinite(effect):
        known = f", {words['stage effect']}" if trust is not None else ""
        said += f"; the stage's effect is {gain_text(effect, behaviour)}{known}"
    return Chart(figure, f"{said}.")


def added_up(steps: pd.DataFrame) -> pd.DataFrame:
    """Contributions of neighbouring steps together, at most :data:`MOST_BARS` rows.

    Args:
        steps: ``step`` and ``value``, in order.

    Returns:
        ``first`` step, the step ``after`` the last one, and ``value``, their sum.
    """
    count = len(steps)
    # Runs of neighbours that differ in length by one at most.
    group = np.arange(count) * min(count, MOST_BARS) // max(count, 1)
    found = steps.reset_index(drop=True).groupby(group)
    return pd.DataFrame(
        {
            "first": found["step"].min().astype(int),
            "after": found["step"].max().astype(int) + 1,
            "value": found["value"].sum(),
        }
    )


def _named(first: int, after: int) -> str:
    return f"step {first:,}" if after == first + 1 else f"steps {first:,} to {after - 1:,}"


def _ends(
    figure: go.Figure,
    ends: Mapping[str, float],
    words: Mapping[str, TrustWord],
    behaviour: Behaviour,
    last: int,
    palette: Palette,
) -> None:
    """The sum and the stage effect as named marks at the right."""
    known = {name: value for name, value in ends.items() if np.isfinite(value)}
    y = {name: scaled(gain(value, behaviour), behaviour) for name, value in known.items()}
    figure.add_trace(
        go.Scatter(
            x=[last] * len(known),
            y=list(y.values()),
            mode="markers",
            marker={
                "size": 10,
                "color": palette.line,
                "symbol": "square",
            },
            customdata=[
                f"{name}: {gain_text(value, behaviour)}"
                + (f", {words[name]}" if name in words else "")
                for name, value in known.items()
            ],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        ),
        row=1,
        col=1,
    )
    highest = max(y, key=lambda name: y[name], default="")
    for name, value in y.items():
        figure.add_annotation(
            x=last,
            y=value,
            text=(f"{MARKS[words[name]]} " if name in words else "") + name.replace(" ", "<br>"),
            align="left",
            xanchor="left",
            xshift=10,
            # Away from each other, however near their marks are.
            yanchor="middle" if len(y) == 1 else "bottom" if name == highest else "top",
            showarrow=False,
            font={"color": palette.text, "size": 12},
            row=1,
            col=1,
        )
