"""Marks with intervals in rows over one axis, as markup: what pages show before any figure.

A figure makes the browser read all of plotly.js, for more than a second; this takes no time.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .style import HAIRLINE, short, written
from .tokens import Markup

_TICKS = 6
_NAME = 60
_HEIGHT = 54
_APART = 15
"""Pixels between two marks of a row that stand one above the other."""


@dataclass(frozen=True)
class Mark:
    """One value in a row.

    Attributes:
        value: On the axis.
        low: Lower end of its interval; NaN for none.
        high: Upper end of it.
        color: Of mark and interval.
        glyph: Its shape.
        said: What it stands for, shown when it is pointed at.
        href: What a click on it opens; empty for nothing.
        text: Printed beside it.
        pale: Whether it is no more than a guess.
    """

    value: float
    low: float
    high: float
    color: str
    glyph: str
    said: str
    href: str = ""
    text: str = ""
    pale: bool = False


@dataclass(frozen=True)
class Row:
    """Marks that belong together.

    Attributes:
        name: Of the row.
        note: A few words below it.
        marks: From top to bottom.
        bar: A grey bar behind the marks, from where to where; None for none.
        end: Printed at the right.
        sure: Whether what stands at the right is a finding.
        apart: Whether marks stand one above the other; else all lie on one line.
    """

    name: str
    note: str
    marks: Sequence[Mark]
    bar: tuple[float, float] | None = None
    end: str = ""
    sure: bool = True
    apart: bool = True


def marked_rows(
    rows: Sequence[Row],
    ends: tuple[float, float],
    legend: Sequence[tuple[str, str, str]],
    alt: str,
    unit: str = "",
    title: str = "",
    end: str = "",
) -> Markup:
    """Rows of marks over one axis; names stand above their row where there is little room.

    Args:
        rows: From top to bottom.
        ends: Of the axis.
        legend: Glyph, colour and name of each kind of mark.
        alt: The takeaway in words.
        unit: Behind the numbers of the axis.
        title: Of the axis.
        end: What stands at the right of the rows.
    """
    ticks = round_numbers(*ends)
    grid = "".join(
        f"<div style='{_AT};left:{_share(tick, ends):.3f}%;top:0;bottom:0;border-left:1px solid "
        f"{HAIRLINE}'></div>"
        for tick in ticks
    )
    width = max((len(each.end) for each in rows), default=0)
    right = f"flex:0 0 {max(width, len(end)) * 0.62 + 0.6:.1f}em;text-align:right"
    body = "".join(_row(row, ends, grid, right) for row in rows)
    numbers = "".join(
        f"<span style='{_AT};left:{_share(tick, ends):.3f}%;transform:translateX(-50%);"
        f"white-space:nowrap'>{tick_text(tick, ticks)}{html.escape(unit)}</span>"
        for tick in ticks
    )
    names = "".join(
        f"<span style='white-space:nowrap'><span aria-hidden='true' style='color:{color}'>{glyph}"
        f"</span> {written(name)}</span>"
        for glyph, color, name in legend
    )
    return Markup(
        f"<div class='axes' role='figure' aria-label='{written(alt)}' "
        "style='font-size:.875rem'>"
        f"<div style='display:flex;flex-wrap:wrap;gap:.1em 1.2em'>{names}"
        f"<span style='margin-left:auto;opacity:.75'>{written(end)}</span></div>{body}"
        f"<div style='{_LINE}'><div style='{_LABEL}'></div>"
        f"<div style='{_BESIDE}'><div style='{_TRACK};height:1.6em;opacity:.75'>{numbers}</div>"
        f"<div style='{right}'></div></div></div>"
        f"<div style='text-align:center;opacity:.75'>{written(title)}</div></div>",
        alt,
    )


_AT = "position:absolute"
_LINE = "display:flex;flex-wrap:wrap;align-items:center;gap:0 .8em"
_LABEL = (
    # Beside its row where both fit, see _BESIDE; else above it, where it may have all the width.
    "flex:1 1 10em;max-width:max(16em,calc((30em - 100%)*999));overflow-wrap:anywhere;"
    "line-height:1.3;padding-bottom:.25em"
)
_BESIDE = "display:flex;align-items:center;gap:.8em;flex:999 1 19em;min-width:0"
_TRACK = "position:relative;flex:1 1 0;min-width:0"


def _row(row: Row, ends: tuple[float, float], grid: str, right: str) -> str:
    apart = _APART if row.apart else 0
    height = max(_HEIGHT, apart * len(row.marks) + 12)
    inside = grid
    if row.bar is not None:
        left, stop = sorted(_share(each, ends) for each in row.bar)
        inside += (
            f"<div style='{_AT};left:{left:.3f}%;width:{stop - left:.3f}%;top:50%;height:14px;"
            f"margin-top:-7px;background:{HAIRLINE}'></div>"
        )
    middle = (len(row.marks) - 1) / 2
    for number, mark in enumerate(row.marks):
        if np.isfinite(mark.value):
            inside += _mark(mark, ends, height / 2 + (number - middle) * apart)
    note = f"<br><span style='opacity:.75;font-size:.92em'>{written(row.note)}</span>"
    return (
        f"<div style='{_LINE}'><div style='{_LABEL}'><b>{written(short(row.name, _NAME))}</b>"
        f"{note if row.note else ''}</div>"
        f"<div style='{_BESIDE}'><div style='{_TRACK};height:{height}px'>{inside}</div>"
        f"<div style='{right};{'' if row.sure else 'opacity:.75'}'>{written(row.end)}</div>"
        "</div></div>"
    )


def _mark(mark: Mark, ends: tuple[float, float], top: float) -> str:
    drawn, at = "", _share(mark.value, ends)
    pale = "opacity:.55;" if mark.pale else ""
    if np.isfinite(mark.low) and np.isfinite(mark.high):
        low, high = (_share(each, ends) for each in (mark.low, mark.high))
        drawn += (
            f"<div style='{_AT};left:{low:.3f}%;width:{high - low:.3f}%;top:{top - 1:.1f}px;"
            f"height:2px;{pale}background:{mark.color}'></div>"
        )
    place = f"{_AT};left:{at:.3f}%;top:{top:.1f}px;transform:translate(-50%,-50%);line-height:1"
    look = f"{place};{pale}color:{mark.color};font-size:15px;text-decoration:none"
    said = written(mark.said)
    if mark.href:
        drawn += (
            f"<a href='{html.escape(mark.href, quote=True)}' target='_self' title='{said}' "
            f"aria-label='{said}' style='{look}'>{mark.glyph}</a>"
        )
    else:
        drawn += f"<span title='{said}' style='{look}'>{mark.glyph}</span>"
    if mark.text:
        # Beside the interval, where nothing covers it; to the left where the right has no room.
        far = mark.high if np.isfinite(mark.high) else mark.value
        left = _share(far, ends)
        side = f"left:calc({left:.3f}% + 11px)"
        if left > 86:
            near = mark.low if np.isfinite(mark.low) else mark.value
            side = f"right:calc({100 - _share(near, ends):.3f}% + 11px)"
        drawn += (
            f"<span style='{_AT};{side};top:{top:.1f}px;transform:translateY(-50%);line-height:1;"
            f"font-size:12px;white-space:nowrap'>{written(mark.text)}</span>"
        )
    return drawn


def _share(value: float, ends: tuple[float, float]) -> float:
    """Where a value lies on the axis, in percent; what lies beyond it, on its edge."""
    low, high = ends
    return float(np.clip(100 * (value - low) / (high - low), 0, 100))


def round_numbers(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers within an axis, about as many as asked for."""
    rough = (high - low) / most
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = np.ceil(low / step - 1e-9)
    return [float(k * step) for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]


def tick_text(tick: float, ticks: Sequence[float]) -> str:
    """As few digits as tell the numbers of the axis apart, with a true minus."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = max(0, int(np.ceil(-np.log10(step) - 1e-9)))
    return f"{tick + 0.0:.{digits}f}".replace("-", "−")
