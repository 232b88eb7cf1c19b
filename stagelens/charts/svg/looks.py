"""What marks look like: symbols, dashes, patterns, and what a pointer reads at them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import cos, pi, sin, sqrt
from typing import Any

from stagelens.charts.arrays import values_of

from .writing import Undrawable, element, number, paint

_DASHES = {
    "dot": (1, 1),
    "dash": (3, 3),
    "dashdot": (3, 2, 1, 2),
    "longdash": (5, 3),
    "longdashdot": (5, 2, 1, 2),
}
"""In widths of the line, at least 2 pixels each."""

_FIELD = re.compile(r"%\{(\w+)(?::([^}]*))?\}")
_EXTRA = re.compile(r"<extra>.*?</extra>", re.DOTALL)


def each(value: Any, at: int) -> Any:
    """What a property is for one mark: its own value, or the one for all."""
    if isinstance(value, list | tuple) or (isinstance(value, Mapping) and "bdata" in value):
        values = values_of(value)
        return values[at] if at < len(values) else None
    return value


def dashes(dash: str | None, width: float) -> str | None:
    """The dashes of a line.

    Raises:
        Undrawable: They have no name that is known.
    """
    if dash in (None, "", "solid"):
        return None
    if dash not in _DASHES:
        raise Undrawable(f"a line of dashes {dash!r}")
    return " ".join(number(part * max(width, 2.0)) for part in _DASHES[str(dash)])


def told(trace: Mapping[str, Any], at: int, values: Mapping[str, Any]) -> str:
    """What a pointer reads at one mark; empty where nothing.

    Args:
        trace: The trace.
        at: Which of its marks.
        values: ``x``, ``y``, ``z``, for templates that print them.
    """
    if trace.get("hoverinfo") in ("skip", "none"):
        return ""
    template = each(trace.get("hovertemplate"), at)
    if not template:
        return str(each(trace.get("hovertext") or trace.get("text"), at) or "")

    def of(found: re.Match[str]) -> str:
        value = values.get(found[1], each(trace.get(found[1]), at))
        if found[2] and isinstance(value, int | float):
            try:
                return format(value, found[2])
            except ValueError:
                return str(value)
        return "" if value is None else str(value)

    return _FIELD.sub(of, _EXTRA.sub("", str(template)))


# ------------------------------------------------------------------------------------- symbols


def symbol(name: str, x: float, y: float, size: float, **looks: Any) -> str:
    """A mark at a point.

    Args:
        name: As plotly calls it; ``-open`` ones are not filled.
        x: Its middle.
        y: Its middle.
        size: Its width, in pixels.
        looks: ``fill``, ``stroke``, ``stroke_width``, ``opacity``.

    Raises:
        Undrawable: There is no such symbol here.
    """
    r = size / 2
    kind = name.removesuffix("-open")
    if kind == "circle":
        return element("circle", cx=x, cy=y, r=r, **looks)
    if kind == "square":
        return element("rect", x=x - r, y=y - r, width=size, height=size, **looks)
    parts = _STROKED.get(kind) or [_OUTLINES.get(kind, [])]
    path = "".join(
        f"{'L' if at else 'M'}{number(x + r * dx)} {number(y + r * dy)}"
        for part in parts
        for at, (dx, dy) in enumerate(part)
    )
    if not path:
        raise Undrawable(f"a mark of the shape {name!r}")
    return element("path", d=path if kind in _STROKED else f"{path}Z", **looks)


def _star() -> list[tuple[float, float]]:
    radii = (1.4, 1.4 * 0.382)
    return [
        (radii[at % 2] * sin(at * pi / 5), -radii[at % 2] * cos(at * pi / 5)) for at in range(10)
    ]


_W = 2 / sqrt(3)
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "diamond": [(1.3, 0), (0, 1.3), (-1.3, 0), (0, -1.3)],
    "triangle-up": [(-_W, 0.5), (_W, 0.5), (0, -1)],
    "triangle-down": [(-_W, -0.5), (_W, -0.5), (0, 1)],
    "triangle-right": [(-0.5, -_W), (-0.5, _W), (1, 0)],
    "triangle-left": [(0.5, -_W), (0.5, _W), (-1, 0)],
    "hourglass": [(-1, -1), (1, -1), (-1, 1), (1, 1)],
    "pentagon": [(-sin(at * 2 * pi / 5), -cos(at * 2 * pi / 5)) for at in range(5)],
    "hexagon": [(cos(pi / 6 + at * pi / 3), sin(pi / 6 + at * pi / 3)) for at in range(6)],
    "star": _star(),
    "cross": [(1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2), (-0.4, 0.4), (-1.2, 0.4),
              (-1.2, -0.4), (-0.4, -0.4), (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4)],
    "x": [(0, 0.5), (0.7, 1.2), (1.2, 0.7), (0.5, 0), (1.2, -0.7), (0.7, -1.2), (0, -0.5),
          (-0.7, -1.2), (-1.2, -0.7), (-0.5, 0), (-1.2, 0.7), (-0.7, 1.2)],
}  # fmt: skip
"""Corners, in halves of the size."""

_STROKED: dict[str, list[list[tuple[float, float]]]] = {
    "line-ew": [[(-1.4, 0), (1.4, 0)]],
    "line-ns": [[(0, -1.4), (0, 1.4)]],
    "cross-thin": [[(-1.4, 0), (1.4, 0)], [(0, -1.4), (0, 1.4)]],
    "x-thin": [[(-1, -1), (1, 1)], [(-1, 1), (1, -1)]],
}
"""Ends of the lines of marks that have no area."""


# ------------------------------------------------------------------------------------ patterns


class Patterns:
    """The patterns that a picture fills areas with, each defined once.

    Args:
        prefix: What their names begin with, so that pictures on one page share none.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._known: dict[str, str] = {}

    def fill(self, color: str, pattern: Mapping[str, Any], at: int) -> str:
        """How to fill an area: with its colour, or with a pattern on it.

        Args:
            color: Of the area.
            pattern: ``shape``, ``fgcolor``, ``fgopacity``, ``size``, ``solidity``.
            at: Which of the trace's marks.

        Raises:
            Undrawable: There is no such pattern here.
        """
        shape = each(pattern.get("shape"), at)
        if not shape:
            return paint(color)
        if shape not in _STROKES:
            raise Undrawable(f"a pattern {shape!r}")
        size = float(each(pattern.get("size"), at) or 8)
        solidity = float(each(pattern.get("solidity"), at) or 0.3)
        replaced = pattern.get("fillmode") == "replace"
        ground = str(each(pattern.get("bgcolor"), at) or "none") if replaced else color
        # In the mode of plotly's that replaces, the pattern has the mark's own colour by default.
        front = str(each(pattern.get("fgcolor"), at) or color)
        strokes = element(
            "path",
            d=" ".join(_scaled(stroke, size) for stroke in _STROKES[shape]),
            stroke=paint(front),
            stroke_width=size * solidity,
            stroke_opacity=each(pattern.get("fgopacity"), at),
            fill="none",
        )
        content = element("rect", width=size, height=size, fill=paint(ground)) + strokes
        name = self._known.setdefault(content, f"{self._prefix}-p{len(self._known)}")
        self._sizes = {**getattr(self, "_sizes", {}), name: size}
        return f"url(#{name})"

    def definitions(self) -> str:
        """All of them, for the head of the picture."""
        made = [
            element(
                "pattern", content, id=name, width=self._sizes[name], height=self._sizes[name],
                patternUnits="userSpaceOnUse",
            )
            for content, name in self._known.items()
        ]  # fmt: skip
        return element("defs", "".join(made)) if made else ""


def _scaled(stroke: str, size: float) -> str:
    return re.sub(r"-?[\d.]+", lambda found: number(float(found[0]) * size), stroke)


_STROKES = {
    "/": ("M-.25 .25L.25 -.25", "M0 1L1 0", "M.75 1.25L1.25 .75"),
    "\\": ("M.75 -.25L1.25 .25", "M0 0L1 1", "M-.25 .75L.25 1.25"),
    "x": ("M0 1L1 0", "M0 0L1 1"),
    "-": ("M0 .5L1 .5",),
    "|": ("M.5 0L.5 1",),
    "+": ("M0 .5L1 .5", "M.5 0L.5 1"),
    ".": ("M.5 .4L.5 .6",),
}
"""In sizes of the pattern; strokes go beyond its corners, where the next tile begins."""
