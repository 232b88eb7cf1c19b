"""Any image file is made to fit a task, and what was done to it is said."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stagelens.contracts import StageLensError
from stagelens.runs.sets.uploads import MOST_PIXELS, fit_image


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Colours that differ at every place."""
    values = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    return np.squeeze(values.astype(np.uint8))


@pytest.mark.parametrize(
    ("file_channels", "task_channels"), [(1, 1), (3, 3), (4, 4), (1, 3)]
)  # fmt: skip
def test_a_file_that_fits_stays_as_it_is(file_channels: int, task_channels: int) -> None:
    pixels = gradient(6, 5, file_channels)
    fitted = fit_image(saved(Image.fromarray(pixels)), (task_channels, 6, 5))
    np.testing.assert_array_equal(fitted.pixels, pixels)
    assert fitted.changes == ()


def test_a_task_that_takes_any_size_gets_the_file_as_it_is() -> None:
    pixels = gradient(40, 50)
    np.testing.assert_array_equal(fit_image(saved(Image.fromarray(pixels)), None).pixels, pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_what_the_task_takes(mode: str, channels: int) -> None:
    grey = Image.fromarray(gradient(30, 20, 1))
    wide = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in wide:
        image = Image.fromarray(np.asarray(grey).astype(wide[mode]) * wide[mode](257))
    else:
        image = grey.convert("RGB").convert(mode)
    fitted = fit_image(saved(image, "TIFF"), (channels, 8, 8))
    assert fitted.pixels.dtype == np.uint8
    assert fitted.pixels.shape == ((8, 8) if channels == 1 else (8, 8, channels))
    colours = fitted.pixels if channels == 1 else fitted.pixels[..., 0]
    assert colours[0].mean() < 60 and colours[-1].mean() > 195  # from black to white, as it was
    assert "scaled from 20 × 20 to 8 × 8 pixels" in fitted.changes


def test_the_middle_of_the_tasks_proportions_is_kept() -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    fitted = fit_image(saved(Image.fromarray(pixels)), (3, 10, 10))
    assert (fitted.pixels == 255).all()
    assert fitted.changes == ("only the middle 10 × 10 of 30 × 10 pixels were kept",)


def test_what_was_done_is_said_in_order() -> None:
    image = Image.new("RGBA", (64, 48), (9, 9, 9, 0))
    fitted = fit_image(saved(image), (1, 8, 8))
    assert (fitted.pixels == 9).all()
    assert fitted.changes == (
        "only the colours of transparent parts are read",
        "colours became grey",
        "only the middle 48 × 48 of 64 × 48 pixels were kept",
        "scaled from 48 × 48 to 8 × 8 pixels",
    )


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
def test_a_line_of_pixels_becomes_an_image(size: tuple[int, int]) -> None:
    fitted = fit_image(saved(Image.new("L", size, 7)), (1, 8, 8))
    assert (fitted.pixels == 7).all()


def test_a_cameras_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.fromarray(gradient(4, 6))
    fitted = fit_image(saved(image, "PNG", exif=exif), (3, 6, 4))
    assert fitted.pixels.shape == (6, 4, 3)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims a huge image."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"MZ not an image", "not an image of a kind that can be read (PNG, JPEG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image of a kind"),
        (saved(Image.new("RGB", (50, 50)))[:60], "cannot be decoded"),
        (bomb(40_000, 40_000), f"more than {MOST_PIXELS:,} pixels"),
        (bomb(6_400, 6_400), f"more than {MOST_PIXELS:,} pixels"),
        (bomb(2_000_000_000, 2_000_000_000), "pixels"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_the_reason(data: bytes, said: str) -> None:
    with pytest.raises(StageLensError) as raised:
        fit_image(data, (3, 8, 8))
    assert said in str(raised.value) and str(raised.value).startswith("the file ")


def test_a_task_of_other_channels_says_what_to_do() -> None:
    with pytest.raises(StageLensError, match=r"5 channels.*add-set"):
        fit_image(saved(Image.new("RGB", (8, 8))), (5, 8, 8))
