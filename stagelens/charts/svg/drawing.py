"""A figure as one SVG: its axes laid out, its marks drawn, and what it says for people."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stagelens.charts.arrays import values_of
from stagelens.charts.style import FONT

from . import around, bars, cells, notes, points
from .axes import Axis, Span, axis_of
from .looks import Patterns
from .plot import Plot
from .writing import Undrawable, element, escape, number

_AXIS = re.compile(r"([xy])axis(\d*)")
_HEIGHT = 360
_MARGIN = {"l": 80.0, "r": 80.0, "t": 100.0, "b": 80.0}
"""Plotly's own, where a figure gives none."""
_EDGE = 4
_STEP, _STEPS = 0.04, 20
"""By how much of itself an axis may grow at once, and how often."""


def as_svg(
    figure: Mapping[str, Any],
    width: float,
    name: str,
    title: str,
    said: str,
    told: bool = True,
) -> str:
    """A figure as SVG.

    Colours that are made for either background are variables of the page, see
    :func:`stagelens.charts.style.variables`; all else is in it.

    Args:
        figure: As plotly's JSON: bars, points and lines, heat maps.
        width: Pixels; its height is the figure's own.
        name: What the names in it begin with; no other picture of the page has it.
        title: What it shows.
        said: Its takeaway, for people who cannot see it.
        told: Whether marks carry what a pointer reads at them.

    Raises:
        Undrawable: It needs something that is not drawn here; names it.
    """
    layout = figure["layout"]
    traces = [_plain(trace) for trace in figure["data"] if trace.get("visible") is not False]
    height = float(layout.get("height") or _HEIGHT)
    axes, stacks, maps = _axes(traces, layout)
    scales = [scale for scale, _ in maps.values()]
    plot, rows = _placed(axes, layout, traces, stacks, scales, width, height)
    plot.prefix, plot.patterns, plot.told = name, Patterns(name), told
    below = [one for one in layout.get("shapes") or () if one.get("layer") == "below"]
    above = [one for one in layout.get("shapes") or () if one.get("layer") != "below"]
    pictures = layout.get("images") or ()
    main = [axis for axis in axes.values() if not axis.spec.get("overlaying")]
    body = [around.image(plot, one) for one in pictures if one.get("layer") == "below"]
    body += [around.shape(plot, one) for one in below]
    body += [around.grid(axis, _other(axis, axes)) for axis in main]
    order = sorted(enumerate(traces), key=lambda one: bool(_upon(axes, one[1])))
    for at, trace in order:
        body.append(_trace(plot, at, trace, stacks, maps))
    body += [around.image(plot, one) for one in pictures if one.get("layer") != "below"]
    body += [around.shape(plot, one) for one in above]
    body += [around.scale(axis, _other(axis, axes)) for axis in axes.values()]
    body += _scales(plot, maps)
    taken: list[notes.Box] = []
    if rows:
        body.append(notes.legend(plot, rows, taken))
    body += [notes.note(plot, one, taken) for one in layout.get("annotations") or ()]
    # Notes that moved down for want of room may end below it.
    height = max(height, max((bottom + _EDGE for _, _, _, bottom in taken), default=0.0))
    heads = element("title", escape(title), id=f"{name}-t") + element(
        "desc", escape(said), id=f"{name}-d"
    )
    clips = "".join(_clip(plot, x, y) for x, y in dict.fromkeys(_pairs(traces)))
    return element(
        "svg",
        heads + plot.patterns.definitions() + element("defs", clips) + "".join(body),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{name}-t {name}-d",
        font_family=FONT,
    )


