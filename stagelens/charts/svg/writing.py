"""Elements, numbers and words of an SVG, written so that any XML parser reads them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stagelens.charts.style import themed, themed_text
from stagelens.contracts import StageLensError

Anchor = Literal["start", "middle", "end"]
Edge = Literal["top", "middle", "bottom"]

LINE = 1.3
"""Height of a line of text, in sizes of its font."""
_RISE, _FALL, _HALF = 0.86, 0.22, 0.35
"""From the baseline up to the top and down to the bottom of a line, and half of a capital."""

_TAG = re.compile(r"<(/?)(\w+)([^<>]*)>")
_COLOR = re.compile(r"color\s*:\s*([^;\"']+)")
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NARROW, _WIDE = frozenset("iljtfrI.,:;|!'()[] /"), frozenset("mwMW%@→←●◆◇◐○✕▲▼")
_BOLD = 1.1
"""How much wider bold letters are."""


class Undrawable(StageLensError):
    """A figure asks for something that is not drawn as SVG; the message names it."""


def number(value: float) -> str:
    """A coordinate: to a hundredth of a pixel, as short as it can be written."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def element(tag: str, content: str = "", **attributes: Any) -> str:
    """An element; attributes that are None are left out, ``_`` in their names is ``-``.

    Args:
        tag: Its name.
        content: What is in it, which is markup already.
        attributes: Numbers are written as coordinates, all else is escaped.
    """
    said = []
    for name, value in attributes.items():
        if value is None:
            continue
        if isinstance(value, float | int) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise Undrawable(f"a {tag} at {value}")
            value = number(value)
        said.append(f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
    return f"<{tag}{''.join(said)}>{content}</{tag}>" if content else f"<{tag}{''.join(said)}/>"


def escape(text: str) -> str:
    """Text for an element or an attribute; what XML cannot hold is replaced."""
    return html.escape(_NOT_XML.sub("\ufffd", text), quote=True)


def paint(color: str | None) -> str:
    """A colour of a figure for the page, which says by theme what it looks like."""
    return "none" if color is None or color == "transparent" else themed(color)


# --------------------------------------------------------------------------------------- words


@dataclass(frozen=True)
class Run:
    """Words that look alike."""

    text: str
    bold: bool = False
    italic: bool = False
    color: str | None = None


def lines_of(text: str) -> list[list[Run]]:
    """Plotly's markup as lines of runs; tags that it would not know either are left out."""
    lines: list[list[Run]] = [[]]
    bold = italic = 0
    colors: list[str | None] = []
    at = 0

    def say(part: str) -> None:
        if part:
            color = next((each for each in reversed(colors) if each), None)
            lines[-1].append(Run(html.unescape(part), bold > 0, italic > 0, color))

    for found in _TAG.finditer(text):
        say(text[at : found.start()])
        at = found.end()
        step, tag = -1 if found[1] else 1, found[2].lower()
        if tag == "br":
            lines.append([])
        elif tag == "b":
            bold += step
        elif tag == "i":
            italic += step
        elif tag == "span" and step > 0:
            color = _COLOR.search(found[3])
            colors.append(color[1].strip() if color else None)
        elif tag == "span" and colors:
            colors.pop()
    say(text[at:])
    # Labels end with a space where plotly would have them touch the plot; here they do not.
    return [_trimmed(line) for line in lines]


def _trimmed(line: list[Run]) -> list[Run]:
    kept = list(line)
    while kept and not kept[0].text.strip():
        kept.pop(0)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        kept[0] = replace(kept[0], text=kept[0].text.lstrip())
        kept[-1] = replace(kept[-1], text=kept[-1].text.rstrip())
    return kept


def bare(text: str) -> str:
    """The words alone, lines parted by line breaks."""
    return "\n".join("".join(run.text for run in line) for line in lines_of(text)).strip()


def width_of(text: str, size: float) -> float:
    """About how many pixels the longest line takes; fonts differ, so a little too many."""
    return size * max(
        sum(_ems(run.text) * (_BOLD if run.bold else 1) for run in line) for line in lines_of(text)
    )


def _ems(text: str) -> float:
    # As wide as in DejaVu Sans, which is wider than most fonts of systems.
    return sum(
        0.37 if c in _NARROW else 0.95 if c in _WIDE else 0.72 if c.isupper() else 0.625
        for c in text
    )


def height_of(text: str, size: float) -> float:
    """How many pixels its lines take."""
    return LINE * size * len(lines_of(text))


def words(
    text: str,
    x: float,
    y: float,
    font: Mapping[str, Any],
    anchor: Anchor = "start",
    edge: Edge = "middle",
    angle: float = 0.0,
) -> str:
    """Text of one line or more; empty where there is nothing to say.

    Args:
        text: In plotly's markup.
        x: Of its start, middle or end.
        y: Of its top, middle or bottom.
        font: ``size`` and ``color``.
        anchor: What ``x`` is of.
        edge: What ``y`` is of.
        angle: In degrees, clockwise.
    """
    lines = lines_of(text)
    if not any(run.text.strip() for line in lines for run in line):
        return ""
    size = float(font.get("size") or 12)
    more = (len(lines) - 1) * LINE * size
    first = {"top": _RISE * size, "middle": _HALF * size - more / 2, "bottom": -_FALL * size - more}
    base = y + first[edge]
    several = len(lines) > 1
    content = "".join(
        element("tspan", _runs(line), x=x, y=base + at * LINE * size) if several else _runs(line)
        for at, line in enumerate(lines)
    )
    return element(
        "text",
        content,
        x=x,
        y=base,
        font_size=size,
        fill=themed_text(str(font.get("color") or "")),
        text_anchor=None if anchor == "start" else anchor,
        transform=f"rotate({number(angle)} {number(x)} {number(y)})" if angle else None,
    )


def _runs(line: Iterable[Run]) -> str:
    said = []
    for run in line:
        text = escape(run.text)
        if run.bold or run.italic or run.color:
            text = element(
                "tspan",
                text,
                font_weight="600" if run.bold else None,
                font_style="italic" if run.italic else None,
                fill=themed_text(run.color) if run.color else None,
            )
        said.append(text)
    return "".join(said)


def titled(content: str, said: str) -> str:
    """Marks with the text that a pointer reads there."""
    return element("g", element("title", escape(bare(said))) + content) if said else content
