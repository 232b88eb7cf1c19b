"""What lies around and between the marks: grids, ticks, titles of axes, shapes, pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from math import cos, radians, sin
from typing import Any

from .axes import Axis
from .looks import dashes
from .plot import Plot
from .writing import (
    Anchor,
    Edge,
    Undrawable,
    element,
    escape,
    height_of,
    number,
    paint,
    width_of,
    words,
)

_BESIDE = 5
"""Pixels between the plot and its tick texts."""
_SLANT, _UPRIGHT = 30, 90
_COORDINATE = re.compile(r"[A-Za-z]|-?[\d.]+(?:e-?\d+)?")


# ---------------------------------------------------------------------------------------- axes


def grid(axis: Axis, other: Axis) -> str:
    """The lines of an axis at its ticks, and its zero line."""
    spec = axis.spec
    if spec.get("visible") is False:
        return ""
    lines = ""
    if spec.get("showgrid", not spec.get("overlaying")):
        zero = axis.at(0) if spec.get("zeroline") else None
        path = "".join(
            _across(axis, other, pixel)
            for pixel, _ in axis.ticks()
            if zero is None or abs(pixel - zero) > 0.5
        )
        if path:
            lines += element("path", d=path, stroke=paint(spec.get("gridcolor")), fill="none")
    zero = axis.at(0)
    # A line of zero is wanted where its looks are given, as in plotly.
    wanted = spec.get("zeroline", "zerolinecolor" in spec or "zerolinewidth" in spec)
    if wanted and zero is not None and axis.kind == "linear":
        least, most = sorted((axis.start, axis.end))
        if least - 0.5 <= zero <= most + 0.5:
            lines += element(
                "path",
                d=_across(axis, other, zero),
                stroke=paint(spec.get("zerolinecolor") or spec.get("gridcolor")),
                stroke_width=float(spec.get("zerolinewidth", 1)),
                fill="none",
            )
    return lines


def _across(axis: Axis, other: Axis, pixel: float) -> str:
    low, high = sorted((other.start, other.end))
    if axis.letter == "x":
        return f"M{number(pixel)} {number(low)}V{number(high)}"
    return f"M{number(low)} {number(pixel)}H{number(high)}"


def ticks_shown(axis: Axis) -> list[tuple[float, str]]:
    """The ticks whose texts are drawn."""
    if axis.spec.get("visible") is False or axis.spec.get("showticklabels") is False:
        return []
    return axis.ticks()


def slant(axis: Axis) -> float:
    """The angle of tick texts: that which is given, or the first at which none collide."""
    given = axis.spec.get("tickangle")
    if axis.letter == "y" or isinstance(given, int | float):
        return float(given or 0)
    ticks, size = sorted(ticks_shown(axis)), _size(axis)
    pairs = list(pairwise(ticks))
    if all(
        b - a >= (width_of(one, size) + width_of(other, size)) / 2 + 2
        for (a, one), (b, other) in pairs
    ):
        return 0.0
    high = max(height_of(text, size) for _, text in ticks)
    apart = min(b - a for (a, _), (b, _) in pairs)
    return float(_SLANT if apart * sin(radians(_SLANT)) >= high else _UPRIGHT)


def _size(axis: Axis) -> float:
    return float((axis.spec.get("tickfont") or {}).get("size") or 12)


def depth(axis: Axis) -> float:
    """How far tick texts reach from the plot, in pixels."""
    ticks, size = ticks_shown(axis), _size(axis)
    if not ticks:
        return 0.0
    wide, high = (
        max(width_of(text, size) for _, text in ticks),
        max(height_of(text, size) for _, text in ticks),
    )
    if axis.letter == "y":
        return wide + _BESIDE
    angle = radians(slant(axis))
    return _BESIDE + (sin(angle) * wide + cos(angle) * high if angle else high)


def title_depth(axis: Axis) -> float:
    """How far the title reaches beyond the tick texts, in pixels."""
    title = axis.spec.get("title") or {}
    if not title.get("text") or axis.spec.get("visible") is False:
        return 0.0
    size = float((title.get("font") or {}).get("size") or 14)
    return float(title.get("standoff") or 0) + height_of(title["text"], size)


def scale(axis: Axis, other: Axis) -> str:
    """The tick texts of an axis and its title."""
    far = axis.spec.get("side") in ("top", "right")
    low, high = sorted((other.start, other.end))
    edge = (low if far else high) if axis.letter == "x" else (high if far else low)
    away = (-1 if far else 1) if axis.letter == "x" else (1 if far else -1)
    font, angle = axis.spec.get("tickfont") or {}, slant(axis)
    parts = []
    for pixel, text in ticks_shown(axis):
        if axis.letter == "y":
            parts.append(words(text, edge + away * _BESIDE, pixel, font, "start" if far else "end"))
        elif angle:
            anchor: Anchor = "start" if angle > 0 else "end"
            side: Edge = "middle" if angle == _UPRIGHT else "top"
            parts.append(words(text, pixel, edge + away * _BESIDE, font, anchor, side, angle))
        else:
            side = "bottom" if far else "top"
            parts.append(words(text, pixel, edge + away * _BESIDE, font, "middle", side))
    title = axis.spec.get("title") or {}
    if title.get("text") and axis.spec.get("visible") is not False:
        at = edge + away * (depth(axis) + float(title.get("standoff") or 0))
        middle, looks = (axis.start + axis.end) / 2, title.get("font") or {}
        if axis.letter == "x":
            side = "bottom" if far else "top"
            parts.append(words(title["text"], middle, at, looks, "middle", side))
        else:
            parts.append(words(title["text"], at, middle, looks, "middle", "bottom", -90))
    return "".join(parts)


# ------------------------------------------------------------------------ shapes and pictures


def shape(plot: Plot, spec: Mapping[str, Any]) -> str:
    """A line, a box or a path.

    Raises:
        Undrawable: It is of another kind.
    """
    line = spec.get("line") or {}
    width = float(line.get("width", 2))
    looks: dict[str, Any] = {
        "fill": paint(spec.get("fillcolor")),
        "stroke": paint(line.get("color")) if width else None,
        "stroke_width": width or None,
        "stroke_dasharray": dashes(line.get("dash"), width) if width else None,
        "opacity": spec.get("opacity"),
    }
    kind = spec.get("type")
    if kind == "path":
        return element("path", d=_path(plot, spec), **looks)
    if kind not in ("line", "rect"):
        raise Undrawable(f"a shape of the kind {kind!r}")
    x0, x1 = (plot.place(spec[end], spec.get("xref"), "x") for end in ("x0", "x1"))
    y0, y1 = (plot.place(spec[end], spec.get("yref"), "y") for end in ("y0", "y1"))
    if x0 is None or x1 is None or y0 is None or y1 is None:
        return ""
    if kind == "line":
        return element("line", x1=x0, y1=y0, x2=x1, y2=y1, **{**looks, "fill": None})
    return element(
        "rect", x=min(x0, x1), y=min(y0, y1), width=abs(x1 - x0), height=abs(y1 - y0), **looks
    )


def _path(plot: Plot, spec: Mapping[str, Any]) -> str:
    said, letters, at = "", "", 0
    for part in _COORDINATE.findall(str(spec.get("path") or "")):
        if part.isalpha():
            if part not in "MLZ":
                raise Undrawable(f"a path with {part!r}")
            said, letters = said + part, part
            continue
        letter = "xy"[at % 2]
        place = plot.place(float(part), spec.get(f"{letter}ref"), letter)
        said += f"{number(place or 0.0)} "
        at += 1
    return said if letters else ""


def image(plot: Plot, spec: Mapping[str, Any]) -> str:
    """A picture that is part of the figure.

    Raises:
        Undrawable: It is fitted in a way that is not known here.
    """
    if spec.get("sizing") not in ("stretch", "fill"):
        raise Undrawable("a picture that is not stretched")
    x0 = plot.place(spec["x"], spec.get("xref"), "x")
    y0 = plot.place(spec["y"], spec.get("yref"), "y")
    if x0 is None or y0 is None:
        return ""
    x_axis, y_axis = (plot.axes.get(spec.get(f"{one}ref") or one) for one in "xy")
    wide = float(spec["sizex"]) * (plot.wide if x_axis is None else _unit(x_axis))
    high = float(spec["sizey"]) * (plot.high if y_axis is None else _unit(y_axis))
    left = x0 - {"left": 0, "center": wide / 2, "right": wide}[spec.get("xanchor") or "left"]
    top = y0 - {"top": 0, "middle": high / 2, "bottom": high}[spec.get("yanchor") or "top"]
    opacity = spec.get("opacity")
    return (
        f'<image href="{escape(str(spec["source"]))}" x="{left:.2f}" y="{top:.2f}" '
        f'width="{wide:.2f}" height="{high:.2f}" preserveAspectRatio="none"'
        f"{'' if opacity is None else f' opacity={chr(34)}{float(opacity):.3g}{chr(34)}'}"
        ' style="image-rendering:pixelated"/>'
    )


def _unit(axis: Axis) -> float:
    return abs(axis.pixel(1.0) - axis.pixel(0.0))
