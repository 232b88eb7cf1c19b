"""From the base to the final model, one step per stage: numbers that add up, as a waterfall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.analyses.shares.means import Mean
from stagelens.contracts import BASE, Behaviour
from stagelens.wording.folding import strongest
from stagelens.wording.intervals import made_of
from stagelens.wording.numbers import (
    axis_unit,
    is_share,
    phrase,
    scaled,
    value_text,
)
from stagelens.wording.signs import gain_text, side
from stagelens.wording.trust_words import is_trustworthy

from .bars import sign_note
from .diverging_bars import FAINT, say_directions, stage_label, told
from .style import (
    BLAME,
    CREDIT,
    HAIRLINE,
    LIGHT,
    NEITHER,
    PAPER,
    ZERO,
    Chart,
    Palette,
    escaped,
    see_through,
    style,
)

FINAL = "final model"
_BELOW = 0.18
"""How far below the middle of a bar, in rows, intervals are: numbers stand beyond their ends."""
_ROW = 46
"""Pixels of a row; names have their trust below them."""
_ROOM = 0.16
"""Room for numbers beside bars, as a share of what the bars span."""


@dataclass(frozen=True)
class _Step:
    """One bar between two levels."""

    mean: Mean | None
    name: str
    change: float
    begin: float
    note: str = ""

    @property
    def end(self) -> float:
        return self.begin + (self.change if np.isfinite(self.change) else 0.0)


def waterfall(
    means: Sequence[Mean],
    base: float,
    final: float,
    behaviour: Behaviour,
    palette: Palette = LIGHT,
    about: str = "all examples",
    what: str = "share",
) -> Chart:
    """The base, a bar for what each stage added, and the final model; of many stages the strongest.

    Better is to the right, whichever direction of the behaviour that is.

    Args:
        means: One per stage in training order; their means add up to ``final - base``.
        base: The behaviour of the base.
        final: Of the final model.
        behaviour: What was measured.
        palette: Light or dark.
        about: Which examples, for the alternative text.
        what: What a bar is, for the alternative text and the pointer.
    """
    steps = _steps(means, base, behaviour)
    figure = go.Figure()
    rows = [BASE, *(step.name for step in steps), FINAL]
    _ends(figure, base, final, len(rows), behaviour, palette)
    _bars(figure, steps, behaviour, palette, what)
    _whiskers(figure, steps, behaviour, palette)
    for place, step in enumerate(steps, 1):
        if not np.isfinite(step.change):
            figure.add_annotation(
                x=scaled(step.begin, behaviour),
                y=place,
                text="refused: no number",
                showarrow=False,
                xanchor="left",
                xshift=8,
                font={"color": palette.muted, "size": 13},
            )
    levels = [base, *(step.end for step in steps)]
    for place, level in enumerate(levels):
        at = scaled(level, behaviour)
        line = {"color": HAIRLINE, "width": 1}
        figure.add_shape(type="line", x0=at, x1=at, y0=place + 0.3, y1=place + 0.7, line=line)
    style(figure, palette, height=96 + _ROW * len(rows))
    figure.update_layout(
        barmode="overlay",
        margin={"l": 8, "r": 44, "t": 40, "b": 56},
        legend={"x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=[
            f"{BASE} ",
            *(
                f"{escaped(step.name, 28)} "
                if step.mean is None
                else stage_label(step.name, step.mean.trust, behaviour, False)
                for step in steps
            ),
            f"<b>{FINAL}</b> ",
        ],
        range=[len(rows) - 0.5, -0.5],  # training order runs downwards
        automargin=True,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_xaxes(
        range=_range([*levels, *_reached(steps), final, 0.0], behaviour),
        showgrid=True,
        zeroline=True,
        zerolinecolor=ZERO,
        zerolinewidth=1.5,
        fixedrange=True,
        nticks=6,
        ticksuffix=" %" if is_share(behaviour) else "",
    )
    unit = f" ({behaviour.unit})" if axis_unit(behaviour) and not is_share(behaviour) else ""
    say_directions(figure, behaviour, unit, palette, -30)
    return Chart(figure, _said(steps, base, final, behaviour, about, what), _rows(means, steps))


def _steps(means: Sequence[Mean], base: float, behaviour: Behaviour) -> list[_Step]:
    kept = strongest([one.mean for one in means])
    steps, level = [], base
    for place in kept:
        one = means[place]
        note = sign_note(one.trust, behaviour, one.interval)
        # Of what examples say alone, too: a share near zero is neither credit nor blame.
        note = note or ("" if one.interval is None or one.is_clear else "± no clear change")
        steps.append(_Step(one, one.name, one.mean, level, note))
        level = steps[-1].end
    rest = [one.mean for place, one in enumerate(means) if place not in kept]
    if rest:
        total = float(np.nansum(rest))
        steps.append(_Step(None, f"{len(rest):,} more stages", total, level, "±"))
    return steps


def _ends(
    figure: go.Figure,
    base: float,
    final: float,
    rows: int,
    behaviour: Behaviour,
    palette: Palette,
) -> None:
    levels = [base, final]
    figure.add_trace(
        go.Bar(
            orientation="h",
            showlegend=False,
            x=[scaled(level, behaviour) for level in levels],
            y=[0, rows - 1],
            width=0.56,
            marker={"color": see_through(ZERO, 0.3), "line": {"color": palette.line, "width": 1.5}},
            text=[value_text(level, behaviour) for level in levels],
            textposition="outside",
            textfont={"color": palette.text, "size": 14},
            cliponaxis=False,
            customdata=[
                f"{name}<br>{phrase(behaviour)} {value_text(level, behaviour)}"
                for name, level in zip((BASE, FINAL), levels, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )


def _bars(
    figure: go.Figure, steps: Sequence[_Step], behaviour: Behaviour, palette: Palette, what: str
) -> None:
    kinds: dict[str, tuple[str, str]] = {
        "credit": (CREDIT, ""),
        "blame": (BLAME, "/"),
        "neither": (NEITHER, "x"),
    }
    for kind, (color, shape) in kinds.items():
        own = [
            (place, step)
            for place, step in enumerate(steps, 1)
            if np.isfinite(step.change) and step.change and _kind(step, behaviour) == kind
        ]
        if not own:
            continue
        figure.add_trace(
            go.Bar(
                name=kind,
                orientation="h",
                x=[scaled(step.change, behaviour) for _, step in own],
                base=[scaled(step.begin, behaviour) for _, step in own],
                y=[place for place, _ in own],
                width=0.56,
                marker={
                    "color": color,
                    "opacity": [_opacity(step, behaviour) for _, step in own],
                    "line": {"color": color, "width": 1},
                    "pattern": {
                        "shape": shape,
                        "fillmode": "overlay",
                        "fgcolor": PAPER,
                        "fgopacity": 0.65,
                        "size": 7,
                        "solidity": 0.25,
                    },
                },
                customdata=[_hover(step, behaviour, what) for _, step in own],
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    _numbers(figure, steps, behaviour, palette)


def _numbers(
    figure: go.Figure, steps: Sequence[_Step], behaviour: Behaviour, palette: Palette
) -> None:
    """What each bar adds, where it ends; beyond its interval, so that neither covers the other."""
    shown = [(n, s) for n, s in enumerate(steps, 1) if np.isfinite(s.change)]
    places, sides = [], []
    for _, step in shown:
        interval = None if step.mean is None else step.mean.interval
        reach = [step.change] if interval is None else [interval.low, interval.high, step.change]
        further = max(reach) if step.change > 0 else min(reach)
        places.append(scaled(step.begin + further, behaviour))
        # Better is to the right: where lower is better, what adds goes to the left.
        right = (step.change > 0) == (behaviour.better == "higher")
        sides.append("middle right" if right else "middle left")
    figure.add_trace(
        go.Scatter(
            x=places,
            y=[place for place, _ in shown],
            mode="text",
            text=[f" {gain_text(step.change, behaviour, unit=False)} " for _, step in shown],
            textposition=sides,
            textfont={"color": palette.text, "size": 14},
            cliponaxis=False,
            showlegend=False,
            hoverinfo="skip",
        )
    )


def _kind(step: _Step, behaviour: Behaviour) -> str:
    if step.note:
        return "neither"
    return side(step.change, behaviour) or "neither"


def _opacity(step: _Step, behaviour: Behaviour) -> float:
    known = step.mean is None or is_trustworthy(step.mean.trust, behaviour.name)
    return 1.0 if known else FAINT


def _hover(step: _Step, behaviour: Behaviour, what: str) -> str:
    if step.mean is None:
        return f"{escaped(step.name)}<br>together {gain_text(step.change, behaviour)}"
    lines = [f"<b>{escaped(step.name)}</b>", f"{what}: {gain_text(step.change, behaviour)}"]
    lines += [made_of(step.mean.interval, behaviour)] if step.mean.n > 1 else []
    lines += [step.note] if step.note else []
    return "<br>".join(lines) + told(step.mean.trust, behaviour, False, "<br>")


def _whiskers(
    figure: go.Figure, steps: Sequence[_Step], behaviour: Behaviour, palette: Palette
) -> None:
    """Intervals at the ends of bars, with a light seam, so that they stand out on them."""
    known: list[tuple[float, float, float, float]] = []
    for place, step in enumerate(steps, 1):
        interval = None if step.mean is None else step.mean.interval
        if interval is None or interval.low == interval.high or not np.isfinite(step.change):
            continue
        below, above = step.change - interval.low, interval.high - step.change
        end, above, below = (scaled(each, behaviour) for each in (step.end, above, below))
        known.append((place + _BELOW, end, above, below))
    if not known:
        return
    y, x, above_of, below_of = (list(each) for each in zip(*known, strict=True))
    for color, thickness in ((PAPER, 5), (palette.line, 2)):
        figure.add_trace(
            go.Scatter(
                name="interval",
                x=x,
                y=y,
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 7, "color": color},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": above_of,
                    "arrayminus": below_of,
                    "color": color,
                    "thickness": thickness,
                    "width": 5,
                },
                showlegend=thickness == 2,
                hoverinfo="skip",
            )
        )


def _reached(steps: Sequence[_Step]) -> list[float]:
    """The ends of intervals, which may lie beyond all bars: over few draws they are wide."""
    known = [(s.begin, s.mean.interval) for s in steps if s.mean is not None and s.mean.interval]
    return [begin + end for begin, own in known for end in (own.low, own.high)]


def _range(levels: Sequence[float], behaviour: Behaviour) -> list[float]:
    known = [scaled(level, behaviour) for level in levels if np.isfinite(level)]
    low, high = min(known), max(known)
    # A lower bound, so that changes that all round to zero are not blown up.
    room = _ROOM * max(high - low, 1.0 if is_share(behaviour) else 0.01)
    ends = [low - room, high + room]
    return ends if behaviour.better == "higher" else ends[::-1]


def _said(
    steps: Sequence[_Step],
    base: float,
    final: float,
    behaviour: Behaviour,
    about: str,
    what: str,
) -> str:
    parts = "; ".join(
        f"{step.name} "
        + ("no number" if not np.isfinite(step.change) else gain_text(step.change, behaviour))
        + (f", {step.note.removeprefix('± ')}" if step.mean is not None and step.note else "")
        + ("" if step.mean is None else told(step.mean.trust, behaviour, False))
        for step in steps
    )
    return (
        f"{what.capitalize()} of each stage in the {phrase(behaviour)} on {about}, from "
        f"{value_text(base, behaviour)} at the base to {value_text(final, behaviour)} of the final "
        f"model. {parts}."
    )


def _rows(means: Sequence[Mean], steps: Sequence[_Step]) -> pd.DataFrame:
    """Every stage with its number; of those that are drawn together, without their place."""
    begins = {step.name: step.begin for step in steps if step.mean is not None}
    rows: list[dict[str, Any]] = []
    for one in means:
        low, high = (np.nan, np.nan)
        if one.interval is not None:
            low, high = one.interval.low, one.interval.high
        rows.append(
            {
                **{"stage": one.name, "n": one.n, "share": one.mean, "low": low, "high": high},
                **{"from": begins.get(one.name, np.nan)},
            }
        )
    return pd.DataFrame(rows)
