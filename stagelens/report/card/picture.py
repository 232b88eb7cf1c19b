"""A card as a PNG of 1200 by 630 pixels, as links are previewed; no browser needed."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, PngImagePlugin

from stagelens.analyses.saliency.spans import runs_on
from stagelens.charts.style import (
    BLAME,
    BLAME_BETWEEN,
    CREDIT,
    LIGHT,
    NEITHER,
    RIGHT_TEXT,
    WRONG_TEXT,
    ZERO,
    stage_color,
)

from .content import Bar, Card, Said
from .pen import Pen, Run

SIZE = (1200, 630)
_LEFT, _TOP, _INPUT = 48, 56, 424
_COLUMN, _RIGHT = 520, 1152
_LIT = 0.62
"""Of the colour over the strongest place; the input shows through."""


def as_png(card: Card) -> bytes:
    """The card as a picture, with what it says as text in the file's metadata."""
    image = Image.new("RGB", SIZE, LIGHT.background)
    pen = Pen(image)
    pen.draw.rectangle((0, 0, SIZE[0], 10), fill=stage_color(card.place))
    _input(pen, card)
    y = _answers(pen, card)
    y = _sentence(pen, card, y)
    _bars(pen, card, y)
    _foot(pen, card)
    told = PngImagePlugin.PngInfo()
    told.add_itxt("Title", f"{card.example_id} {card.title}")
    told.add_itxt("Description", f"{card.sentence} {card.seal}. {card.link}")
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True, pnginfo=told)
    return out.getvalue()


