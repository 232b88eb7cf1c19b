"""Answers from boundary to boundary: one ribbon for all examples that took the same path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.analyses.paths.answers import ENDS, RIGHT, Kind, ended, kind_of
from stagelens.contracts import BASE
from stagelens.wording.numbers import count_text

from .style import (
    BLAME,
    CREDIT,
    LIGHT,
    ZERO,
    Chart,
    Palette,
    boundary_ticks,
    escaped,
    see_through,
    style,
)

MOST_BOUNDARIES = 13
"""Boundaries that can stand side by side."""
MOST_RIBBONS = 40
"""Paths that are drawn; those of fewer examples are left blank and counted in words."""

_BAR = 0.045
"""Half the width of a boundary's bar, where neighbours are 1 apart."""
_GAP = 0.06
"""Between right and wrong answers, as a share of the examples."""
_ORDER: Sequence[Kind] = ("never right", "flipped", "forgotten", "learned", "always right")
"""From the bottom upwards, at every boundary, so that ribbons cross as little as can be."""
_PATTERNS: Mapping[Kind, str] = {"forgotten": "/", "flipped": "."}
_CURVE = np.linspace(0.0, 1.0, 17)


def marks(code: str) -> str:
    """A path for people: a tick or a cross for every boundary."""
    return "".join("✓" if answer == RIGHT else "✗" for answer in code)


def alluvial(
    counts: Mapping[str, int],
    boundaries: Sequence[str],
    noun: str = "example",
    palette: Palette = LIGHT,
) -> Chart:
    """Right answers above, wrong ones below, at every boundary, with ribbons between them.

    Args:
        counts: Path to its number of examples; a path has :data:`RIGHT` or ``WRONG`` for every
            boundary.
        boundaries: ``base`` and stages, in training order; at most :data:`MOST_BOUNDARIES`.
        noun: What an example is called.
        palette: Light or dark.

    Returns:
        A chart whose points have the path as ``customdata``.
    """
    total = sum(counts.values())
    gap = _GAP * total
    drawn = sorted(counts, key=lambda code: -counts[code])[:MOST_RIBBONS]
    order = sorted(counts, key=lambda code: (_ORDER.index(kind_of(code)), code))
    lows = {code: np.zeros(len(boundaries)) for code in counts}
    for place in range(len(boundaries)):
        wrong, right = 0.0, total + gap - sum(n for c, n in counts.items() if c[place] == RIGHT)
        for code in order:
            if code[place] == RIGHT:
                lows[code][place], right = right, right + counts[code]
            else:
                lows[code][place], wrong = wrong, wrong + counts[code]
    figure = go.Figure()
    style(figure, palette, height=360)
    for code in order:
        if code in drawn:
            figure.add_trace(_ribbon(code, lows[code], counts[code], total, noun, palette))
    figure.add_trace(_points(drawn, lows, counts, len(boundaries), total, noun, palette))
    _bars(figure, counts, boundaries, total, gap, palette)
    figure.update_layout(
        showlegend=False, hovermode="closest", margin={"l": 62, "r": 170, "t": 28, "b": 54}
    )
    figure.update_xaxes(
        range=[-0.12, len(boundaries) - 0.88],
        tickmode="array",
        tickvals=list(range(len(boundaries))),
        ticktext=boundary_ticks(boundaries[1:])
        if boundaries[0] == BASE
        else boundary_ticks(boundaries)[1:],
        tickfont={"color": palette.text, "size": 13},
        automargin=True,
        showgrid=False,
        zeroline=False,
        fixedrange=True,
    )
    figure.update_yaxes(range=[-0.01 * total, 1.01 * (total + gap)], visible=False, fixedrange=True)
    return Chart(figure, _said(counts, boundaries, drawn, total, noun), _rows(counts, boundaries))


def kind_color(kind: Kind, palette: Palette) -> str:
    """The colour of a kind of path."""
    colors: Mapping[Kind, str] = {
        "always right": see_through(ZERO, 0.22),
        "learned": see_through(CREDIT, 0.75),
        "flipped": palette.groups[3],
        "forgotten": see_through(BLAME, 0.8),
        "never right": see_through(ZERO, 0.5),
    }
    return colors[kind]


def _ribbon(
    code: str, low: np.ndarray, count: int, total: int, noun: str, palette: Palette
) -> go.Scatter:
    """One path through all boundaries."""
    x, lower = [], []
    ease = _CURVE**2 * (3 - 2 * _CURVE)
    for place in range(len(low)):
        x += [place - _BAR, place + _BAR]
        lower += [low[place], low[place]]
        if place + 1 < len(low):
            x += (place + _BAR + _CURVE * (1 - 2 * _BAR)).tolist()
            lower += (low[place] + ease * (low[place + 1] - low[place])).tolist()
    upper = [value + count for value in lower]
    kind = kind_of(code)
    pattern = _PATTERNS.get(kind)
    return go.Scatter(
        x=[*x, *reversed(x)],
        y=[*lower, *reversed(upper)],
        mode="lines",
        line={"width": 0.5, "color": see_through(ZERO, 0.5)},
        fill="toself",
        fillcolor=kind_color(kind, palette),
        fillpattern={
            "shape": pattern,
            "bgcolor": kind_color(kind, palette),
            "fgcolor": ZERO,
            "fillmode": "replace",
            "size": 7,
        }
        if pattern
        else None,
        hoveron="fills",
        hoverinfo="text",
        text=_told(code, count, total, noun),
    )


