"""A plot while it is drawn: what every kind of mark needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .axes import Axis
from .looks import Patterns


@dataclass
class Plot:
    """A figure with its axes in place.

    Attributes:
        layout: The figure's.
        axes: Name to axis.
        patterns: Those that its areas are filled with.
        prefix: Of the names that are defined in it.
        left: Of the area inside the margins.
        top: Likewise.
        wide: Width of that area.
        high: Height of that area.
        width: Of the whole picture.
        told: Whether marks carry what a pointer reads at them.
    """

    layout: Mapping[str, Any]
    axes: dict[str, Axis]
    patterns: Patterns
    prefix: str
    left: float
    top: float
    wide: float
    high: float
    width: float
    told: bool = True

    def of(self, trace: Mapping[str, Any]) -> tuple[Axis, Axis]:
        """The axes that a trace is drawn on."""
        return self.axes[trace.get("xaxis") or "x"], self.axes[trace.get("yaxis") or "y"]

    def place(self, value: Any, reference: str | None, letter: str) -> float | None:
        """Where something lies that is placed on an axis, on its domain, or on the paper.

        Args:
            value: Its coordinate.
            reference: ``x``, ``x2 domain``, ``paper``, ...
            letter: ``x`` or ``y``.
        """
        name = reference or letter
        if name == "paper":
            if letter == "x":
                return self.left + float(value) * self.wide
            return self.top + (1 - float(value)) * self.high
        if name.endswith(" domain"):
            axis = self.axes[name.removesuffix(" domain")]
            backwards = axis.start > axis.end if letter == "x" else axis.start < axis.end
            return axis.share(1 - float(value) if backwards else float(value))
        return self.axes[name].at(value)

    def clip(self, x: Axis, y: Axis) -> str:
        """The name of the area of two axes, which :func:`~.drawing.as_svg` defines."""
        return f"url(#{self.prefix}-{x.name}{y.name})"
