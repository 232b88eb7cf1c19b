"""Axes: their ranges, where values lie on them, and their ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from stagelens.charts.arrays import values_of

from .writing import Undrawable, width_of

_SPREAD = 0.05
"""Room beyond the values, as a share of their range, where no range is given."""
_STEPS = (1, 2, 5, 10)
_APART = {"x": 80, "y": 40}
"""Pixels between ticks of which no number is given."""

Kind = Literal["linear", "log", "category"]


@dataclass
class Axis:
    """One axis of a figure.

    Attributes:
        name: ``x``, ``x2``, ``y``, ...
        spec: Its part of the layout.
        kind: How values lie on it.
        categories: Names in order, of an axis of names.
        low: Value at its beginning, logarithmic for a logarithmic axis.
        high: Value at its end; smaller than ``low`` where it runs backwards.
        start: Pixel of its beginning: left, or bottom.
        end: Pixel of its end: right, or top.
    """

    name: str
    spec: Mapping[str, Any]
    kind: Kind = "linear"
    categories: list[str] = field(default_factory=list)
    low: float = 0.0
    high: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @property
    def letter(self) -> str:
        """``x`` or ``y``."""
        return self.name[0]

    def number(self, value: Any) -> float | None:
        """A value as a number on this axis; None where it cannot be drawn."""
        if value is None or isinstance(value, bool):
            return None
        if self.kind == "category" and isinstance(value, str):
            return float(self.categories.index(value)) if value in self.categories else None
        try:
            found = float(value)
        except (TypeError, ValueError):
            return None
        if self.kind == "log":
            return math.log10(found) if found > 0 else None
        return found if math.isfinite(found) else None

    def pixel(self, place: float) -> float:
        """Where a number of the axis lies."""
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def at(self, value: Any) -> float | None:
        """Where a value lies; None where it cannot be drawn."""
        place = self.number(value)
        return None if place is None else self.pixel(place)

    @property
    def zero(self) -> float:
        """Where bars and areas begin: at zero, or at the low end of a logarithmic axis."""
        return self.pixel(0.0 if self.kind != "log" else self.low)

    def share(self, part: float) -> float:
        """Where a part of the axis, 0 to 1, lies."""
        return self.start + part * (self.end - self.start)

    # ---------------------------------------------------------------------------------- ticks

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and texts of the ticks, from the low end on."""
        pairs: Iterable[tuple[float | None, Any]]
        if self.spec.get("tickmode") == "array" or values_of(self.spec.get("tickvals")):
            places = [self.number(value) for value in values_of(self.spec.get("tickvals"))]
            texts = values_of(self.spec.get("ticktext")) or [
                self._text(value, 0) for value in values_of(self.spec.get("tickvals"))
            ]
            pairs = zip(places, texts, strict=False)
        elif self.kind == "category":
            pairs = zip(map(float, range(len(self.categories))), self.categories, strict=True)
        else:
            pairs = self._round()
        least, most = sorted((self.low, self.high))
        slack = 1e-6 * (most - least)
        return [
            (self.pixel(place), str(text))
            for place, text in pairs
            if place is not None and least - slack <= place <= most + slack
        ]

    def _round(self) -> list[tuple[float, str]]:
        """Round numbers over the range."""
        least, most = sorted((self.low, self.high))
        if self.kind == "log":
            return [
                (float(power), self._text(10.0**power, max(-power, 0)))
                for power in range(math.ceil(least - 1e-9), math.floor(most + 1e-9) + 1)
            ]
        wanted = float(self.spec.get("nticks") or self._room())
        # Fewer where their texts would collide.
        while True:
            found = self._every((most - least) / max(wanted, 1.0), least, most)
            if wanted <= 1 or self.letter == "y" or not self.collide(found):
                return found
            wanted /= 1.5

    def _room(self) -> float:
        return min(max(abs(self.end - self.start) / _APART[self.letter], 4), 9)

    def collide(self, ticks: Sequence[tuple[float, str]]) -> bool:
        """Whether the texts of neighbouring ticks, given by number, touch each other."""
        size = float((self.spec.get("tickfont") or {}).get("size") or 12)
        wide = [width_of(text, size) for _, text in ticks]
        places = [self.pixel(place) for place, _ in ticks]
        return any(
            abs(places[at + 1] - places[at]) < (wide[at] + wide[at + 1]) / 2 + 3
            for at in range(len(ticks) - 1)
        )

    def _every(self, rough: float, least: float, most: float) -> list[tuple[float, str]]:
        """Ticks at a round step of at least so much."""
        base = 10.0 ** math.floor(math.log10(rough))
        step = base * next(each for each in _STEPS if rough / base <= each + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(least / step - 1e-6), math.floor(most / step + 1e-6)
        return [(n * step, self._text(n * step, digits)) for n in range(first, last + 1)]

    def _text(self, value: Any, digits: int) -> str:
        if isinstance(value, float | int):
            small = value != 0 and abs(value) < 1e-4
            value = f"{value:.1e}" if small else f"{value:,.{digits}f}" if digits else f"{value:,g}"
            value = value.replace("-", "−")
        return f"{self.spec.get('tickprefix') or ''}{value}{self.spec.get('ticksuffix') or ''}"


# ------------------------------------------------------------------------------------- reading


def axis_of(
    name: str, spec: Mapping[str, Any], values: Sequence[Any], spans: Sequence[Span]
) -> Axis:
    """An axis with its range.

    Args:
        name: ``x``, ``x2``, ``y``, ...
        spec: Its part of the layout.
        values: All that lies on it, to know names from numbers.
        spans: The room that its marks take, in its own numbers, where no range is given.

    Raises:
        Undrawable: It is of a kind that is not drawn, such as one of dates.
    """
    kind = spec.get("type") or "-"
    if kind == "-":
        named = [value for value in values if isinstance(value, str)]
        kind = "category" if named else "linear"
    if kind not in ("linear", "log", "category"):
        raise Undrawable(f"an axis of the kind {kind}")
    axis = Axis(name, spec, cast(Kind, kind))
    if kind == "category":
        axis.categories = list(dict.fromkeys(str(v) for v in values if v is not None))
    given = [float(end) for end in values_of(spec.get("range"))]
    axis.low, axis.high = given if len(given) == 2 else _around(axis, spans)
    if axis.low == axis.high:
        axis.high = axis.low + 1.0
    if spec.get("autorange") == "reversed" and axis.low < axis.high:
        axis.low, axis.high = axis.high, axis.low
    return axis


@dataclass(frozen=True)
class Span:
    """Values on an axis that must be seen.

    Attributes:
        values: As they are in the figure.
        around: Room on either side of each, in units of the axis; of cells and bars half of one.
        loose: Whether there is to be room beyond the first and the last.
        zero: Whether zero is one of them.
    """

    values: Sequence[Any]
    around: float = 0.0
    loose: bool = True
    zero: bool = False


def _around(axis: Axis, spans: Iterable[Span]) -> tuple[float, float]:
    low, high, loose = math.inf, -math.inf, False
    for span in spans:
        places = [p for value in span.values if (p := axis.number(value)) is not None]
        places += [0.0] if span.zero and axis.kind == "linear" else []
        if places:
            low, high = min(low, min(places) - span.around), max(high, max(places) + span.around)
            loose = loose or span.loose
    if low > high:
        return 0.0, 1.0
    room = _SPREAD * (high - low) if loose else 0.0
    # Bars stand on zero, without a gap below them.
    only_up = low == 0.0 and any(span.zero for span in spans)
    return (low if only_up else low - room), high + room
