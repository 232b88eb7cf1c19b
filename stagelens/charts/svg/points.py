"""Points and lines, the areas below or inside them, and their whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagelens.charts.arrays import values_of

from .axes import Axis
from .looks import dashes, each, symbol, told
from .plot import Plot
from .writing import Anchor, Edge, Undrawable, element, number, paint, titled, words

_SIZE = 6
_UNSEEN = 0.1
"""Pixels by which a line may be off."""
_APART = 6.0
"""Pixels between spots of a line that say something to a pointer."""
Place = tuple[float, float]

_SIDES: Mapping[str, tuple[Anchor, Edge]] = {
    "left": ("end", "middle"),
    "center": ("middle", "middle"),
    "right": ("start", "middle"),
}


def values(trace: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Its x and y; numbered from zero where one is missing."""
    x, y = values_of(trace.get("x")), values_of(trace.get("y"))
    return x or list(range(len(y))), y or list(range(len(x)))


def drawn(plot: Plot, trace: Mapping[str, Any]) -> str:
    """A trace: its area, its whiskers, its line, its marks and its words, from back to front.

    Raises:
        Undrawable: Its line is curved, or its area is one between two traces.
    """
    x, y = plot.of(trace)
    places = [
        None if (a := x.at(across)) is None or (b := y.at(up)) is None else (a, b)
        for across, up in zip(*values(trace), strict=False)
    ]
    modes = str(trace.get("mode") or "lines").split("+")
    parts = [_area(plot, trace, places, x, y), _line(trace, places) if "lines" in modes else ""]
    if trace.get("cliponaxis") is not False:
        parts = [element("g", "".join(parts), clip_path=plot.clip(x, y)) if any(parts) else ""]
    parts += [_whiskers(trace, "error_x", places, x), _whiskers(trace, "error_y", places, y)]
    if "markers" in modes:
        parts.append(_marks(plot, trace, places))
    elif plot.told and "lines" in modes and trace.get("fill") != "toself":
        parts.append(_told(trace, places))
    if "text" in modes:
        parts.append(_texts(trace, places))
    opacity = trace.get("opacity")
    content = "".join(parts)
    return element("g", content, opacity=opacity) if content and opacity is not None else content


def _stretches(places: Sequence[Place | None]) -> list[list[Place]]:
    """Places without a gap between them."""
    found: list[list[Place]] = [[]]
    for place in places:
        if place is None:
            found.append([])
        else:
            found[-1].append(place)
    return [each for each in found if each]


def _path(places: Sequence[Place]) -> str:
    return "".join(
        f"{'L' if at else 'M'}{number(x)} {number(y)}" for at, (x, y) in enumerate(places)
    )


