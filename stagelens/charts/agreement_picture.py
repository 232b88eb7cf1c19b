"""An estimate against replay as a picture in markup: what the page shows before any figure."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np
import pandas as pd

from stagelens.contracts import Behaviour

from .effect_scatter import drawn_points
from .marked_rows import round_numbers, tick_text
from .style import BLAME, CREDIT, FAINT_AREA, MUTED, ZERO, written
from .tokens import Markup
from .trust import Plane, kinds_of, plane

_WIDE, _HIGH = 250, 200
_TICKS = 4


def agreement_picture(
    points: pd.DataFrame, behaviour: Behaviour, stage: str, estimate: str, slope: float
) -> Markup:
    """:func:`trust.agreement` as markup, without what is seen at a point.

    Args:
        points: As :func:`trust.agreement` takes them.
        behaviour: What was measured.
        stage: The stage that is left out.
        estimate: Name of the estimate.
        slope: Of replay on estimate; NaN draws no line.
    """
    drawn = plane(points, behaviour, stage, estimate, slope)
    low, high = drawn.ends
    ticks = round_numbers(low, high, _TICKS)
    along = "".join(
        f"<span style='{_AT};left:{100 * (each - low) / (high - low):.2f}%;top:0;"
        f"transform:translateX(-50%)'>{tick_text(each, ticks)}</span>"
        for each in ticks
    )
    up = "".join(
        f"<span style='{_AT};right:0;bottom:{100 * (each - low) / (high - low):.2f}%;"
        f"transform:translateY(50%)'>{tick_text(each, ticks)}</span>"
        for each in ticks
    )
    wide = max(len(tick_text(each, ticks)) for each in ticks) * 0.6 if ticks else 1
    wrong = ""
    if np.isfinite(drawn.wrong):
        corner = "right:.3em;bottom:.2em" if high >= -low else "left:.3em;top:.2em"
        wrong = (
            f"<span style='{_AT};{corner};opacity:.75'>wrong sign {100 * drawn.wrong:.0f} %</span>"
        )
    source = "data:image/svg+xml," + quote(_svg(drawn, slope), safe="=/:' (),.-;")
    alt = written(drawn.said)
    return Markup(
        f"<div class='axes' role='figure' aria-label='{alt}' "
        "style='font-size:.75rem;line-height:1.2'>"
        f"<div style='display:grid;grid-template-columns:1.2em {wide:.1f}em 1fr;gap:.3em'>"
        f"<div style='writing-mode:vertical-rl;transform:rotate(180deg);text-align:center;"
        f"opacity:.75'>replay ({written(drawn.towards)})</div>"
        f"<div style='position:relative;opacity:.75'>{up}</div>"
        f"<div style='position:relative;aspect-ratio:{_WIDE}/{_HIGH}'><img alt='' "
        f"src=\"{source}\" style='width:100%;height:100%;display:block'>{wrong}</div>"
        f"<div></div><div></div><div style='position:relative;height:1.2em;opacity:.75'>{along}"
        "</div></div><div style='text-align:center;opacity:.75;padding-left:2.5em'>"
        f"estimate ({written(drawn.towards)})</div></div>",
        drawn.said,
    )


_AT = "position:absolute;white-space:nowrap"


def _svg(drawn: Plane, slope: float) -> str:
    low, high = drawn.ends

    def at(x: float, y: float) -> str:
        across, up = ((each - low) / (high - low) for each in (x, y))
        return f"{_WIDE * across:.1f} {_HIGH * (1 - up):.1f}"

    def line(start: tuple[float, float], stop: tuple[float, float], look: str) -> str:
        return f"<path d='M{at(*start)}L{at(*stop)}' fill='none' {look}/>"

    parts = [
        f"<path d='M{at(x, y)}L{at(0, y)}L{at(0, 0)}L{at(x, 0)}z' fill='{FAINT_AREA}'/>"
        for x, y in ((low, high), (high, low))
    ]
    for zero in (((low, 0.0), (high, 0.0)), ((0.0, low), (0.0, high))):
        parts.append(line(*zero, f"stroke='{ZERO}'"))
    parts.append(line((low, low), (high, high), f"stroke='{MUTED}' stroke-width='1.5'"))
    if drawn.along is not None:
        (x0, x1), (y0, y1) = drawn.along
        look = f"stroke='{MUTED}' stroke-width='2.5' stroke-dasharray='7 5'"
        parts.append(line((x0, y0), (x1, y1), look))
    seen = drawn_points(drawn.x, drawn.y)
    x, y = drawn.x[seen], drawn.y[seen]
    kinds = kinds_of(y, drawn.points["within_noise"].iloc[seen])
    # One path for all points of a kind.
    shapes = (
        ("m-3.5 2.5h7l-3.5-6z", f"fill='{CREDIT}' fill-opacity='.75'"),
        ("m-3.5-2.5h7l-3.5 6z", f"fill='{BLAME}' fill-opacity='.75'"),
        ("m-3.5 0h7m-3.5-3.5v7", f"stroke='{MUTED}' stroke-opacity='.7'"),
    )
    for number, (shape, look) in enumerate(shapes):
        path = "".join(
            f"M{at(*each)}{shape}"
            for each in zip(x[kinds == number], y[kinds == number], strict=True)
        )
        parts.append(f"<path d='{path}' fill='none' {look}/>" if "fill" not in look else
                     f"<path d='{path}' {look}/>")  # fmt: skip
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDE} {_HIGH}'>"
        f"{''.join(parts)}</svg>"
    )
