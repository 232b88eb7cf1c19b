"""The stages on a time line, with their learning rates and what followed each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from stagelens.contracts import BASE, Behaviour
from stagelens.wording.folding import MOST
from stagelens.wording.numbers import is_share, phrase

from .paths import draw_paths
from .style import (
    BLACK,
    LIGHT,
    ZERO,
    Chart,
    Palette,
    boundary_ticks,
    escaped,
    see_through,
    stage_color,
    style,
)

MOST_BANDS = 40
"""Stages that a time line draws one by one: with more, each is too narrow to be pointed at."""
_MOST_TICKS = 9
"""Turned, these still stand beside each other on a phone."""


def time_line(
    steps: Mapping[str, int],
    rates: pd.DataFrame,
    boundaries: pd.DataFrame | None,
    behaviour: Behaviour | None,
    palette: Palette = LIGHT,
) -> Chart:
    """Stages from left to right; below them the learning rate, and a behaviour at each boundary.

    Widths follow the numbers of steps, but no stage becomes too narrow to be read. Of many stages,
    as many neighbours are drawn as one as it takes for at most :data:`MOST_BANDS`.

    Args:
        steps: Stage name to its number of steps, in training order.
        rates: ``stage``, ``step`` (from 0 within the stage) and ``lr``; may be thinned.
        boundaries: As ``summary.boundary_summary`` makes it, one group after the other; None
            where behaviours after each boundary have not been measured.
        behaviour: What ``boundaries`` holds.
        palette: Light or dark.
    """
    rows, groups = boundaries, _neighbours(list(steps))
    if len(groups) < len(steps):
        steps, rates, boundaries = _together(groups, steps, rates, boundaries)
    edges = stage_edges(list(steps.values()))
    measured = boundaries is not None and behaviour is not None and not boundaries.empty
    heights = [64, 90, 230] if measured else [64, 100]
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.1 if measured else 0.2,
    )
    style(figure, palette, height=sum(heights) + 140)
    figure.update_layout(
        showlegend=False, margin={"l": 62, "r": 92 if measured else 24, "t": 10, "b": 54}
    )
    figure.update_xaxes(
        range=[-0.012, 1.012], showgrid=False, zeroline=False, showticklabels=False, fixedrange=True
    )
    figure.update_yaxes(zeroline=False, fixedrange=True)
    draw_bands(figure, steps, edges)
    own = _rates(figure, steps, rates, edges, palette)
    # All at once: plotly goes through every shape again whenever one is added.
    figure.update_layout(
        shapes=[
            {
                "type": "line",
                "x0": edge,
                "x1": edge,
                "xref": f"x{row}",
                "y0": 0,
                "y1": 1,
                "yref": f"y{row} domain",
                "line": {"color": ZERO, "width": 1, "dash": "dot"},
                "opacity": 0.5,
                "layer": "below",
            }
            for row in range(2, len(heights) + 1)
            for edge in edges
        ]
    )
    heading(figure, f"learning rate{' (each stage on its own scale)' if own else ''}", 2, palette)
    told = [f"{name} ({_steps(count)})" for name, count in steps.items()]
    said = " then ".join(told[:MOST])
    said += f" and {len(told) - MOST:,} more" if len(told) > MOST else ""
    alt = f"Stages in training order: {said}."
    if measured and boundaries is not None and behaviour is not None:
        unit = "%" if is_share(behaviour) else behaviour.unit
        title = f"{phrase(behaviour)}{f' ({unit})' if unit else ''} after each boundary"
        heading(figure, f"{title}: {behaviour.better} is better", 3, palette)
        alt += " " + draw_paths(
            figure, boundaries, behaviour, edges, list(steps), 230, palette, row=3
        )
    last = len(heights)
    ticks = boundary_ticks([own[-1] for own in groups])
    # Labels that stand side by side; the boundaries between them keep their lines.
    every = slice(None, None, -(-len(ticks) // _MOST_TICKS))
    figure.update_xaxes(
        row=last,
        col=1,
        showticklabels=True,
        tickmode="array",
        tickvals=list(edges)[every],
        ticktext=ticks[every],
        tickfont={"color": palette.text, "size": 13},
        automargin=True,  # names that are turned, for want of width, are not cut off
    )
    return Chart(figure, alt, rows if measured else rates)


def _neighbours(names: list[str]) -> list[list[str]]:
    """The stages that are drawn as one: each by itself, unless there are too many."""
    size = max(-(-len(names) // MOST_BANDS), 1)
    return [names[start : start + size] for start in range(0, len(names), size)]


def _together(
    groups: Sequence[Sequence[str]],
    steps: Mapping[str, int],
    rates: pd.DataFrame,
    boundaries: pd.DataFrame | None,
) -> tuple[dict[str, int], pd.DataFrame, pd.DataFrame | None]:
    """What :func:`time_line` takes, with each group of stages as one."""
    titles = [own[0] if len(own) == 1 else f"{own[0]} to {own[-1]}" for own in groups]
    title_of, before, ends, summed = {}, {}, {BASE: BASE}, {}
    for title, own in zip(titles, groups, strict=True):
        done = 0
        for name in own:
            # Steps are counted from the first stage of the group.
            title_of[name], before[name] = title, done
            done += steps[name]
        ends[own[-1]], summed[title] = title, done
    stage = rates["stage"]
    rates = rates.assign(step=rates["step"] + stage.map(before), stage=stage.map(title_of))
    if boundaries is not None:
        boundaries = boundaries[boundaries["boundary"].isin(ends)]
        boundaries = boundaries.assign(boundary=boundaries["boundary"].map(ends))
    return summed, rates, boundaries


def stage_edges(counts: Sequence[int]) -> list[float]:
    """Boundaries on 0..1: widths in proportion to steps, none below a minimum."""
    if not counts:
        return [0.0, 1.0]
    # With many stages the minima take 80 % of the line, so that widths still tell of steps.
    least = min(0.16, 0.8 / len(counts))
    # Stages of an assembled run have no recorded steps.
    shares = np.asarray([max(count, 1) for count in counts], dtype=float)
    shares /= shares.sum()
    shares = least + (1 - least * len(counts)) * shares
    return [0.0, *np.cumsum(shares).tolist()]


def draw_bands(figure: go.Figure, steps: Mapping[str, int], edges: Sequence[float]) -> None:
    """Stage names on their colours; where they do not fit they turn, shrink, then show on hover."""
    figure.update_layout(uniformtext={"minsize": 9, "mode": "hide"}, bargap=0)
    figure.update_yaxes(row=1, col=1, range=[0, 1], visible=False)
    widths = [right - left for left, right in pairwise(edges)]
    figure.add_trace(
        go.Bar(
            x=[left + width / 2 for left, width in zip(edges, widths, strict=False)],
            y=[1.0] * len(widths),
            width=[width - 0.004 for width in widths],  # a gap between neighbours
            marker={"color": [stage_color(index) for index in range(len(widths))]},
            text=[
                f"<b>{escaped(name, 24)}</b><br>{_steps(count)}" for name, count in steps.items()
            ],
            textposition="inside",
            insidetextanchor="middle",
            textfont={"color": BLACK, "size": 13},
            constraintext="inside",
            customdata=[f"{escaped(name)}: {_steps(count)}" for name, count in steps.items()],
            hovertemplate="%{customdata}<extra></extra>",
        ),
        row=1,
        col=1,
    )


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _rates(
    figure: go.Figure,
    steps: Mapping[str, int],
    rates: pd.DataFrame,
    edges: Sequence[float],
    palette: Palette,
) -> bool:
    """Draw the learning rates; returns whether they differ too much for one scale."""
    tops = {name: float(rates.loc[rates["stage"] == name, "lr"].max()) for name in steps}
    known = [top for top in tops.values() if top > 0]
    # On a common scale, stages with a small learning rate would seem to have none.
    own = bool(known) and max(known) > 4 * min(known)
    common = max(known, default=1.0)
    for index, (name, (left, right)) in enumerate(zip(steps, pairwise(edges), strict=True)):
        part = rates[rates["stage"] == name]
        top = tops[name] if own and tops[name] > 0 else common
        figure.add_trace(
            go.Scatter(
                # At the middle of its step.
                x=left + (part["step"] + 0.5) / max(steps[name], 1) * (right - left),
                y=part["lr"] / top,
                mode="lines" if len(part) > 1 else "markers",
                line={"color": stage_color(index), "width": 2.5},
                fill="tozeroy",
                fillcolor=see_through(stage_color(index), 0.18),
                customdata=[
                    f"{escaped(name)}, step {step:,}<br>learning rate {rate:.3g}"
                    for step, rate in zip(part["step"], part["lr"], strict=True)
                ],
                hovertemplate="%{customdata}<extra></extra>",
            ),
            row=2,
            col=1,
        )
    figure.update_yaxes(
        row=2,
        col=1,
        range=[0, 1.15],
        tickmode="array",
        tickvals=[0] if own else [0, 1],
        ticktext=["0", _rate(common)],
    )
    return own


def _rate(rate: float) -> str:
    return f"{rate:.2g}".replace("-", "−")


def heading(figure: go.Figure, text: str, row: int, palette: Palette) -> None:
    """What a row of a figure shows, above it at its left."""
    figure.add_annotation(
        text=escaped(text),
        x=0,
        xref="x domain",
        xanchor="left",
        y=1,
        yref=f"y{row if row > 1 else ''} domain",
        yanchor="bottom",
        yshift=4,
        showarrow=False,
        font={"color": palette.muted, "size": 13},
    )