def _thinned(places: Sequence[Place]) -> list[Place]:
    """The places without those that lie on the line between others, by Douglas and Peucker."""
    kept = np.zeros(len(places), bool)
    kept[[0, -1]] = True
    xy, parts = np.asarray(places, float), [(0, len(places) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        along = xy[last] - xy[first]
        off = xy[first + 1 : last] - xy[first]
        length = float(np.hypot(*along))
        # Of a line that ends where it begins, the distance from there.
        far = (
            np.abs(along[0] * off[:, 1] - along[1] * off[:, 0]) / length
            if length
            else np.hypot(off[:, 0], off[:, 1])
        )
        if far.max() > _UNSEEN:
            at = first + 1 + int(far.argmax())
            kept[at] = True
            parts += [(first, at), (at, last)]
    return [place for place, keep in zip(places, kept, strict=True) if keep]


def _line(trace: Mapping[str, Any], places: Sequence[Place | None]) -> str:
    line = trace.get("line") or {}
    if (shape := line.get("shape") or "linear") != "linear":
        raise Undrawable(f"a line of the shape {shape!r}")
    width = float(line.get("width", 2))
    if not width:
        return ""
    stretches = _stretches(places)
    if trace.get("connectgaps"):
        stretches = [[place for own in stretches for place in own]]
    return element(
        "path",
        d="".join(_path(_thinned(own)) for own in stretches),
        fill="none",
        stroke=paint(line.get("color")),
        stroke_width=width,
        stroke_dasharray=dashes(line.get("dash"), width),
        stroke_linejoin="round",
    )


def _area(
    plot: Plot, trace: Mapping[str, Any], places: Sequence[Place | None], x: Axis, y: Axis
) -> str:
    fill = trace.get("fill") or "none"
    if fill == "none":
        return ""
    if fill not in ("tozeroy", "tozerox", "toself"):
        raise Undrawable(f"an area filled {fill!r}")
    path = ""
    for own in _stretches(places):
        ends = {
            "tozeroy": [(own[-1][0], y.zero), (own[0][0], y.zero)],
            "tozerox": [(x.zero, own[-1][1]), (x.zero, own[0][1])],
        }.get(fill, [])
        path += f"{_path([*_thinned(own), *ends])}Z"
    color = str(trace.get("fillcolor") or (trace.get("line") or {}).get("color") or "")
    shown = element(
        "path", d=path, fill=plot.patterns.fill(color, trace.get("fillpattern") or {}, 0)
    )
    said = str(trace.get("text") or "") if fill == "toself" and plot.told else ""
    return titled(shown, said)


def _whiskers(
    trace: Mapping[str, Any], name: str, places: Sequence[Place | None], axis: Axis
) -> str:
    error = trace.get(name) or {}
    ends = values_of(error.get("array"))
    if not ends or error.get("visible") is False:
        return ""
    below = (
        ends
        if error.get("symmetric", "arrayminus" not in error)
        else values_of(error.get("arrayminus"))
    )
    across, along = values(trace)
    own = across if axis.letter == "x" else along
    half, path = float(error.get("width", 4)), ""
    for at, place in enumerate(places):
        middle = axis.number(own[at])
        if place is None or middle is None or at >= len(ends):
            continue
        # Whiskers are lengths in the data, also on a logarithmic axis.
        for length, way in ((ends[at], 1), (below[at] if at < len(below) else None, -1)):
            to = None if length is None else axis.at(float(own[at]) + way * float(length))
            if to is None or not length:
                continue
            x, y = place
            if axis.letter == "x":
                path += f"M{number(x)} {number(y)}H{number(to)}"
                path += f"M{number(to)} {number(y - half)}v{number(2 * half)}" if half else ""
            else:
                path += f"M{number(x)} {number(y)}V{number(to)}"
                path += f"M{number(x - half)} {number(to)}h{number(2 * half)}" if half else ""
    if not path:
        return ""
    marker, line = trace.get("marker") or {}, trace.get("line") or {}
    color = error.get("color") or line.get("color") or each(marker.get("color"), 0)
    return element(
        "path", d=path, fill="none", stroke=paint(color), stroke_width=error.get("thickness", 2)
    )


def _marks(plot: Plot, trace: Mapping[str, Any], places: Sequence[Place | None]) -> str:
    across, along = values(trace)
    return "".join(
        titled(
            mark(trace, at, *place),
            told(trace, at, {"x": across[at], "y": along[at]}) if plot.told else "",
        )
        for at, place in enumerate(places)
        if place is not None
    )


def mark(trace: Mapping[str, Any], at: int, x: float, y: float, size: float | None = None) -> str:
    """One mark of a trace.

    Args:
        trace: The trace.
        at: Which of its marks.
        x: Where.
        y: Where.
        size: Another size than its own.

    Raises:
        Undrawable: Its colour is a number.
    """
    marker = trace.get("marker") or {}
    line = marker.get("line") or {}
    name = str(each(marker.get("symbol"), at) or "circle")
    color = each(marker.get("color"), at)
    if color is not None and not isinstance(color, str):
        raise Undrawable("marks whose colour is a number")
    hollow = name.endswith("-open")
    width = each(line.get("width"), at)
    stroke = (color if hollow else None) or each(line.get("color"), at) or color
    if hollow and not width:
        width = 1
    if name in ("line-ew", "line-ns", "cross-thin", "x-thin"):
        stroke = each(line.get("color"), at) or color
    opacity = each(marker.get("opacity"), at)
    own = float(each(marker.get("size"), at) or _SIZE)
    return symbol(
        name,
        x,
        y,
        own if size is None else min(own, size),
        fill="none" if hollow else paint(color),
        stroke=paint(stroke) if width else None,
        stroke_width=width or None,
        opacity=None if opacity in (None, 1) else opacity,
    )


def _told(trace: Mapping[str, Any], places: Sequence[Place | None]) -> str:
    """Unseen spots along a line without marks, where a pointer reads its values."""
    across, along = values(trace)
    spots, last = [], -_APART
    for at, place in enumerate(places):
        if place is None or abs(place[0] - last) < _APART:
            continue
        if said := told(trace, at, {"x": across[at], "y": along[at]}):
            last = place[0]
            spot = element("circle", cx=place[0], cy=place[1], r=5, fill_opacity=0)
            spots.append(titled(spot, said))
    return "".join(spots)


def _texts(trace: Mapping[str, Any], places: Sequence[Place | None]) -> str:
    said = []
    marker = trace.get("marker") or {}
    marked = "markers" in str(trace.get("mode"))
    for at, place in enumerate(places):
        text = each(trace.get("text"), at)
        if place is None or not text:
            continue
        up, side = str(each(trace.get("textposition"), at) or "middle center").split()
        anchor, edge = _SIDES[side]
        # Beside the mark, as far as it reaches.
        room = (float(each(marker.get("size"), at) or _SIZE) / 2 + 3) if marked else 3
        x = place[0] + {"left": -room, "right": room}.get(side, 0)
        y = place[1]
        if up != "middle":
            edge, y = ("bottom", y - room) if up == "top" else ("top", y + room)
        font = {name: each(value, at) for name, value in (trace.get("textfont") or {}).items()}
        said.append(words(str(text), x, y, font, anchor, edge))
    return "".join(said)
