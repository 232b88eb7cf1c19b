"""Colours, fonts and small helpers that all charts share."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from stagelens.contracts import BASE

CREDIT = "#0072B2"
BLAME = "#D55E00"
BLAME_BETWEEN = "#F4C6A6"
"""Between the stripes of blame, on white."""
RIGHT_TEXT, WRONG_TEXT = "#00684A", "#A64400"
"""Words for right and wrong answers on white: of enough contrast to be read."""
SHADE = "rgba(0,0,0,.15)"
"""Shadow of a card on a page."""

ZERO = "#7B8794"
"""The zero line: visible on white and on black."""
MUTED = "#8794A1"
"""Edges, and marks of what is not a finding: at least 3:1 on white and on the dark background."""
INK, PAPER, BLACK = "#1F2933", "#FFFFFF", "#000000"
"""Dark and light on filled areas, whatever the theme; text on a stage's colour is black."""

NEITHER = ZERO
"""Of effects whose sign is uncertain, and which are therefore neither credit nor blame."""

PUSH = "#7E6BB5"
"""Of effects on an answer that nobody has called right: neither credit nor blame, either way."""

KEPT, OWN = "#009E73", "#B5599A"
"""Promises that were called reliable, and those of the run that is open."""
BEFORE_AFTER = (ZERO, KEPT, OWN)
"""Models before an edit, after it, and by replay."""
AMOUNT = "#3F6790"
"""For amounts without a sign, the more the less see-through: so that scales get darker all the way
on white, and brighter all the way on black."""

SHAPES = (
    ("square", "■"),
    ("cross", "✚"),
    ("star", "★"),
    ("triangle-right", "►"),
    ("triangle-left", "◄"),
    ("hexagon", "⬢"),
)
"""Of groups and models, by position: in figures, and as text. All are filled, and none is a mark of
``trust_words.MARKS``, because those say how far a number can be relied on, and nothing else."""
CREDIT_SHAPE, BLAME_SHAPE, NEITHER_SHAPE = "triangle-up", "triangle-down", "cross-thin-open"
"""Of single effects, as ▲ and ▼ are in words; of those within noise, or of neither."""

STAGE_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#B7A38C", "#8FA3BF")
"""By position in the run, so a stage has one colour on every page; text on them is black."""

# The font of Streamlit first, so that figures look like the pages around them.
FONT = "Source Sans, Source Sans Pro, system-ui, sans-serif"


@dataclass(frozen=True)
class Palette:
    """What depends on the background. Figures themselves are transparent.

    Attributes:
        name: For people.
        text: Names and numbers.
        muted: Axis ticks and notes.
        grid: Grid lines.
        line: The line over all examples.
        groups: Lines of groups, in order.
        background: Of the page behind figures.
        panel: Of a box on that page.
    """

    name: str
    text: str
    muted: str
    grid: str
    line: str
    groups: tuple[str, ...]
    background: str = "transparent"
    panel: str = "transparent"


LIGHT = Palette(
    "light",
    "#1F2933",
    "#5B6773",
    "#E6EAEE",
    "#1F2933",
    ("#8A5A00", "#A8447E", "#00775A", "#6F5AA8", "#6B5B4B", "#4F6B85"),
    "#FFFFFF",
    "#F3F5F7",
)
DARK = Palette(
    "dark",
    "#E6EAEE",
    "#A3AEBA",
    "#2D353E",
    "#E6EAEE",
    ("#E69F00", "#CC79A7", "#2BBF94", "#A99AE0", "#B7A38C", "#8FA3BF"),
    "#0E1116",
    "#1B2027",
)
EITHER = Palette(
    "either",
    "#7B8794",
    "#7B8795",  # one off the colour of text, so that EITHER_STYLE can tell them apart
    "rgba(123,135,148,0.28)",
    "#7B8794",
    ("#B8741A", "#B5599A", "#1E9678", "#8A78C8", "#94806A", "#6486A8"),
)
"""For pages whose reader may switch the theme at any time, without a rerun: everything has a
contrast of at least 3:1 on white and on the dark background, and :data:`EITHER_STYLE` gives text
the full contrast of the page's own text."""

EITHER_STYLE = (
    "<style>"
    ".js-plotly-plot text[style*='rgb(123, 135, 148)']{fill:currentColor!important}"
    ".js-plotly-plot text[style*='rgb(123, 135, 149)']"
    "{fill:currentColor!important;fill-opacity:.75!important}"
    "</style>"
)


@dataclass(frozen=True)
class Chart:
    """A figure, its takeaway in words for people who cannot see it, and what it is drawn from.

    Attributes:
        figure: What is drawn.
        alt: The takeaway, one sentence or a few.
        rows: The rows behind it, for reports and exports; None to read them off the figure.
    """

    figure: go.Figure
    alt: str
    rows: pd.DataFrame | None = None