def lit_image(card: Card, side: int = _INPUT) -> Image.Image:
    """The input image in a square, with the places that carry the stage's effect coloured."""
    assert card.image is not None, "the example is an image"
    own = Image.open(io.BytesIO(card.image)).convert("RGB")
    scale = side / max(own.size)
    size = (max(round(own.width * scale), 1), max(round(own.height * scale), 1))
    own = own.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
    if card.lit is not None:
        own = Image.alpha_composite(own.convert("RGBA"), _veil(card.lit, size)).convert("RGB")
    square = Image.new("RGB", (side, side), LIGHT.panel)
    square.paste(own, ((side - own.width) // 2, (side - own.height) // 2))
    return square


def _veil(lit: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The map as a layer: credit blue, blame orange, the stronger the less see-through."""
    share = np.abs(lit) / np.abs(lit).max()
    colors = np.where((lit > 0)[..., None], _rgb(CREDIT), _rgb(BLAME))
    alpha = np.where(share < 0.08, 0.0, 255 * _LIT * np.sqrt(share))
    layer = np.concatenate([colors, alpha[..., None]], axis=-1).astype(np.uint8)
    return Image.fromarray(layer, "RGBA").resize(size, Image.Resampling.NEAREST)


def _rgb(color: str) -> np.ndarray:
    return np.asarray([int(color[at : at + 2], 16) for at in (1, 3, 5)])


def blended(color: str, share: float) -> str:
    """A colour on white; ``share`` 0 is white, 1 the colour."""
    mixed = share * _rgb(color) + (1 - share) * 255
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def _input(pen: Pen, card: Card) -> None:
    box = (_LEFT, _TOP, _LEFT + _INPUT, _TOP + _INPUT)
    if card.image is not None:
        pen.image.paste(lit_image(card), box[:2])
        pen.draw.rectangle(box, outline=ZERO)
    else:
        pen.draw.rounded_rectangle(box, 14, fill=LIGHT.panel)
        _text(pen, card)
    y = _TOP + _INPUT + 30
    label = "" if card.label is None else f"label {card.label} · "
    pen.text(_LEFT, y, pen.fitted(f"{label}{card.example_id}", 21, _INPUT), 21, LIGHT.text)
    if card.lit is not None:
        said = pen.fitted(f"where {card.stage} acts: orange blame, blue credit", 19, _INPUT)
        pen.text(_LEFT, y + 27, said, 19, LIGHT.muted)


def _text(pen: Pen, card: Card) -> None:
    """A text as large as it fits, in the middle of its panel."""
    x, room, high = _LEFT + 24, _INPUT - 48, _INPUT - 40
    pieces: list[Run] = []
    if card.tokens is not None and card.lit is not None:
        pieces = _shaded(card.tokens, card.lit)
    else:
        for name, text in card.texts.items():
            own: list[Run] = [(f"{name} ", True, LIGHT.text)] if len(card.texts) > 1 else []
            pieces += [*own, (f"{text[:_LONGEST]} ", False, LIGHT.text)]
    for size in _TEXT_SIZES:
        most = int(high / (_LEAD * size))
        lines = pen.lines(pieces, size, room)
        if len(lines) <= most:
            break
    used = min(len(lines), most) * _LEAD * size
    y = _TOP + 20 + (high - used) / 2 + 0.95 * size
    pen.paragraph(x, y, room, pieces, size, most, _LEAD)


_LONGEST = 800
"""Characters of a field that are looked at; more have no room even in small letters."""
_TEXT_SIZES = (44, 38, 33, 28, 24, 21)
_LEAD = 1.4


def _shaded(tokens: tuple[str, ...], lit: np.ndarray) -> list[Run]:
    """The tokens, each with the colour of its part in the effect behind it."""
    largest, gap = float(np.abs(lit).max()), "" if runs_on(tokens) else " "
    pieces: list[Run] = []
    for token, gain in zip(tokens[:_LONGEST], lit.tolist(), strict=False):
        share = abs(gain) / largest
        color = blended(CREDIT if gain > 0 else BLAME, 0.75 * share) if share >= 0.08 else ""
        pieces.append((f"{token}{gap}", False, LIGHT.text, color))
    return pieces


def _answers(pen: Pen, card: Card) -> float:
    """What the two models say, large; returns where the next line may begin."""
    half = (_RIGHT - _COLUMN) // 2
    same = card.final.answer == card.without.answer
    room = (_RIGHT - _COLUMN if same else half) - 64
    size = 92
    while size > 34 and any(pen.width(each.answer, size, True) > room
                            for each in (card.final, card.without)):  # fmt: skip
        size -= 4
    columns = [(card.opening, "", card.final), ("without ", card.stage, card.without)]
    if same:
        columns = [(f"{card.opening}, with or without ", card.stage, card.final)]
    for number, (before, name, said) in enumerate(columns):
        x = _COLUMN + number * half
        wide = pen.text(x, _TOP + 20, pen.fitted(before, 25, room), 25, LIGHT.muted)
        if name:
            pen.text(x + wide, _TOP + 20, pen.fitted(name, 25, room + 40 - wide, True), 25,
                     LIGHT.text, bold=True)  # fmt: skip
        _said(pen, x, said, size, room)
    if not same:
        middle = _COLUMN + half - 38
        pen.text(middle, _TOP + 92, "→", 40, LIGHT.muted, anchor="ms")
    return _TOP + 190


def _said(pen: Pen, x: float, said: Said, size: int, room: float) -> None:
    pen.text(x, _TOP + 108, pen.fitted(said.answer, size, room, True), size, LIGHT.text, True)
    if said.right is not None:
        word, color = ("✓ right", RIGHT_TEXT) if said.right else ("✗ wrong", WRONG_TEXT)
        pen.text(x, _TOP + 146, word, 24, color, bold=True)


def _sentence(pen: Pen, card: Card, y: float) -> float:
    pieces: list[Run] = [
        (part.text, part.kind in ("stage", "group", "amount"), LIGHT.text)
        for part in card.sentence.parts
    ]
    return pen.paragraph(_COLUMN, y + 14, _RIGHT - _COLUMN, pieces, 24, 3)


def _bars(pen: Pen, card: Card, y: float) -> None:
    names, amounts = 160, 92
    left, right = float(_COLUMN + names), float(_RIGHT - amounts)
    zero, reach = (left + right) / 2, (right - left) / 2 - 6
    largest = max((abs(bar.gain) for bar in card.bars), default=0.0) or 1.0
    room = 520 - y
    step = min(36.0, room / max(len(card.bars), 1))
    y += 4
    pen.draw.line((zero, y - 4, zero, y + step * len(card.bars)), fill=ZERO, width=2)
    for number, bar in enumerate(card.bars):
        top = y + number * step
        middle, thick = top + step / 2, min(step * 0.6, 22)
        bold = bar.stage == card.stage
        name = pen.fitted(bar.stage, 20, names - 14, bold)
        pen.text(left - 14, middle + 7, name, 20, LIGHT.text, bold, anchor="rs")
        _bar(pen, bar, zero, middle, thick, reach * bar.gain / largest)
        pen.text(_RIGHT, middle + 7, bar.text, 20, LIGHT.text, bold, anchor="rs")
    more = f" · {card.more} more" if card.more else ""
    said = f"◀ blame · credit ▶   {card.axis}{more}"
    pen.text(zero, y + step * len(card.bars) + 22, said, 17, LIGHT.muted, anchor="ms")


def _bar(pen: Pen, bar: Bar, zero: float, middle: float, thick: float, length: float) -> None:
    if not length:
        return
    color = NEITHER if not bar.signed else CREDIT if bar.gain > 0 else BLAME
    box = (round(min(zero, zero + length)), round(middle - thick / 2),
           round(max(zero, zero + length)), round(middle + thick / 2))  # fmt: skip
    pen.draw.rectangle(box, fill=blended(color, 0.45 if bar.faint else 1.0))
    if bar.signed and bar.gain < 0:
        _hatch(pen, box)


def _hatch(pen: Pen, box: tuple[int, int, int, int]) -> None:
    """White stripes, which tell blame from credit without its colour."""
    width, height = box[2] - box[0], box[3] - box[1]
    if width < 1 or height < 1:
        return
    part = pen.image.crop(box)
    inner = Pen(part)
    for start in range(-height, width, 9):
        inner.draw.line((start, height, start + height, 0), fill=BLAME_BETWEEN, width=2)
    pen.image.paste(part, box[:2])


def _foot(pen: Pen, card: Card) -> None:
    pen.draw.line((_LEFT, 562, _RIGHT, 562), fill=LIGHT.grid, width=2)
    brand = pen.width("StageLens", 22, True)
    pen.text(_RIGHT, 590, "StageLens", 22, LIGHT.text, True, anchor="rs")
    x = float(_LEFT)
    if card.seal:
        x += pen.text(x, 590, card.seal, 20, LIGHT.text, True) + 14
    facts = f"run {card.run} · set {card.set_name} · digest {card.digest[:12]}"
    pen.text(x, 590, pen.fitted(facts, 20, _RIGHT - brand - 24 - x), 20, LIGHT.muted)
    pen.text(_LEFT, 616, pen.fitted(card.link, 17, _RIGHT - _LEFT), 17, LIGHT.muted)
