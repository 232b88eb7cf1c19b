"""A card as one HTML file that needs nothing else; light, at any width, everything escaped."""

from __future__ import annotations

import base64
import io

import numpy as np

from stagelens.analyses.saliency.spans import runs_on
from stagelens.charts.style import (
    BLAME,
    BLAME_BETWEEN,
    CREDIT,
    LIGHT,
    NEITHER,
    RIGHT_TEXT,
    SHADE,
    WRONG_TEXT,
    see_through,
    stage_color,
    written,
)

from .content import Bar, Card, Said
from .picture import lit_image

_STYLE = f"""
:root{{color-scheme:light}}
body{{margin:0;background:{LIGHT.panel};color:{LIGHT.text};font:17px/1.4 system-ui,"Segoe UI",
"Source Sans 3","Noto Sans",sans-serif}}
main{{max-width:60rem;margin:2rem auto;background:#fff;border-top:8px solid var(--stage);
border-radius:.5rem;padding:1.5rem 1.75rem 1rem;box-shadow:0 1px 6px {SHADE};
box-sizing:border-box}}
.two{{display:grid;grid-template-columns:minmax(0,2fr) minmax(0,3fr);gap:1.5rem 2rem}}
@media(max-width:40rem){{.two{{grid-template-columns:minmax(0,1fr)}}main{{margin:0;border-radius:0;
padding:1rem}}}}
h1{{font-size:1rem;font-weight:400;margin:0;display:flex;flex-wrap:wrap;gap:1rem 2.5rem}}
h1>span{{min-width:6rem}}
.says{{display:block;font-size:clamp(1.6rem,6vw,3.4rem);font-weight:650;line-height:1.15;
overflow-wrap:anywhere}}
.quiet{{color:{LIGHT.muted}}}
.right{{color:{RIGHT_TEXT};font-weight:600}}.wrong{{color:{WRONG_TEXT};font-weight:600}}
img{{width:100%;display:block;image-rendering:pixelated;border:1px solid {NEITHER};
box-sizing:border-box}}
.text{{background:{LIGHT.panel};border-radius:.5rem;padding:.8rem 1rem;overflow-wrap:anywhere;
white-space:pre-wrap}}
.text.brief{{font-size:1.45rem;padding:1.6rem 1.2rem}}
.text mark{{color:inherit;border-radius:.2rem;padding:.1em 0}}
.bars{{display:grid;grid-template-columns:minmax(4rem,9rem) minmax(0,1fr) auto;gap:.35rem .8rem;
align-items:center;margin-top:1rem}}
.name{{text-align:right;overflow-wrap:anywhere}}
.bar{{position:relative;height:1.2rem;background:linear-gradient({NEITHER},{NEITHER}) 50%/2px 100%
no-repeat}}
.bar i{{position:absolute;top:15%;height:70%}}
.amount{{text-align:right;white-space:nowrap}}
footer{{border-top:1px solid {LIGHT.grid};margin-top:1.2rem;padding-top:.6rem;font-size:.9rem;
overflow-wrap:anywhere}}
.under{{margin-top:.5rem;line-height:1.35}}
footer>b:last-child{{float:right}}
a{{color:inherit}}
"""


