"""Patches of an image: a quarter of it wide and high, overlapping by half."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ACROSS = 4
"""Patches side by side; with those halfway between, 2 * ACROSS - 1 in a row."""


@dataclass(frozen=True)
class Patch:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def name(self) -> str:
        """Its place in words: ``patch at rows 0–1, columns 0–1``."""
        rows = f"{self.top}–{self.top + self.height - 1}"
        return f"patch at rows {rows}, columns {self.left}–{self.left + self.width - 1}"


def grid(height: int, width: int) -> list[Patch]:
    """All patches of an image, row by row."""
    return [
        Patch(top, left, tall, wide) for top, tall in _steps(height) for left, wide in _steps(width)
    ]


def _steps(size: int) -> list[tuple[int, int]]:
    """First pixel and length of each patch along one side; the last ends with the image."""
    # In small images several edges round to one pixel.
    edges = np.unique(np.round(np.linspace(0, size, 2 * min(ACROSS, size) + 1)).astype(int))
    spans = zip(edges[:-2], edges[2:], strict=True) if len(edges) > 2 else [(0, size)]
    return [(int(start), int(end - start)) for start, end in spans]
