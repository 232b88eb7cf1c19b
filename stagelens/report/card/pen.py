"""Text and shapes on a picture, with the fonts that come with what StageLens depends on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from stagelens.charts.style import written_out

Run = tuple[str, bool, str] | tuple[str, bool, str, str]
"""A piece of text: its words, whether it is bold, its colour, and what is behind it if anything."""

_MISSING = "\U0010ffff"
"""A character that no font has: what it looks like is how a font shows one that is missing."""


def _beside(package: str, pattern: str) -> Path | None:
    """A file of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob(pattern))), None)


@lru_cache(maxsize=64)
def _font(family: str, size: int, bold: bool) -> ImageFont.FreeTypeFont | None:
    if family == "page":  # the one that Streamlit's pages are set in
        path = _beside("streamlit", "static/static/media/SourceSansVF-Upright*.woff2")
    else:  # has far more scripts; it comes with captum's matplotlib
        path = _beside("matplotlib", f"mpl-data/fonts/ttf/DejaVuSans{'-Bold' * bold}.ttf")
    if path is None:
        return None
    try:
        font = ImageFont.truetype(str(path), size if family == "page" else round(0.9 * size))
        if family == "page":
            font.set_variation_by_axes([600 if bold else 400])
    except OSError:  # a build without support for compressed or variable fonts
        return None
    return font


@lru_cache(maxsize=4096)
def _covers(family: str, character: str) -> bool:
    font = _font(family, 20, False)
    if font is None:
        return False
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(_MISSING))


def font_for(text: str, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The first font that has all characters of a text, else the one with the most scripts."""
    for family in ("page", "wide"):
        font = _font(family, size, bold)
        if font is not None and (family == "wide" or all(_covers(family, c) for c in text)):
            return font
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont), "Pillow's wheels come with FreeType"
    return found


class Pen:
    """Draws on an image; coordinates are pixels from the top left corner.

    Args:
        image: In RGB.
    """

    def __init__(self, image: Image.Image) -> None:
        self.image, self.draw = image, ImageDraw.Draw(image)

    def width(self, text: str, size: int, bold: bool = False) -> float:
        """How wide a text is."""
        return font_for(text, size, bold).getlength(text)

    def text(
        self, x: float, y: float, text: str, size: int, color: str, bold: bool = False,
        anchor: str = "ls",
    ) -> float:  # fmt: skip
        """One line from data or of our own; returns its width. ``y`` is its base line."""
        clean = written_out(text)
        self.draw.text((x, y), clean, color, font_for(clean, size, bold), anchor=anchor)
        return self.width(clean, size, bold)

    def fitted(self, text: str, size: int, room: float, bold: bool = False) -> str:
        """A text that is cut off, with an ellipsis, where it would be wider than ``room``."""
        clean = written_out(text)
        if self.width(clean, size, bold) <= room:
            return clean
        low, high = 0, len(clean)
        while low < high:  # the longest beginning that fits
            middle = (low + high + 1) // 2
            if self.width(clean[:middle] + "…", size, bold) <= room:
                low = middle
            else:
                high = middle - 1
        return clean[:low].rstrip() + "…"

    def paragraph(
        self, x: float, y: float, room: float, pieces: Sequence[Run], size: int, most: int,
        lead: float = 1.35,
    ) -> float:  # fmt: skip
        """Pieces of text in lines of at most ``room``; returns the base line after the last.

        Args:
            x: Left edge.
            y: Base line of the first line.
            room: Width.
            pieces: What to write.
            size: Of the letters.
            most: Lines at most; what does not fit ends in an ellipsis.
            lead: Distance of base lines over the size.
        """
        lines = self.lines(pieces, size, room)
        for number, line in enumerate(lines[:most]):
            at = x
            for word, bold, color, *behind in line:
                if behind and behind[0] and word.strip():
                    left = at + self.width(word, size, bold)
                    left -= self.width(word.lstrip(), size, bold)
                    right = at + self.width(word.rstrip(), size, bold)
                    box = (left - 3, y - 0.88 * size, right + 3, y + 0.3 * size)
                    self.draw.rounded_rectangle(box, 4, fill=behind[0])
                at += self.text(at, y, word, size, color, bold)
            if len(lines) > most == number + 1:
                self.text(at, y, "…", size, line[-1][2])
            y += lead * size
        return y

    def lines(self, pieces: Sequence[Run], size: int, room: float) -> list[list[Run]]:
        """The pieces cut into lines of at most ``room``, at spaces."""
        lines: list[list[Run]] = [[]]
        used = 0.0
        for text, bold, *colors in pieces:
            for word in _words(written_out(text)):
                if used + self.width(word.rstrip(), size, bold) > room and lines[-1]:
                    lines.append([])
                    used, word = 0.0, word.lstrip()
                word = self.fitted(word, size, room, bold) if word.strip() else word
                lines[-1].append((word, bold, *colors))  # type: ignore[arg-type]
                used += self.width(word, size, bold)
        return [line for line in lines if line]


def _words(text: str) -> list[str]:
    """Words, each with the spaces after it."""
    words: list[str] = []
    for part in text.split(" "):
        words.append(part + " ")
    if words:
        words[-1] = words[-1][:-1]
    return [word for word in words if word]
