"""What charts of credit and blame share: diverging bars, one row per stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.numbers import amount_text, axis_unit, is_share, scaled, signed_text
from stagelens.wording.trust_words import MARKS, is_trustworthy, trust_label, trust_word

from .style import BLAME, CREDIT, NEITHER, PAPER, PUSH, ZERO, Palette, escaped, style

_BAR_HEIGHT = 64
FAINT = 0.4
"""Opacity of what is not to be relied on."""
_WITHIN_NOISE = "≈ within training noise"
SHORT_NOISE = "≈ within noise"
_CAPTION, _NAME, _LONGEST, _TELEPHONE = 5.6, 6.3, 24, 320.0
"""Pixels of a character below the axis and of one of a name, characters of a name that are shown at
most, and pixels that both have on a telephone's screen."""
BELOW = 0.32
"""How far below the middle of a bar, in rows, intervals are: just below its edge, so that they
touch neither the number beside the middle nor each other's rows."""
_MOST_BEYOND = 2.0
"""How far past the longest bar an interval may widen the axis; the rest of it is cut off."""


@dataclass(frozen=True)
class BarRow:
    """One stage. Numbers are gains, positive for credit; NaN where a stage is refused.

    Attributes:
        stage: Its name.
        credit: Length of the bar to the right.
        blame: Length of the bar to the left; not above 0.
        hover: What a pointer reads, as markup.
        within_noise: Whether it is known to be within training noise.
        unsigned: Whether the bars are neither credit nor blame.
        middle: The gain that the interval is about.
        ends: The interval, the lower end first; None where it is not known.
        redrawn: Over which draws the interval holds zero, as ``8 redraws``; said instead of noise.
    """

    stage: str
    credit: float
    blame: float
    hover: str
    within_noise: bool
    unsigned: bool
    middle: float
    ends: tuple[float, float] | None
    redrawn: str = ""


