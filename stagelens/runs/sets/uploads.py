"""An image from anywhere, of any kind and size within limits, made to fit a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stagelens.contracts import StageLensError

from .images import as_image, decode_image

MOST_PIXELS = 40_000_000
"""Larger images are refused by their header, before anything is unpacked."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels that a task takes, to Pillow's mode."""


@dataclass(frozen=True)
class Fitted:
    """An image as a task takes it.

    Attributes:
        pixels: (H, W) or (H, W, C).
        changes: What was done to the file's pixels, in words; empty if nothing was.
    """

    pixels: np.ndarray
    changes: tuple[str, ...] = ()


def fit_image(data: bytes, shape: Sequence[int] | None, white: float | None = None) -> Fitted:
    """Decode an image file, and make it fit.

    A file whose size, channels and bits the task takes is kept as it is. Any other is converted to
    8 bits and the task's channels, cropped to the middle part of the task's proportions, and
    scaled (Lanczos).

    Args:
        data: The file.
        shape: (channels, height, width) that the task takes; None if it takes any.
        white: The highest whole number that the task takes; files of more bits are brought to 8.

    Raises:
        StageLensError: It is not a readable image, is too large, or the task takes channels
            that no image file has.
    """
    try:
        pixels = as_image(decode_image(data, MOST_PIXELS))[0]
    except ValueError as error:
        raise StageLensError(f"the file {error}") from None
    changes: list[str] = []
    # By the file's bits, not by its brightest pixel: a dark image is dark at any size.
    if white is not None and white <= 255 and pixels.dtype.kind in "ui" and pixels.itemsize > 1:
        pixels = _eight_bits(pixels, changes)
    if shape is None or _fits(pixels, shape):
        return Fitted(pixels, tuple(changes))
    channels, height, width = shape
    if channels not in _MODES:
        raise StageLensError(
            f"the task takes images of {channels} channels, which no image file has; add an array "
            "to an evaluation set instead: stagelens add-set RUN FILE.npz --name NAME"
        )
    image = _channels(Image.fromarray(_eight_bits(pixels, changes)), _MODES[channels], changes)
    image = _cropped(image, width / height, changes)
    if image.size != (width, height):
        changes.append(f"scaled from {_size(image)} to {width} × {height} pixels")
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return Fitted(np.array(image), tuple(changes))


def _fits(pixels: np.ndarray, shape: Sequence[int]) -> bool:
    own = 1 if pixels.ndim == 2 else pixels.shape[2]
    # A task that takes colours repeats a single grey channel.
    return pixels.shape[:2] == tuple(shape[1:]) and (own == shape[0] or (own, shape[0]) == (1, 3))


def _eight_bits(pixels: np.ndarray, changes: list[str]) -> np.ndarray:
    """Values of any range as 0 to 255: 16 bits and more from black to their white."""
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float64)
    if pixels.dtype.kind == "f":
        low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else _ends(values)
    elif pixels.dtype.kind == "b":
        low, high = 0.0, 1.0
    else:  # 16 bits may come as 32-bit integers, so white is 65535 unless a value exceeds it
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 65535.0)
    changes.append("converted to 8 bits")
    return np.round(255 * (values - low) / (high - low)).astype(np.uint8)


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    # An image of one value would divide by zero; it becomes black.
    return low, high if high > low else low + 1


def _channels(image: Image.Image, mode: str, changes: list[str]) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode == "RGBA":
        # As in evaluation sets, and as most training reads files.
        if image.getchannel("A").getextrema() != (255, 255):
            changes.append("only the colours of transparent parts are read")
        image = image.convert("RGB")
    if mode == "L" and image.mode == "RGB":
        changes.append("colours became grey")
    return image.convert(mode)


def _cropped(image: Image.Image, proportions: float, changes: list[str]) -> Image.Image:
    """The largest middle part with these proportions, width over height."""
    width, height = image.size
    # At least 1: of an image one pixel wide, rounding could leave nothing.
    kept = (min(width, max(round(height * proportions), 1)),
            min(height, max(round(width / proportions), 1)))  # fmt: skip
    if kept == image.size:
        return image
    left, top = (width - kept[0]) // 2, (height - kept[1]) // 2
    changes.append(f"only the middle {kept[0]} × {kept[1]} of {_size(image)} pixels were kept")
    return image.crop((left, top, left + kept[0], top + kept[1]))


def _size(image: Image.Image) -> str:
    return f"{image.width} × {image.height}"