def _plain(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A trace with a kind that is drawn.

    Raises:
        Undrawable: It is of another kind.
    """
    kind = trace.get("type") or "scatter"
    kind = "scatter" if kind == "scattergl" else kind
    if kind not in ("bar", "heatmap", "scatter"):
        raise Undrawable(f"a trace of the kind {kind}")
    return {**trace, "type": kind}


def _trace(plot: Plot, at: int, trace: Mapping[str, Any], stacks: Any, maps: Any) -> str:
    if trace["type"] == "bar":
        return bars.drawn(plot, trace, stacks[at])
    if trace["type"] == "heatmap":
        return cells.drawn(plot, trace, *maps[at])
    return points.drawn(plot, trace)


def _pairs(traces: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(trace.get("xaxis") or "x", trace.get("yaxis") or "y") for trace in traces]


def _upon(axes: Mapping[str, Axis], trace: Mapping[str, Any]) -> Any:
    return axes[trace.get("yaxis") or "y"].spec.get("overlaying")


def _other(axis: Axis, axes: Mapping[str, Axis]) -> Axis:
    """The axis that an axis stands on."""
    default = axis.name.replace("x", "y") if axis.letter == "x" else axis.name.replace("y", "x")
    anchor = axis.spec.get("anchor") or default
    return axes.get(anchor) or axes[default[0]]


def _clip(plot: Plot, x: str, y: str) -> str:
    left, right = sorted((plot.axes[x].start, plot.axes[x].end))
    top, bottom = sorted((plot.axes[y].start, plot.axes[y].end))
    box = element("rect", x=left, y=top, width=right - left, height=bottom - top)
    return element("clipPath", box, id=f"{plot.prefix}-{x}{y}")


def _scales(plot: Plot, maps: Mapping[int, tuple[cells.Scale, np.ndarray]]) -> list[str]:
    shown: dict[Any, cells.Scale] = {}
    for at, (scale, _) in maps.items():
        if scale.bar is not None:
            shown.setdefault(scale.shared or at, scale)
    right, bottom = plot.left + plot.wide, plot.top + plot.high
    return [
        cells.scale_bar(plot, scale, at, right, bottom) for at, scale in enumerate(shown.values())
    ]


# ---------------------------------------------------------------------------------------- axes


def _axes(
    traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]
) -> tuple[dict[str, Axis], dict[int, list[Any]], dict[int, tuple[cells.Scale, np.ndarray]]]:
    """All axes with their ranges, the bars by trace, and the cells by trace with their scale."""
    specs = {f"{m[1]}{m[2]}": layout[key] for key in layout if (m := _AXIS.fullmatch(key))}
    for pair in _pairs(traces):
        for one in pair:
            specs.setdefault(one, {})
    values: dict[str, list[Any]] = defaultdict(list)
    spans: dict[str, list[Span]] = defaultdict(list)
    found: dict[int, tuple[cells.Scale, np.ndarray]] = {}
    for at, (trace, (x, y)) in enumerate(zip(traces, _pairs(traces), strict=True)):
        if trace["type"] == "heatmap":
            z = values_of(trace.get("z"))
            numbers = np.array(
                [[np.nan if v is None else float(v) for v in row] for row in z], dtype=float
            )
            found[at] = cells.Scale(trace, layout, numbers), numbers
            own = (
                cells.places(trace, "x", numbers.shape[1]),
                cells.places(trace, "y", numbers.shape[0]),
            )
            for axis, kept in zip((x, y), own, strict=True):
                spans[axis].append(Span(kept, 0.5, loose=False))
        else:
            own = points.values(trace)
        for axis, kept in zip((x, y), own, strict=True):
            values[axis] += kept
            if trace["type"] == "scatter":
                spans[axis].append(Span(kept))
    first = {name: axis_of(name, spec, values[name], []) for name, spec in specs.items()}
    stacks = _stacks(traces, layout, first, spans)
    axes = {name: axis_of(name, spec, values[name], spans[name]) for name, spec in specs.items()}
    return axes, stacks, found


def _stacks(
    traces: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    axes: Mapping[str, Axis],
    spans: dict[str, list[Span]],
) -> dict[int, list[Any]]:
    """The bars of each trace; what they take of the axes is added to ``spans``."""
    stacks: dict[int, list[Any]] = {}
    shared: dict[tuple[str, str], list[int]] = defaultdict(list)
    for at, (trace, pair) in enumerate(zip(traces, _pairs(traces), strict=True)):
        if trace["type"] == "bar":
            shared[pair].append(at)
    for (x, y), own in shared.items():
        numbers = {"x": axes[x].number, "y": axes[y].number}
        for at, made in zip(
            own, bars.arranged([traces[one] for one in own], layout, numbers), strict=True
        ):
            stacks[at] = made
            kept = [bar for bar in made if bar is not None]
            along, across = (x, y) if bars.lengthwise(traces[at]) == "x" else (y, x)
            ends = [end for bar in kept for end in (bar.begin, bar.end)]
            spans[along].append(Span(ends, zero=True))
            edges = [edge for bar in kept for edge in (bar.low, bar.high)]
            spans[across].append(Span(edges, loose=False))
    return stacks


# -------------------------------------------------------------------------------------- layout


def _placed(
    axes: dict[str, Axis],
    layout: Mapping[str, Any],
    traces: Sequence[Mapping[str, Any]],
    stacks: Mapping[int, Any],
    scales: Sequence[cells.Scale],
    width: float,
    height: float,
) -> tuple[Plot, Any]:
    """The plot with its axes in place, and the rows of its legend.

    Margins grow where tick texts, titles or the legend need more room. What they need depends on
    the ticks, and these on the room, so it is laid out twice.
    """
    given = {
        **_MARGIN,
        **{k: float(v) for k, v in (layout.get("margin") or {}).items() if k in _MARGIN},
    }
    named = notes.entries(traces, layout)
    margin = dict(given)
    plot = Plot(layout, axes, Patterns(""), "", 0, 0, 1, 1, width)
    rows: Any = []
    for _ in range(2):
        plot.left, plot.top = margin["l"], margin["t"]
        plot.wide = max(width - margin["l"] - margin["r"], 20.0)
        plot.high = max(height - margin["t"] - margin["b"], 20.0)
        _spread(plot)
        rows = notes.legend_rows(named, layout, width - 4)
        margin = {
            side: max(given[side], room) for side, room in _needed(plot, rows, scales).items()
        }
    plot.left, plot.top = margin["l"], margin["t"]
    plot.wide = max(width - margin["l"] - margin["r"], 20.0)
    plot.high = max(height - margin["t"] - margin["b"], 20.0)
    _spread(plot)
    _widen(plot, traces, stacks)
    return plot, rows


def _widen(plot: Plot, traces: Sequence[Mapping[str, Any]], stacks: Mapping[int, Any]) -> None:
    """Give bars of narrow pictures room for the words at their ends: the axis shows more."""
    for at, own in stacks.items():
        x, _ = plot.of(traces[at])
        for _ in range(_STEPS):
            first, last = bars.reach(plot, traces[at], own)
            if first >= plot.left and last <= plot.width:
                break
            more = _STEP * (x.high - x.low)
            x.low -= more if first < plot.left else 0.0
            x.high += more if last > plot.width else 0.0


def _needed(plot: Plot, rows: Any, scales: Sequence[cells.Scale]) -> dict[str, float]:
    """The room that is needed on every side."""
    sides = {"l": 0.0, "r": 0.0, "t": 0.0, "b": 0.0}
    for axis in plot.axes.values():
        if axis.spec.get("automargin"):
            far = axis.spec.get("side") in ("top", "right")
            side = ("t" if far else "b") if axis.letter == "x" else ("r" if far else "l")
            room = around.depth(axis) + around.title_depth(axis) + _EDGE
            sides[side] = max(sides[side], room)
    for scale in scales:
        # A scale beside the plot stands in the margin, with its tick texts.
        if scale.bar is not None and scale.bar.get("orientation") != "h":
            sides["r"] = max(sides["r"], float(scale.bar.get("thickness", 30)) + 60)
        elif scale.bar is not None:
            sides["b"] = max(sides["b"], float(scale.bar.get("thickness", 30)) + 40)
    if rows:
        y = float((plot.layout.get("legend") or {}).get("y", -0.1))
        high = notes.legend_height(rows, plot.layout) + _EDGE
        if y >= 1:
            sides["t"] = max(sides["t"], high + (y - 1) * plot.high)
        elif y < 0:
            sides["b"] = max(sides["b"], high - y * plot.high)
    return sides


def _spread(plot: Plot) -> None:
    """Give every axis its pixels; axes of one scale get the same number of pixels a unit."""
    for axis in plot.axes.values():
        upon = axis.spec.get("overlaying")
        source = plot.axes[upon].spec if upon in plot.axes else axis.spec
        low, high = (float(end) for end in values_of(source.get("domain")) or (0, 1))
        if axis.letter == "x":
            axis.start, axis.end = plot.left + low * plot.wide, plot.left + high * plot.wide
        else:
            bottom = plot.top + plot.high
            axis.start, axis.end = bottom - low * plot.high, bottom - high * plot.high
    for axis in plot.axes.values():
        if (other := plot.axes.get(axis.spec.get("scaleanchor") or "")) is not None:
            _same_scale(axis, other)


def _same_scale(one: Axis, other: Axis) -> None:
    """Shrink the axis whose units are the larger, about its middle."""
    units = [abs((each.end - each.start) / (each.high - each.low)) for each in (one, other)]
    wide = one if units[0] > units[1] else other
    share = min(units) / max(units)
    middle, half = (wide.start + wide.end) / 2, (wide.end - wide.start) / 2 * share
    wide.start, wide.end = middle - half, middle + half
