"""Drops of a regression gate, with how much is allowed, as rows of markup."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stagelens.analyses.gate.report import SliceFinding
from stagelens.contracts import Behaviour
from stagelens.wording.numbers import axis_unit, phrase, scaled, signed_text

from .marked_rows import Mark, Row, marked_rows
from .style import BLAME, CREDIT, NEITHER
from .tokens import Markup

_MARKS = {"regressed": (BLAME, "▼"), "fine": (CREDIT, "●"), "could not tell": (NEITHER, "◆")}
"""Colour and glyph of each verdict."""
_ROOM = 0.08
"""Of the axis, beyond the farthest end."""


def drop_rows(rows: Sequence[SliceFinding], behaviour: Behaviour) -> Markup:
    """How much each slice got worse, with its 95 % interval and, in grey, what is allowed.

    Args:
        rows: Of one behaviour.
        behaviour: Which.
    """
    made, reach = [], [0.0]
    for row in rows:
        value, low, high = (_on_axis(each, behaviour) for each in (row.drop, row.low, row.high))
        allowed = scaled(row.max_drop, behaviour)
        reach += [each for each in (value, low, high, allowed) if math.isfinite(each)]
        color, glyph = _MARKS[row.verdict]
        said = "" if row.drop is None else signed_text(row.drop, behaviour)
        mark = Mark(value, low, high, color, glyph, f"{row.words}: {row.verdict}")
        where = "all" if row.by is None else f"{row.by} = {row.group}"
        marks = [mark] if math.isfinite(value) else []
        made.append(Row(where, row.verdict, marks, bar=(0.0, allowed), end=said))
    room = _ROOM * ((max(reach) - min(reach)) or 1.0)
    legend = [(glyph, color, name) for name, (color, glyph) in _MARKS.items()]
    unit = axis_unit(behaviour)
    title = f"drop of {phrase(behaviour)}" + (f" ({unit})" if unit else "")
    counts = ", ".join(f"{sum(row.verdict == name for row in rows)} {name}" for name in _MARKS)
    alt = f"Drops of {phrase(behaviour)} on {len(rows)} slices: {counts}."
    return marked_rows(
        made, (min(reach) - room, max(reach) + room), legend, alt, title=f"{title}; grey: allowed"
    )


def _on_axis(value: float | None, behaviour: Behaviour) -> float:
    return math.nan if value is None else scaled(value, behaviour)