def as_html(card: Card) -> str:
    """The card as a page."""
    title = f"{card.example_id} {card.title}"
    sentence = "".join(
        written(part.text) if part.kind == "plain" else f"<b><bdi>{written(part.text)}</bdi></b>"
        for part in card.sentence.parts
    )
    label = "" if card.label is None else f"label {written(card.label)} · "
    lit = (
        ""
        if card.lit is None
        else f"<br>where {written(card.stage)} acts: orange blame, blue credit"
    )
    bars = "".join(_bar(card, bar) for bar in card.bars)
    more = f" · {card.more} more stages have smaller effects" if card.more else ""
    facts = f"run {written(card.run)} · set {written(card.set_name)} · digest {card.digest[:12]}"
    # A link without a host leads nowhere from a file: it is then shown, but not followed.
    link = written(card.link)
    if card.link.startswith(("http://", "https://")):
        link = f"<a href='{link}' rel='noopener'>{link}</a>"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; "
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{written(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main style='--stage:{stage_color(card.place)}'><div class='two'>"
        f"<div>{_input(card)}<div class='under'>{label}<bdi>{written(card.example_id)}</bdi>"
        f"<span class='quiet'>{lit}</span></div></div>"
        f"<div><h1>{_answers(card)}</h1><p>{sentence}</p>"
        f"<div class='bars'>{bars}</div>"
        f"<div class='quiet'>◀ blame · credit ▶ {written(card.axis)}{more}</div></div></div>"
        f"<footer><b>{written(card.seal)}</b> <span class='quiet'>{facts}<br>{link}</span>"
        "<b>StageLens</b></footer></main></body></html>"
    )


def _answers(card: Card) -> str:
    stage = f"<b><bdi>{written(card.stage)}</bdi></b>"
    if card.final.answer == card.without.answer:
        return _said(f"{written(card.opening)}, with or without {stage}", card.final)
    return _said(written(card.opening), card.final) + _said(f"without {stage}", card.without)


def _said(before: str, said: Said) -> str:
    verdict = ""
    if said.right is not None:
        kind, word = ("right", "✓ right") if said.right else ("wrong", "✗ wrong")
        verdict = f"<span class='{kind}'>{word}</span>"
    return (
        f"<span><span class='quiet'>{before}</span>"
        f"<span class='says'><bdi>{written(said.answer)}</bdi></span>{verdict}</span>"
    )


def _input(card: Card) -> str:
    if card.image is not None:
        out = io.BytesIO()
        lit_image(card).save(out, "PNG", optimize=True)
        data = base64.b64encode(out.getvalue()).decode()
        return f"<img alt='The input' src='data:image/png;base64,{data}'>"
    kind = "text brief" if sum(map(len, card.texts.values())) < _BRIEF else "text"
    if card.tokens is not None and card.lit is not None:
        return f"<div class='{kind}' dir='auto'>{_shaded(card.tokens, card.lit)}</div>"
    named = len(card.texts) > 1
    return "".join(
        (f"<div class='quiet'>{written(name)}</div>" if named else "")
        + f"<div class='{kind}' dir='auto'>{written(_bounded(text))}</div>"
        for name, text in card.texts.items()
    )


_BRIEF = 160
"""Characters below which a text is set large."""
_LONGEST = 4000
"""Characters of a field; a card is no archive."""


def _bounded(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _shaded(tokens: tuple[str, ...], lit: np.ndarray) -> str:
    largest, gap = float(np.abs(lit).max()), "" if runs_on(tokens) else " "
    parts = []
    for token, gain in zip(tokens[:_LONGEST], lit.tolist(), strict=False):
        share = abs(gain) / largest
        if share < 0.08:
            parts.append(f"{written(token)}{gap}")
            continue
        color = see_through(CREDIT if gain > 0 else BLAME, 0.6 * share)
        parts.append(f"<mark style='background:{color}'>{written(token)}</mark>{gap}")
    return "".join(parts)


def _bar(card: Card, bar: Bar) -> str:
    largest = max((abs(each.gain) for each in card.bars), default=0.0) or 1.0
    wide = 50 * abs(bar.gain) / largest
    color = NEITHER if not bar.signed else CREDIT if bar.gain > 0 else BLAME
    filled = color
    if color == BLAME:
        filled = f"repeating-linear-gradient(135deg,{BLAME} 0 4px,{BLAME_BETWEEN} 4px 6px)"
    side = "left" if bar.gain > 0 else "right"
    drawn = (
        f"<i style='{side}:50%;width:{wide:.2f}%;background:{filled};"
        f"opacity:{0.45 if bar.faint else 1}'></i>"
        if bar.gain
        else ""
    )
    name = f"<bdi>{written(bar.stage)}</bdi>"
    if bar.stage == card.stage:
        name = f"<b>{name}</b>"
    return (
        f"<div class='name'>{name}</div><div class='bar'>{drawn}</div>"
        f"<div class='amount'>{written(bar.text)}</div>"
    )
