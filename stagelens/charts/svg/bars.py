"""Bars: beside, upon or over each other, across or upright, with their words."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagelens.charts.arrays import values_of

from .axes import Axis
from .looks import each, told
from .plot import Plot
from .writing import Undrawable, element, height_of, paint, titled, width_of, words

_GAP = 0.2
Numbered = Callable[[Any], float | None]
_FEWEST = 9
"""Smallest size of words in a bar."""


@dataclass(frozen=True)
class Bar:
    """One bar, in numbers of its axes.

    Attributes:
        begin: Where it begins along its length.
        end: Where it ends.
        low: Its near edge across.
        high: Its far edge across.
    """

    begin: float
    end: float
    low: float
    high: float


def lengthwise(trace: Mapping[str, Any]) -> str:
    """The letter of the axis that bars of a trace extend along."""
    return "x" if trace.get("orientation") == "h" else "y"


def arranged(
    traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], number: Mapping[str, Numbered]
) -> list[list[Bar | None]]:
    """Every bar of the traces that share two axes; None where one has no value.

    Args:
        traces: All bars on these axes.
        layout: ``barmode``, ``bargap`` and ``bargroupgap``.
        number: Letter to a function from values to numbers of that axis.

    Raises:
        Undrawable: They are to be arranged in a way that is not known here.
    """
    mode = layout.get("barmode") or "group"
    if mode not in ("group", "overlay", "relative", "stack"):
        raise Undrawable(f"bars in the mode {mode!r}")
    places = []
    for trace in traces:
        along = lengthwise(trace)
        across = "y" if along == "x" else "x"
        sizes = values_of(trace.get(along))
        named = values_of(trace.get(across)) or list(range(len(sizes)))
        places.append([number[across](value) for value in named])
    known = sorted({place for own in places for place in own if place is not None})
    least = min((b - a for a, b in itertools.pairwise(known)), default=1.0)
    slot = least * (1 - float(layout.get("bargap", _GAP)))
    count = len(traces) if mode == "group" else 1
    upper: dict[float, float] = defaultdict(float)
    lower: dict[float, float] = defaultdict(float)
    found: list[list[Bar | None]] = []
    for turn, (trace, own) in enumerate(zip(traces, places, strict=True)):
        along = lengthwise(trace)
        bars: list[Bar | None] = []
        for at, (place, value) in enumerate(zip(own, values_of(trace.get(along)), strict=False)):
            size = number[along](value)
            if place is None or size is None:
                bars.append(None)
                continue
            wide = float(each(trace.get("width"), at) or slot / count)
            offset = each(trace.get("offset"), at)
            if offset is None:
                offset = -wide / 2 if count == 1 else -slot / 2 + turn * slot / count
            base = each(trace.get("base"), at)
            begin = 0.0 if base is None else float(number[along](base) or 0.0)
            if base is None and mode in ("relative", "stack"):
                pile = lower if size < 0 and mode == "relative" else upper
                begin = pile[place]
                pile[place] += size
            low = place + float(offset)
            bars.append(Bar(begin, begin + size, low, low + wide))
        found.append(bars)
    return found


def drawn(plot: Plot, trace: Mapping[str, Any], bars: Sequence[Bar | None]) -> str:
    """The bars of a trace."""
    x, y = plot.of(trace)
    along, across = (x, y) if lengthwise(trace) == "x" else (y, x)
    return "".join(
        _one(plot, trace, at, bar, along, across) for at, bar in enumerate(bars) if bar is not None
    )


def reach(plot: Plot, trace: Mapping[str, Any], bars: Sequence[Bar | None]) -> tuple[float, float]:
    """The first and the last pixel that words beside bars which lie across take."""
    x, _ = plot.of(trace)
    ends = [plot.left]
    for at, bar in enumerate(bars if lengthwise(trace) == "x" else ()):
        text = each(trace.get("text"), at)
        if bar is None or not text or each(trace.get("textposition"), at) != "outside":
            continue
        size = float((trace.get("textfont") or {}).get("size") or 12)
        wide, begin, end = width_of(str(text), size) + 4, x.pixel(bar.begin), x.pixel(bar.end)
        ends.append(end - wide if end < begin else end + wide)
    return min(ends), max(ends)


def _one(plot: Plot, trace: Mapping[str, Any], at: int, bar: Bar, along: Axis, across: Axis) -> str:
    marker = trace.get("marker") or {}
    line = marker.get("line") or {}
    (a, b), (c, d) = (
        sorted((along.pixel(bar.begin), along.pixel(bar.end))),
        sorted((across.pixel(bar.low), across.pixel(bar.high))),
    )
    left, top, wide, high = (a, c, b - a, d - c) if along.letter == "x" else (c, a, d - c, b - a)
    color = str(each(marker.get("color"), at) or "")
    width = float(each(line.get("width"), at) or 0)
    opacity = each(marker.get("opacity"), at)
    box = element(
        "rect",
        x=left,
        y=top,
        width=wide,
        height=high,
        fill=plot.patterns.fill(color, marker.get("pattern") or {}, at),
        stroke=paint(each(line.get("color"), at)) if width else None,
        stroke_width=width or None,
        opacity=None if opacity in (None, 1) else opacity,
    )
    said = ""
    if plot.told:
        ends = {along.letter: bar.end - bar.begin, across.letter: (bar.low + bar.high) / 2}
        said = told(trace, at, ends)
    return titled(box, said) + _words(trace, at, bar, along, (left, top, wide, high))


def _words(
    trace: Mapping[str, Any],
    at: int,
    bar: Bar,
    along: Axis,
    box: tuple[float, float, float, float],
) -> str:
    text = each(trace.get("text"), at)
    where = each(trace.get("textposition"), at) or "auto"
    if not text or where == "none":
        return ""
    font = {name: each(value, at) for name, value in (trace.get("textfont") or {}).items()}
    left, top, wide, high = box
    middle = top + high / 2
    if where == "outside":
        to_the_end = along.pixel(bar.end) - along.pixel(bar.begin)
        # Of a bar without length, on the side where one with a length would have it.
        beyond = to_the_end or (along.end - along.start)
        if along.letter == "x":
            x = left + wide + 4 if beyond > 0 else left - 4
            return words(str(text), x, middle, font, "start" if beyond > 0 else "end")
        y = top - 4 if beyond < 0 else top + high + 4
        return words(
            str(text), left + wide / 2, y, font, "middle", "bottom" if beyond < 0 else "top"
        )
    size = float(font.get("size") or 12)
    needed, tall = width_of(str(text), size) + 4, height_of(str(text), size)
    # Smaller, down to what can still be read; turned where that leaves it larger.
    flat = min(1.0, wide / needed, high / tall)
    turned = min(1.0, high / needed, wide / tall) if trace.get("textangle") is None else 0.0
    size *= max(flat, turned)
    if size < _FEWEST:
        return ""
    angle, font = -90.0 if turned > flat else 0.0, {**font, "size": size}
    return words(str(text), left + wide / 2, middle, font, "middle", "middle", angle)
