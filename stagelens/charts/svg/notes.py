"""Words in a picture that belong to no axis: notes, and the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import points
from .looks import dashes, each
from .plot import Plot
from .writing import LINE, Anchor, Edge, Undrawable, element, height_of, paint, width_of, words

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

_STEPS = 2
"""Lines by which a note may move."""
_SMALLEST = 10
"""Size down to which words shrink that would run out of the picture."""


def note(plot: Plot, spec: Mapping[str, Any], taken: list[Box]) -> str:
    """Words at a place, or beside it where other words are.

    Args:
        plot: The plot.
        spec: The note.
        taken: Where other words are; the note's own place is added.

    Raises:
        Undrawable: It has an arrow.
    """
    if spec.get("showarrow") is not False:
        raise Undrawable("a note with an arrow")
    x = plot.place(_logged(plot, spec, "x"), spec.get("xref"), "x")
    y = plot.place(_logged(plot, spec, "y"), spec.get("yref"), "y")
    if x is None or y is None:
        return ""
    sides: Mapping[str, Anchor] = {"left": "start", "center": "middle", "right": "end"}
    anchor = sides.get(spec.get("xanchor") or _by_thirds(spec, "x"), "middle")
    edge: Edge = spec.get("yanchor") or _by_thirds(spec, "y")  # type: ignore[assignment]
    x, y = x + float(spec.get("xshift") or 0), y - float(spec.get("yshift") or 0)
    font = {**(plot.layout.get("font") or {}), **(spec.get("font") or {})}
    text, size = str(spec.get("text") or ""), float(font.get("size") or 12)
    wide = width_of(text, size)
    room = {"start": plot.width - x, "end": x}.get(anchor, plot.width)
    if wide > room:
        size = max(size * room / wide, min(size, _SMALLEST))
        wide = width_of(text, size)
    high = height_of(text, size)
    left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
    top = y - {"top": 0.0, "middle": high / 2, "bottom": high}[edge]
    box = left, top, left + wide, top + high
    # Only words outside the plot have room beside them: those below move down, those above up.
    if spec.get("xref") == "paper" and edge != "middle":
        step = high if edge == "top" else -high
        for _ in range(_STEPS):
            if any(_meet(box, other) for other in taken):
                y, box = y + step, (box[0], box[1] + step, box[2], box[3] + step)
    taken.append(box)
    angle = float(spec.get("textangle") or 0)
    said = words(text, x, y, {**font, "size": size}, anchor, edge, angle)
    opacity = spec.get("opacity")
    return element("g", said, opacity=opacity) if said and opacity is not None else said


def _logged(plot: Plot, spec: Mapping[str, Any], letter: str) -> Any:
    """A coordinate as a value: notes on logarithmic axes are placed by their logarithm."""
    axis = plot.axes.get(spec.get(f"{letter}ref") or letter)
    return 10 ** float(spec[letter]) if axis is not None and axis.kind == "log" else spec[letter]


def _by_thirds(spec: Mapping[str, Any], letter: str) -> str:
    """On paper, what is at an edge grows inwards."""
    names = ("left", "center", "right") if letter == "x" else ("bottom", "middle", "top")
    if spec.get(f"{letter}ref") != "paper":
        return names[1]
    return names[0 if spec[letter] < 1 / 3 else 1 if spec[letter] <= 2 / 3 else 2]


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


# -------------------------------------------------------------------------------------- legend

_ITEM, _AFTER = 30, 14
"""Pixels of a legend's mark, and between two entries."""


def entries(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> list[Any]:
    """The traces that a legend names."""
    named = [
        trace
        for trace in traces
        if trace.get("showlegend", bool(trace.get("name")) and trace.get("type") != "heatmap")
        and trace.get("name")
    ]
    shown = layout.get("showlegend", len(named) > 1 or any(t.get("showlegend") for t in named))
    return named if shown else []


def legend_rows(named: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], wide: float) -> Any:
    """The entries by row, each with its width, as many in a row as there is room for."""
    size = _legend_size(layout)
    rows: list[list[tuple[Mapping[str, Any], float]]] = [[]]
    for trace in named:
        own = _ITEM + width_of(str(trace["name"]), size) + _AFTER
        flat = (layout.get("legend") or {}).get("orientation") == "h"
        if rows[-1] and (not flat or sum(each for _, each in rows[-1]) + own > wide):
            rows.append([])
        rows[-1].append((trace, own))
    return rows if rows[0] else []


def _legend_size(layout: Mapping[str, Any]) -> float:
    return float(((layout.get("legend") or {}).get("font") or {}).get("size") or 12)


def legend_height(rows: Sequence[Any], layout: Mapping[str, Any]) -> float:
    """Pixels that they take."""
    return len(rows) * (LINE * _legend_size(layout) + 4)


def legend(plot: Plot, rows: Sequence[Any], taken: list[Box]) -> str:
    """What each kind of mark stands for.

    Args:
        plot: The plot.
        rows: From :func:`legend_rows`.
        taken: Where words are; the legend's place is added.
    """
    spec = plot.layout.get("legend") or {}
    font, size = spec.get("font") or {}, _legend_size(plot.layout)
    high, line = legend_height(rows, plot.layout), LINE * size + 4
    wide = max(sum(own for _, own in row) for row in rows)
    x = plot.left + float(spec.get("x", 0)) * plot.wide
    x -= {"left": 0.0, "center": wide / 2, "right": wide}.get(spec.get("xanchor") or "left", 0.0)
    y = plot.top + (1 - float(spec.get("y", -0.1))) * plot.high
    anchor = spec.get("yanchor") or ("top" if float(spec.get("y", -0.1)) < 1 / 3 else "bottom")
    y -= {"top": 0.0, "middle": high / 2, "bottom": high}.get(anchor, 0.0)
    x = max(min(x, plot.width - wide), 2.0)
    taken.append((x, y, x + wide, y + high))
    parts = []
    for turn, row in enumerate(rows):
        at = x
        for trace, own in row:
            middle = y + (turn + 0.5) * line
            parts.append(_sample(plot, trace, at + _ITEM / 2 - 4, middle))
            parts.append(words(str(trace["name"]), at + _ITEM - 4, middle, font))
            at += own
    return "".join(parts)


def _sample(plot: Plot, trace: Mapping[str, Any], x: float, y: float) -> str:
    marker = trace.get("marker") or {}
    if trace.get("type") == "bar":
        line = marker.get("line") or {}
        width = float(each(line.get("width"), 0) or 0)
        return element(
            "rect", x=x - 6, y=y - 6, width=12, height=12,
            fill=plot.patterns.fill(
                str(each(marker.get("color"), 0) or ""), marker.get("pattern") or {}, 0
            ),
            stroke=paint(each(line.get("color"), 0)) if width else None,
            stroke_width=width or None,
        )  # fmt: skip
    parts, modes = "", str(trace.get("mode") or "lines")
    if "lines" in modes and (line := trace.get("line") or {}):
        width = float(line.get("width", 2))
        parts += element(
            "line", x1=x - 12, y1=y, x2=x + 12, y2=y,
            stroke=paint(line.get("color")), stroke_width=width,
            stroke_dasharray=dashes(line.get("dash"), width),
        )  # fmt: skip
    if "markers" in modes:
        parts += points.mark(trace, 0, x, y, size=12)
    return parts
