"""Images in any usual form, converted to arrays, stored bytes, and what a page shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Channels = Literal["first", "last"]
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_LARGEST = 2**30
_NPY = b"\x93NUMPY"


def as_image(value: Any, channels: Channels | None = None) -> tuple[np.ndarray, bytes | None]:
    """One image: bytes of an image file, a path, a Pillow image, an array or a tensor.

    Args:
        value: The image. An array has shape (H, W), (H, W, C) or (C, H, W) with C 1, 3 or 4.
        channels: Where C stands; None to infer it from the shape, which is refused if both the
            first and the last axis could be it.

    Returns:
        Pixels as (H, W), (H, W, 3) or (H, W, 4), little-endian and contiguous (a single channel
        has no axis), and the file's own bytes if the image came from a file.

    Raises:
        ValueError: Undecodable, of an ambiguous or unusable shape, empty, or not finite.
    """
    data: bytes | None = None
    if isinstance(value, str | Path):
        try:
            if Path(value).stat().st_size > _LARGEST:
                raise ValueError("is larger than 1 GB; scale it down first")
            data = Path(value).read_bytes()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror or error}") from None
    elif isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    if data is not None:
        pixels = decode_image(data)
    elif isinstance(value, Image.Image):
        pixels = _pixels(value)
    else:
        pixels = _channels_last(as_array(value), channels)
    if pixels.dtype.kind not in "buif" or 0 in pixels.shape:
        raise ValueError(f"has the shape {pixels.shape} of {pixels.dtype}; give pixels as numbers")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("has values that are NaN or infinite; replace them")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    # The digest of a set is over these bytes: it must not depend on strides or byte order.
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")), data


def as_array(value: Any) -> np.ndarray:
    """An array, also from a tensor, without importing torch.

    Raises:
        ValueError: A tensor of a type that numpy lacks.
    """
    if hasattr(value, "detach"):  # a tensor, which isinstance could not tell without torch
        try:
            value = value.detach().cpu().numpy()
        except TypeError as error:
            raise ValueError(
                f"cannot be turned into an array ({error}); give tensor.float()"
            ) from None
    return np.asarray(value)


def _channels_last(array: np.ndarray, channels: Channels | None) -> np.ndarray:
    if array.ndim == 2:
        return array
    first, last = (array.ndim == 3 and array.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if channels is None and first and last:
        raise ValueError(
            f"has the shape {array.shape}, where the first or the last axis could be the channels; "
            "say channels='first' or channels='last'"
        )
    if first and channels != "last":
        return np.moveaxis(array, 0, -1)
    if last and channels != "first":
        return array
    raise ValueError(
        f"has the shape {array.shape}; give (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels"
    )


def decode_image(data: bytes, most_pixels: int | None = None) -> np.ndarray:
    """Pixels of an image file's bytes: (H, W), (H, W, 3) or (H, W, 4).

    The orientation that a camera noted is applied, palettes become colours, and of an animation
    the first frame is taken.

    Args:
        data: The file.
        most_pixels: Larger images are refused; None for Pillow's own limit.

    Raises:
        ValueError: Empty, truncated, of an unknown kind, or too large.
    """
    most_pixels = most_pixels or Image.MAX_IMAGE_PIXELS
    if not data:
        raise ValueError("is empty; replace the file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            # Only the header was read so far: nothing is unpacked of an image that is too large.
            if most_pixels and image.width * image.height > most_pixels:
                raise Image.DecompressionBombError
            return _pixels(image)
    # Up to twice its limit Pillow only warns, but a process may turn warnings into errors.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"has more than {most_pixels:,} pixels; scale it down first") from None
    except UnidentifiedImageError:
        raise ValueError(
            f"is not an image of a kind that can be read ({', '.join(_FORMATS)})"
        ) from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged bytes
        raise ValueError(f"cannot be decoded ({error}); replace the file") from None


def _pixels(image: Image.Image) -> np.ndarray:
    """A Pillow image as an array whose channels are grey, RGB or RGBA."""
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in ("P", "PA", "LA", "La", "RGBa"):
        # A palette may be transparent without saying so in its mode.
        mode = "RGB" if mode == "P" and "transparency" not in image.info else "RGBA"
    elif mode in ("CMYK", "YCbCr", "HSV", "LAB", "RGBX"):
        mode = "RGB"
    elif mode == "1":
        mode = "L"
    return np.array(image if mode == image.mode else image.convert(mode))


def encode_pixels(pixels: np.ndarray) -> bytes:
    """An array as the bytes of a file, without loss: PNG for uint8, else ``.npy``."""
    file = io.BytesIO()
    if pixels.dtype == np.uint8:
        Image.fromarray(pixels).save(file, "PNG")
    else:
        np.lib.format.write_array(file, pixels, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_pixels(data: bytes) -> np.ndarray:
    """The array in stored bytes.

    Raises:
        ValueError: They are damaged.
    """
    if not data.startswith(_NPY):
        return decode_image(data)
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # Not read_array, which allocates what the header claims before it looks at the data.
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()  # else read-only


def display_png(image: np.ndarray, side: int | None = None, framed: bool = False) -> bytes:
    """An image for people, as PNG: (H, W), (H, W, 3) or (H, W, 4).

    uint8 is shown unchanged, truth values as black and white, floats between 0 and 1 from black to
    white. Any other range is stretched from its lowest to its highest value.

    Args:
        image: The pixels.
        side: Length of the longer side in pixels; None keeps the image's own size. Enlarged pixels
            stay sharp squares.
        framed: Whether a grey line around it shows where it ends, on a background of any colour.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        integers = pixels.dtype.kind in "ui"
        pixels = pixels.astype(np.float64)
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1 or integers:
            pixels = (pixels - low) / (high - low) if high > low else np.full_like(pixels, 0.5)
        pixels = np.round(pixels * 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if side is not None:
        scale = side / max(picture.size)
        size = [max(1, round(length * scale)) for length in picture.size]
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        picture = picture.resize((size[0], size[1]), how)
    if framed:
        grey = {"RGB": (128, 128, 128), "RGBA": (128, 128, 128, 255)}.get(picture.mode, 128)
        picture = ImageOps.expand(picture, 1, grey)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
