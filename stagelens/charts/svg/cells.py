"""Heat maps: coloured cells, the scale beside them, and their words."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from stagelens.charts.arrays import values_of

from .axes import Axis
from .looks import told
from .plot import Plot
from .writing import Undrawable, element, escape, titled, words

_MOST = 400
"""Most cells that are drawn one by one; of more, a picture of one pixel per cell."""

_RGBA = re.compile(r"rgba?\(([^)]*)\)")
Color = tuple[float, float, float, float]


def parsed(color: str) -> Color:
    """Red, green and blue to 255, and how opaque to 1.

    Raises:
        Undrawable: It is neither ``#rrggbb`` nor ``rgb(a)``.
    """
    if re.fullmatch(r"#[0-9A-Fa-f]{6}", color):
        red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
        return red, green, blue, 1.0
    if found := _RGBA.fullmatch(color.strip()):
        numbers = [float(part) for part in found[1].split(",")]
        return numbers[0], numbers[1], numbers[2], numbers[3] if len(numbers) > 3 else 1.0
    raise Undrawable(f"a scale with the colour {color!r}")


class Scale:
    """Numbers to colours.

    Args:
        trace: The heat map.
        layout: Of the figure, whose ``coloraxis`` the trace may share.
        numbers: Its cells, NaN where one has none.

    Raises:
        Undrawable: It has no colours of its own.
    """

    def __init__(
        self, trace: Mapping[str, Any], layout: Mapping[str, Any], numbers: np.ndarray
    ) -> None:
        shared = trace.get("coloraxis")
        spec: Mapping[str, Any] = layout.get(shared) or {} if shared else trace
        letter = "c" if shared else "z"
        stops = spec.get("colorscale")
        if not isinstance(stops, list | tuple) or not stops:
            raise Undrawable("a heat map without colours of its own")
        self.stops = [(float(at), parsed(str(color))) for at, color in stops]
        known = numbers[np.isfinite(numbers)]
        low, high = spec.get(f"{letter}min"), spec.get(f"{letter}max")
        self.low = float(low if low is not None else known.min() if known.size else 0.0)
        self.high = float(high if high is not None else known.max() if known.size else 1.0)
        middle = spec.get(f"{letter}mid")
        if middle is not None and low is None and high is None:
            far = max(abs(self.low - middle), abs(self.high - middle))
            self.low, self.high = middle - far, middle + far
        self.bar: Mapping[str, Any] | None = (
            None if spec.get("showscale") is False else spec.get("colorbar") or {}
        )
        self.shared = shared

    def color(self, value: float) -> Color:
        """The colour of a number, blended between two stops."""
        span = self.high - self.low
        share = min(max((value - self.low) / span if span else 0.5, 0.0), 1.0)
        for (a, one), (b, other) in zip(self.stops, self.stops[1:], strict=False):
            if share <= b:
                part = 0.0 if b == a else (share - a) / (b - a)
                red, green, blue, over = (
                    p + part * (q - p) for p, q in zip(one, other, strict=True)
                )
                return red, green, blue, over
        return self.stops[-1][1]

    def written(self, value: float) -> str:
        """The same for a page."""
        return _css(self.color(value))


def _css(color: Color) -> str:
    red, green, blue, over = color
    if over >= 1:
        return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"
    return f"rgba({round(red)},{round(green)},{round(blue)},{over:.3g})"


def places(trace: Mapping[str, Any], letter: str, count: int) -> list[Any]:
    """Where its columns (``x``) or rows (``y``) lie; numbered from zero where that is not said."""
    return values_of(trace.get(letter)) or list(range(count))


def drawn(plot: Plot, trace: Mapping[str, Any], scale: Scale, numbers: np.ndarray) -> str:
    """The cells of a heat map.

    Raises:
        Undrawable: Its rows or columns are not evenly spaced.
    """
    x, y = plot.of(trace)
    rows, columns = numbers.shape
    lefts, wide = _edges(x, places(trace, "x", columns))
    tops, high = _edges(y, places(trace, "y", rows))
    across, down = float(trace.get("xgap") or 0), float(trace.get("ygap") or 0)
    if numbers.size > _MOST and not across and not down:
        parts = [_picture(scale, numbers, lefts, tops, wide, high)]
    else:
        parts = []
    said, texts = trace.get("customdata"), values_of(trace.get("text"))
    spoken = values_of(said) if plot.told and numbers.size <= _MOST else []
    font = trace.get("textfont") or {}
    for row in range(rows):
        for column in range(columns):
            value = float(numbers[row, column])
            if not math.isfinite(value):
                continue
            box: dict[str, Any] = {
                "x": lefts[column] + across / 2,
                "y": tops[row] + down / 2,
                "width": max(wide - across, 0.0),
                "height": max(high - down, 0.0),
            }
            if numbers.size <= _MOST or across or down:
                cell = element("rect", **box, fill=scale.written(value))
                line = {**trace, "customdata": spoken[row] if row < len(spoken) else None}
                own = {"x": column, "y": row, "z": value}
                parts.append(titled(cell, told(line, column, own) if spoken else ""))
            text = texts[row][column] if trace.get("texttemplate") and row < len(texts) else ""
            if text:
                middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
                parts.append(words(str(text), *middle, font, "middle"))
    return "".join(parts)


def _edges(axis: Axis, at: Sequence[Any]) -> tuple[list[float], float]:
    """The smaller edge of every column or row, and their size, in pixels."""
    numbers = [axis.number(value) for value in at]
    known = [each for each in numbers if each is not None]
    gaps = [b - a for a, b in itertools.pairwise(known)]
    if len(known) < len(numbers) or (gaps and max(gaps) - min(gaps) > 1e-6 * abs(gaps[0])):
        raise Undrawable("a heat map whose cells are not evenly spaced")
    step = gaps[0] if gaps else 1.0
    size = abs(axis.pixel(step) - axis.pixel(0.0))
    return [axis.pixel(each) - size / 2 for each in known], size


def _picture(
    scale: Scale,
    numbers: np.ndarray,
    lefts: Sequence[float],
    tops: Sequence[float],
    wide: float,
    high: float,
) -> str:
    pixels = np.zeros((*numbers.shape, 4), np.uint8)
    for at in np.ndindex(*numbers.shape):
        if math.isfinite(numbers[at]):
            red, green, blue, over = scale.color(float(numbers[at]))
            pixels[at] = (round(red), round(green), round(blue), round(255 * over))
    # Rows and columns as they lie on the page, whichever way the axes run.
    shown = pixels[np.argsort(tops)][:, np.argsort(lefts)]
    file = io.BytesIO()
    Image.fromarray(shown, "RGBA").save(file, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return (
        f'<image href="{escape(address)}" x="{min(lefts):.2f}" y="{min(tops):.2f}" '
        f'width="{wide * len(lefts):.2f}" height="{high * len(tops):.2f}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
    )


def scale_bar(plot: Plot, scale: Scale, at: int, right: float, bottom: float) -> str:
    """The scale of colours, beside the plot or below it.

    Args:
        plot: The plot.
        scale: What it shows.
        at: Which of the picture's, for its names.
        right: Where the room right of the plot begins.
        bottom: Where the room below it begins.
    """
    bar = scale.bar or {}
    flat = bar.get("orientation") == "h"
    length = float(bar.get("len", 1)) * (plot.wide if flat else plot.high)
    thick = float(bar.get("thickness", 30))
    font = bar.get("tickfont") or {}
    axis = Axis(
        "x" if flat else "y", {**bar, "showgrid": False}, "linear", [], scale.low, scale.high
    )
    if flat:
        left, top = plot.left + (plot.wide - length) / 2, bottom + float(bar.get("ypad", 10))
        axis.start, axis.end = left, left + length
        box = (left, top, length, thick)
    else:
        left, top = right + float(bar.get("xpad", 10)), plot.top + (plot.high - length) / 2
        axis.start, axis.end = top + length, top
        box = (left, top, thick, length)
    name = f"{plot.prefix}-c{at}"
    stops = "".join(
        element("stop", offset=f"{share:.3g}", stop_color=_css((*rgba[:3], 1.0)),
                stop_opacity=f"{rgba[3]:.3g}")
        for share, rgba in scale.stops
    )  # fmt: skip
    ends = {"x1": 0, "x2": 1, "y1": 0, "y2": 0} if flat else {"x1": 0, "x2": 0, "y1": 1, "y2": 0}
    parts = [
        element("defs", element("linearGradient", stops, id=name, **ends)),
        element("rect", x=box[0], y=box[1], width=box[2], height=box[3], fill=f"url(#{name})"),
    ]
    for pixel, text in axis.ticks():
        if flat:
            parts.append(words(text, pixel, top + thick + 3, font, "middle", "top"))
        else:
            parts.append(words(text, left + thick + 4, pixel, font))
    return "".join(parts)