def see_through(color: str, share: float) -> str:
    """A colour over whatever is behind it; ``share`` 0 is nothing, 1 the full colour."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share:.3g})"


FAINT_AREA = see_through(ZERO, 0.13)
"""Areas behind points, and the chosen row of a table."""
_NO_COLOR = see_through(ZERO, 0)
HAIRLINE = see_through(ZERO, 0.35)
"""Lines between rows."""


def color_of(gain: float) -> str:
    """Blue of credit, orange of blame; grey of an effect that is zero or not known.

    Args:
        gain: The effect on the credit scale, see :mod:`stagelens.wording.signs`.
    """
    return CREDIT if gain > 0 else BLAME if gain < 0 else NEITHER


def stage_color(index: int) -> str:
    """The colour of the stage at this position; it never depends on what else is shown."""
    return STAGE_COLORS[index % len(STAGE_COLORS)]


def boundary_ticks(stages: Iterable[str]) -> list[str]:
    """Tick texts for the base and the boundary after each stage."""
    return [BASE, *(f"after<br>{escaped(name, 14)}" for name in stages)]


def short(text: str, length: int) -> str:
    """At most ``length`` characters, with an ellipsis where something is cut off."""
    return text if len(text) <= length else text[: max(length - 1, 1)] + "…"


def escaped(text: str, length: int = 200) -> str:
    """A name from data for plotly, which reads tags in texts, but does not know ``&quot;``."""
    return html.escape(written_out(short(text, length)), quote=False)


def written(text: str) -> str:
    """Text for markup, or for an attribute in it, in which nothing acts as markup."""
    return html.escape(written_out(text), quote=True)


def written_out(text: str) -> str:
    """A name from data, with characters that turn the line or cannot be seen written out.

    Direction marks that a script needs stay; overrides and embeddings of a direction do not,
    because they would turn the words after the name too. Line breaks and tabs become spaces.
    """
    return _ACTING.sub(lambda found: f"[U+{ord(found[0]):04X}]", _BREAKS.sub(" ", text))


_BREAKS = re.compile(r"[\t\n\r\x0b\x0c\x85\u2028\u2029]+")
# Control characters, zero-width space, embeddings and overrides, invisible operators and
# isolates, byte-order mark, and lone surrogates, which cannot be encoded as UTF-8. Joiners stay.
_ACTING = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def style(figure: go.Figure, palette: Palette, height: int) -> None:
    """Everything that the figures share; backgrounds stay transparent.

    The layout is set in one go, because each of plotly's updates goes through all of it.
    """
    axis = {"gridcolor": palette.grid, "linecolor": _NO_COLOR}
    ticks = {
        "x": {**axis, "tickfont": {"color": palette.muted, "size": 12}},
        "y": {**axis, "tickfont": {"color": palette.text, "size": 13}},
    }
    layout = figure.layout.to_plotly_json()
    axes = {name for name in layout if _AXIS.fullmatch(name)} | {"xaxis", "yaxis"}
    own: dict[str, Any] = {
        "template": "none",  # a template would bring colours that no palette sets
        "height": height,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 14, "color": palette.text},
        "legend": {
            "orientation": "h",
            "font": {"color": palette.text, "size": 13},
            "itemclick": False,
            "itemdoubleclick": False,
        },
        "hoverlabel": {
            "bgcolor": INK,
            "bordercolor": ZERO,
            "font": {"family": FONT, "color": PAPER, "size": 13},
        },
        "uirevision": "fixed",
        "dragmode": False,
        **{name: ticks[name[0]] for name in axes},
    }
    for name, value in own.items():
        merged = isinstance(value, dict) and isinstance(layout.get(name), dict)
        layout[name] = {**layout[name], **value} if merged else value
    figure.layout = layout


_AXIS = re.compile(r"[xy]axis\d*")


# ------------------------------------------------------------------------------------- variables


def variables(palette: Palette) -> str:
    """A palette as variables of a style sheet, which :func:`themed` colours name."""
    groups = (f"--group-{at}:{color}" for at, color in enumerate(palette.groups))
    return ";".join(
        (
            f"--text:{palette.text};--muted:{palette.muted};--line:{palette.grid}",
            f"--page:{palette.background};--panel:{palette.panel}",
            *groups,
        )
    )


_THEMED = {
    EITHER.grid: f"var(--line,{EITHER.grid})",
    EITHER.muted: f"var(--muted,{EITHER.muted})",
    **{color: f"var(--group-{at},{color})" for at, color in enumerate(EITHER.groups)},
}
"""Colours that are made for either background, as the one made for the reader's."""


def themed(color: str) -> str:
    """A colour of a figure for a page that has :func:`variables` of two themes."""
    return _THEMED.get(color, color)


def themed_text(color: str) -> str:
    """The same for text, whose grey for either background is the page's own text."""
    return f"var(--text,{EITHER.text})" if color in ("", EITHER.text) else themed(color)
