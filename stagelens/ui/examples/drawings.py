"""What a canvas of a task's size can hold, and what a browser sends of it, checked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagelens.contracts import StageLensError, Task

MOST_SIDE = 64
"""Cells on the longer side; more are too small to be drawn one by one."""


@dataclass(frozen=True)
class Paper:
    """What is drawn on.

    Attributes:
        channels: 1 for grey, 3 for colours.
        height: Cells from top to bottom.
        width: Cells from left to right.
        white: The value of a cell that the task takes as 1; files may have brighter ones.
    """

    channels: int
    height: int
    width: int
    white: int

    @property
    def bytes(self) -> int:
        """How many a drawing has."""
        return self.channels * self.height * self.width


def paper_of(task: Task) -> Paper:
    """The canvas for a task's images.

    Raises:
        StageLensError: There is none; says why.
    """
    return paper_for(task.image_shape, getattr(task, "scale", None))


def paper_for(shape: Sequence[int] | None, scale: float | None) -> Paper:
    """The canvas for images of a shape.

    Args:
        shape: Channels, height, width; None for any.
        scale: What whole numbers are divided by; None for 255.

    Raises:
        StageLensError: There is none; says why.
    """
    if shape is None:
        raise StageLensError("the task takes images of any size")
    channels, height, width = shape
    if channels not in (1, 3):
        raise StageLensError(
            f"the task takes images of {channels} channels, and only grey and colours can be drawn"
        )
    if max(height, width) > MOST_SIDE:
        raise StageLensError(
            f"the task takes images of {width} × {height} pixels, and at most "
            f"{MOST_SIDE} × {MOST_SIDE} can be drawn"
        )
    white = scale or 255
    if not 1 <= white <= 255:
        raise StageLensError(f"the task divides whole numbers by {white:g}, and 8 bits are drawn")
    return Paper(channels, height, width, round(white))


def received(cells: Any, paper: Paper) -> np.ndarray:
    """The pixels of a drawing as the browser sends it: Base64 of the cells, row by row.

    Returns:
        (H, W), or (H, W, 3) in colours, as uint8.

    Raises:
        StageLensError: It is nothing that this canvas sends.
    """
    # The length first, so that nothing is decoded that cannot be a drawing.
    if not isinstance(cells, str) or len(cells) != 4 * -(-paper.bytes // 3):
        raise StageLensError("the drawing has not the size of the canvas; reload the page")
    try:
        data = base64.b64decode(cells, validate=True)
    except (binascii.Error, ValueError):
        raise StageLensError("the drawing cannot be read; reload the page") from None
    if len(data) != paper.bytes:
        raise StageLensError("the drawing has not the size of the canvas; reload the page")
    pixels = np.frombuffer(data, np.uint8).reshape(paper.height, paper.width, paper.channels)
    return pixels[:, :, 0] if paper.channels == 1 else pixels


def cells_of(pixels: np.ndarray | None, paper: Paper) -> str:
    """Pixels as the canvas takes them; None for an empty one.

    Args:
        pixels: (H, W) or (H, W, C) of the task's size, or None.
        paper: What they are drawn on.

    Raises:
        StageLensError: The canvas cannot hold them as they are.
    """
    if pixels is None:
        return base64.b64encode(bytes(paper.bytes)).decode()
    cells = pixels[:, :, None] if pixels.ndim == 2 else pixels
    # As the task reads them: of files with transparency the colours, of equal channels one.
    if cells.shape[2] == 4:
        cells = cells[:, :, :3]
    if paper.channels == 1:
        cells = cells[:, :, :1]
    elif cells.shape[2] == 1:
        cells = np.repeat(cells, 3, axis=2)
    if cells.shape != (paper.height, paper.width, paper.channels):
        raise StageLensError("the image has not the size of the canvas")
    if cells.dtype.kind == "f":
        if cells.min() < 0 or cells.max() > 1:
            raise StageLensError("the image has values outside 0 and 1, which no canvas holds")
        cells = np.round(cells * paper.white)
    elif cells.dtype.kind not in "bui" or cells.min() < 0 or cells.max() > 255:
        raise StageLensError("the image has more than 8 bits, which no canvas holds")
    return base64.b64encode(cells.astype(np.uint8).tobytes()).decode()