def diverging(
    rows: Sequence[BarRow],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    palette: Palette,
    narrow: bool = False,
    towards: str | None = None,
) -> go.Figure:
    """Credit to the right, blame to the left, with whiskers; what is known stands below names.

    With ``towards``, the bars push towards that answer or away from it, in one colour.
    """
    stages = [row.stage for row in rows]
    credit, blame = [row.credit for row in rows], [row.blame for row in rows]
    # Rows by number, since long names may be equal once they are shortened.
    places = list(range(len(stages)))
    figure = go.Figure()
    known = [trust.get(stage) for stage in stages]
    faint = [one is not None and not is_trustworthy(one, behaviour.name) for one in known]
    hovers = [
        row.hover + told(one, behaviour, row.within_noise, "<br>", row.redrawn)
        for row, one in zip(rows, known, strict=True)
    ]
    unsigned = [row.unsigned for row in rows]
    signed = [not one for one in unsigned]
    names, colors = ("credit", "blame"), (CREDIT, BLAME)
    if towards is not None:
        names, colors = ("towards", "away"), (PUSH, PUSH)
    for name, values, color, shape, of in (
        (names[0], credit, colors[0], "", signed),
        (names[1], blame, colors[1], "/", signed),
        ("neither", credit, NEITHER, "x", unsigned),
        ("neither", blame, NEITHER, "x", unsigned),
    ):
        if of is unsigned and not any(unsigned):
            continue
        values = [value if one else np.nan for value, one in zip(values, of, strict=True)]
        figure.add_trace(
            go.Bar(
                name=name,
                orientation="h",
                showlegend=of is signed or not any(t.name == name for t in figure.data),
                # A bar of length 0 would still show its outline.
                x=[scaled(value, behaviour) if value else np.nan for value in values],
                y=places,
                width=0.5,
                marker={
                    "color": color,
                    "opacity": [FAINT if one else 1.0 for one in faint],
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
                text=[
                    (signed_text if of is signed else _either_way)(value, behaviour, unit=False)
                    if np.isfinite(value) and value != 0
                    else ""
                    for value in values
                ],
                textposition="outside",
                textfont={"color": palette.text, "size": 14},
                cliponaxis=False,
                ids=[f"{name} {stage}" for stage in stages],
                customdata=list(hovers),
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    reach = _reach(rows, behaviour, 1.5 if narrow else 1.25)
    _whiskers(figure, rows, behaviour, palette)
    for place, (stage_trust, one, other) in enumerate(zip(known, credit, blame, strict=True)):
        missing = not (np.isfinite(one) and np.isfinite(other))
        # Nothing is drawn of a zero, so it is written where it lies.
        if missing or one == other == 0:
            refused = stage_trust is not None and stage_trust.trust == "refused"
            zero = amount_text(0.0, behaviour, unit=False)
            said = "refused: no number" if refused else "no number"
            figure.add_annotation(
                x=0,
                y=place,
                text=said if missing else zero,
                showarrow=False,
                xanchor="left",
                xshift=8,
                font={"color": palette.muted, "size": 13} if missing else {"size": 14},
            )
    style(figure, palette, height=106 + _BAR_HEIGHT * max(len(stages), 1))
    unit = f" ({axis_unit(behaviour)})" if axis_unit(behaviour) else ""
    figure.update_layout(
        barmode="relative",
        margin={"l": 8, "r": 16, "t": 44, "b": 58},
        legend={"x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=places,
        ticktext=[
            stage_label(row.stage, one, behaviour, row.within_noise, row.redrawn)
            for row, one in zip(rows, known, strict=True)
        ],
        range=[len(stages) - 0.5, -0.5],  # training order runs downwards
        automargin=True,
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_xaxes(
        range=[-reach, reach],
        showgrid=True,
        zeroline=True,
        zerolinecolor=ZERO,
        zerolinewidth=1.5,
        fixedrange=True,
        nticks=7,
    )
    say_directions(figure, behaviour, unit, palette, -32, towards, max(map(len, stages), default=0))
    return figure


def direction_texts(
    behaviour: Behaviour, unit: str = "", towards: str | None = None
) -> tuple[str, str]:
    """What the left and the right side of zero mean: worse and better, or away and towards.

    Args:
        behaviour: What was measured.
        unit: In brackets, after a space; may be empty.
        towards: An answer that nobody has called right, which the behaviour is about.
    """
    if towards is not None:
        return f"← away from {towards}", f"towards {towards}{unit} →"
    worse = {"higher": "lower", "lower": "higher"}[behaviour.better]
    return f"← {behaviour.name} {worse}", f"{behaviour.name} {behaviour.better}{unit} →"


def say_directions(
    figure: go.Figure,
    behaviour: Behaviour,
    unit: str,
    palette: Palette,
    shift: int,
    towards: str | None = None,
    names: int = 0,
) -> None:
    """Say below the axis which side is worse and which is better; better is to the right.

    Both in one line, or in two where a telephone has no room for both beside the names.

    Args:
        figure: Changed in place.
        behaviour: What was measured.
        unit: In brackets, after a space; may be empty.
        palette: Light or dark.
        shift: Pixels from the plot's lower edge, negative downwards.
        towards: As :func:`direction_texts` takes it.
        names: Characters of the longest name beside the plot.
    """
    shown = None if towards is None else escaped(towards, 24)
    left, right = direction_texts(behaviour, unit, shown)
    crowded = _CAPTION * (len(left) + len(right)) + _NAME * min(names, _LONGEST) > _TELEPHONE
    if crowded:
        room = {"b": figure.layout.margin.b + 8}
        figure.update_layout(height=figure.layout.height + 8, margin=room)
    for text, x, anchor, down in ((left, 0, "left", 0), (right, 1, "right", 15 * crowded)):
        figure.add_annotation(
            text=text,
            x=x,
            xref="paper",
            xanchor=anchor,
            y=0,
            yref="paper",
            yanchor="top",
            yshift=shift + 4 * crowded - down,
            showarrow=False,
            font={"color": palette.muted, "size": 13},
        )


def _reach(rows: Sequence[BarRow], behaviour: Behaviour, room: float) -> float:
    """How far the axis goes to either side of zero."""
    sizes = [abs(scaled(v, behaviour)) for r in rows for v in (r.credit, r.blame) if np.isfinite(v)]
    # A lower bound, so that effects that all round to zero are not blown up.
    longest = max([*sizes, 1.0 if is_share(behaviour) else 0.01])
    ends = [abs(scaled(end, behaviour)) for row in rows for end in row.ends or ()]
    # Room for the numbers beside the bars, or they run into the names.
    return max(room * longest, min(1.05 * max(ends, default=0.0), _MOST_BEYOND * longest))


def _either_way(value: float, behaviour: Behaviour, unit: bool) -> str:
    return f"±{amount_text(value, behaviour, unit)}"


def _whiskers(
    figure: go.Figure, rows: Sequence[BarRow], behaviour: Behaviour, palette: Palette
) -> None:
    """Intervals, with a light seam, so that they stand out on bars and on any background."""
    known = [
        (place, scaled(row.middle, behaviour), *(scaled(end, behaviour) for end in row.ends))
        for place, row in enumerate(rows)
        if row.ends is not None
    ]
    if not known:
        return
    at, middles, lows, highs = (list(each) for each in zip(*known, strict=True))
    for color, thickness in ((PAPER, 5), (palette.line, 2)):
        figure.add_trace(
            go.Scatter(
                name="interval",
                x=middles,
                y=[place + BELOW for place in at],
                mode="markers",
                marker={
                    "symbol": "line-ew-open",
                    "size": 9,
                    "color": color,
                    "line": {"color": color, "width": 2},
                },
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [high - middle for high, middle in zip(highs, middles, strict=True)],
                    "arrayminus": [middle - low for low, middle in zip(lows, middles, strict=True)],
                    "color": color,
                    "thickness": thickness,
                    "width": 5,
                },
                showlegend=thickness == 2,
                hoverinfo="skip",
            )
        )


def stage_label(
    stage: str,
    trust: StageTrust | None,
    behaviour: Behaviour,
    within_noise: bool,
    redrawn: str = "",
) -> str:
    """The name, and below it what is known, in short lines because room is scarce."""
    lines: list[str] = []
    if trust is not None:
        word = trust_word(trust, behaviour.name)
        lines.append(f"{MARKS[word]} {word}")
    lines += [f"≈ {redrawn} hold zero" if redrawn else SHORT_NOISE] if within_noise else []
    name = escaped(stage, 28)
    below = "".join(f"<br><span style='font-size:12px'>{line}</span> " for line in lines)
    return f"<b>{name}</b> {below}" if lines else f"{name} "


def told(
    trust: StageTrust | None,
    behaviour: Behaviour,
    within_noise: bool,
    between: str = ", ",
    redrawn: str = "",
) -> str:
    """What is known about a bar beyond its length."""
    said = [] if trust is None else [trust_label(trust, behaviour.name)]
    if trust is not None and trust.trust != "refused" and not is_trustworthy(trust, behaviour.name):
        said.append("not to be relied on")
    noise = f"≈ the interval over {redrawn} holds zero" if redrawn else _WITHIN_NOISE
    said += [noise] if within_noise else []
    return "".join(f"{between}{one}" for one in said)


def is_true(value: object) -> bool:
    """Whether a value is true; an unknown one is not."""
    return bool(value) if pd.notna(value) else False