def _points(
    drawn: Sequence[str],
    lows: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    boundaries: int,
    total: int,
    noun: str,
    palette: Palette,
) -> go.Scatter:
    """A labelled point at the end of every ribbon that has room for one, to be clicked."""
    # Dots and labels need 17 pixels of about 270; the largest paths come first and keep theirs.
    room, ends = (17 / 270) * total, dict[str, float]()
    for code in drawn:
        y = lows[code][-1] + counts[code] / 2
        if all(abs(y - other) >= room for other in ends.values()):
            ends[code] = y
    # Where two are called the same, each by its answers.
    called = Counter(map(ended, ends))
    names = {code: ended(code) if called[ended(code)] == 1 else marks(code) for code in ends}
    return go.Scatter(
        x=[boundaries - 1 + _BAR + 0.03] * len(ends),
        y=list(ends.values()),
        mode="markers+text",
        text=[f"  {names[code]} {counts[code]:,}" for code in ends],
        textposition="middle right",
        textfont={"color": palette.text, "size": 13},
        marker={
            "size": 9,
            "symbol": "square",
            "color": palette.text,
            "line": {"width": 1, "color": ZERO},
        },
        customdata=list(ends),
        hovertext=[_told(code, counts[code], total, noun) for code in ends],
        hovertemplate="%{hovertext}<extra></extra>",
        cliponaxis=False,
    )


def _bars(
    figure: go.Figure,
    counts: Mapping[str, int],
    boundaries: Sequence[str],
    total: int,
    gap: float,
    palette: Palette,
) -> None:
    """The outline of right and wrong answers at every boundary, and the share of right ones."""
    shapes, notes = [], []
    for place in range(len(boundaries)):
        right = sum(n for code, n in counts.items() if code[place] == RIGHT)
        for low, high in ((0.0, total - right), (total + gap - right, total + gap)):
            shapes.append(
                {
                    "type": "rect",
                    "x0": place - _BAR,
                    "x1": place + _BAR,
                    "y0": low,
                    "y1": high,
                    "line": {"color": palette.text, "width": 1.2},
                }
            )
        notes.append(
            {
                "text": f"{100 * right / total:.0f} %",
                "x": place,
                "y": total + gap,
                "yanchor": "bottom",
                "showarrow": False,
                "font": {"color": palette.text, "size": 13},
            }
        )
    for text, y in (("right", total + gap), ("wrong", 0.0)):
        notes.append(
            {
                "text": text,
                "x": 0,
                "xref": "paper",
                "xanchor": "right",
                "y": y,
                "yanchor": "top" if y else "bottom",
                "showarrow": False,
                "font": {"color": palette.muted, "size": 13},
            }
        )
    figure.update_layout(shapes=shapes, annotations=notes)


def _told(code: str, count: int, total: int, noun: str) -> str:
    share = f"{100 * count / total:.1f} %" if total else ""
    return escaped(f"{marks(code)} {ended(code)}: {count_text(count, noun)}, {share}")


def _said(
    counts: Mapping[str, int],
    boundaries: Sequence[str],
    drawn: Sequence[str],
    total: int,
    noun: str,
) -> str:
    """The takeaway."""
    shares = []
    for place, name in enumerate(boundaries):
        right = sum(count for code, count in counts.items() if code[place] == RIGHT)
        where = name if name == BASE else f"after {name}"
        shares.append(f"{100 * right / total:.0f} % {where}")
    names = [each for kind in reversed(_ORDER) for each in (ENDS if kind == "flipped" else (kind,))]
    of_kind = dict.fromkeys(names, 0)
    for code, count in counts.items():
        of_kind[ended(code)] += count
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in of_kind.items())
    said = f"Paths of {count_text(total, noun)}: {kinds}. Right answers: {', '.join(shares)}."
    if left := sum(counts[code] for code in counts if code not in drawn):
        said += f" {count_text(left, noun)} on {len(counts) - len(drawn):,} rarer paths not drawn."
    return said


def _rows(counts: Mapping[str, int], boundaries: Sequence[str]) -> pd.DataFrame:
    """Every path with its answers and count."""
    ordered = sorted(counts, key=lambda code: -counts[code])
    rows = [
        {
            "path": ended(code),
            **{
                (name if name == BASE else f"after {name}"): "right" if a == RIGHT else "wrong"
                for name, a in zip(boundaries, code, strict=True)
            },
            "examples": counts[code],
        }
        for code in ordered
    ]
    return pd.DataFrame(rows)
