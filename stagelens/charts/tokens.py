"""Tokens shaded by a stage's effect: colour, and an underline that tells credit from blame too.

Tokens come from data and from people who type. Each is isolated: escaped, kept from turning the
direction of what follows, and with everything that cannot be seen written out.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stagelens.analyses.saliency.spans import strongest_span
from stagelens.contracts import Behaviour
from stagelens.wording.numbers import amount_text, signed_text

from .style import BLAME, CREDIT, MUTED, NEITHER, PUSH, see_through, short

MOST = 2000
"""Tokens that are drawn; in longer texts, the first ones."""

TEXT = (
    "line-height:2.1;overflow-wrap:anywhere;white-space:pre-wrap;overflow:hidden;"
    "font-family:'Source Code Pro',ui-monospace,monospace;font-size:.95em"
)
"""Style of the element that holds the tokens."""

_STRONGEST = 0.55
"""Opacity of the strongest effect; text keeps a contrast of 5:1 on it, light and dark."""
_FAINT = 0.04
"""Effects below this share of the range are not underlined."""


@dataclass(frozen=True)
class Markup:
    """HTML with everything from data escaped, and its takeaway in words."""

    html: str
    alt: str


def shaded_tokens(
    tokens: Sequence[str],
    effects: np.ndarray,
    behaviour: Behaviour,
    stage: str,
    largest: float | None = None,
    signed: bool = True,
) -> Markup:
    """A text with every token shaded by a stage's effect on it, and a legend.

    Args:
        tokens: (T,) pieces of the text.
        effects: (T,) final - without; NaN for tokens without a value.
        behaviour: What the effects are on, per token; tells credit from blame.
        stage: The stage.
        largest: Size of the effect that has the strongest shade, to compare stages; None for the
            largest of these.
        signed: Whether signs are known; else tokens are grey, neither credit nor blame.
    """
    gains = behaviour.sign * np.asarray(effects, dtype=float)[:MOST]
    sizes = np.abs(gains[np.isfinite(gains)])
    largest = largest or (float(sizes.max()) if len(sizes) else 0.0)
    spans = "".join(
        _token(token, float(gain), behaviour, stage, largest, signed)
        # Not strict: only the first tokens of a long text are drawn.
        for token, gain in zip(tokens, gains, strict=False)
    )
    alt = _takeaway(tokens, gains, behaviour, stage, signed)
    more = f" Shown: the first {MOST:,} of {len(tokens):,} tokens." if len(tokens) > MOST else ""
    return Markup(
        f"<div role='group' aria-label='{html.escape(alt, quote=True)}'>"
        f"<div dir='ltr' style=\"{TEXT}\">{spans}</div>"
        f"{legend(largest, behaviour, f'Paler: tokens without a value.{more}', signed)}</div>",
        alt,
    )


def largest_effect(effects: Sequence[np.ndarray]) -> float:
    """The size of the largest effect of any stage on any token; 0 where there is none."""
    known = np.concatenate([np.zeros(1), *(np.abs(e[np.isfinite(e)]) for e in effects)])
    return float(known.max())


def _token(
    token: str, gain: float, behaviour: Behaviour, stage: str, largest: float, signed: bool
) -> str:
    if not np.isfinite(gain):
        return f"<bdi style='opacity:.7'>{html.escape(visible(token))}</bdi>"
    effect = behaviour.sign * gain
    way = "lower or higher" if not signed else "lower" if effect > 0 else "higher"
    said = f"without {stage}, {amount_text(effect, behaviour)} {way}"
    return shaded(token, gain, largest, said, signed)


def shaded(token: str, gain: float, largest: float, said: str, signed: bool = True) -> str:
    """One token: blue with a solid underline where its value is a gain, else vermilion and wavy.

    Args:
        token: From data.
        gain: Its value, positive where it makes the behaviour better.
        largest: Size of the value with the strongest shade.
        said: The value in words, shown when somebody points at the token.
        signed: Whether its sign is known; else the token is grey, with a dotted underline.
    """
    background, line = shade(gain, largest, signed)
    style = f"background:{background};border-radius:.2em"
    if line:
        # The line has a meaning, so descenders must not interrupt it.
        style += f";text-decoration:{line};text-underline-offset:.3em;text-decoration-skip-ink:none"
    title = html.escape(f"{short(visible(token), 40)}: {said}", quote=True)
    # <bdi> keeps a token from right to left from reordering its neighbours.
    return f"<bdi title='{title}' style='{style}'>{html.escape(visible(token))}</bdi>"


def shade(
    gain: float, largest: float, signed: bool = True, pushing: bool = False
) -> tuple[str, str]:
    """The background of a token, and the line below it; no line where the value is next to none.

    Args:
        gain: Its value, positive where it makes the behaviour better.
        largest: Size of the value with the strongest shade.
        signed: Whether its sign is known.
        pushing: Whether it pushes an answer that is neither right nor wrong: no credit or blame.
    """
    share = min(abs(gain) / largest, 1.0) if largest else 0.0
    color = PUSH if pushing else CREDIT if gain > 0 else BLAME
    line = f"{'solid' if gain > 0 else 'wavy'} {color}"
    if not signed:
        color, line = NEITHER, f"dotted {NEITHER}"
    drawn = f"underline {line} {1 + 2 * share:.1f}px" if share >= _FAINT else ""
    return see_through(color, _STRONGEST * share), drawn


def visible(token: str) -> str:
    """A token with what cannot be seen written out, and with nothing that acts on what follows.

    A line break still breaks the line; spaces within a token stay spaces.
    """
    if token and not token.strip():
        return "".join(_BLANKS.get(c, "␣") for c in token)
    shown = "".join(map(_character, token))
    # Without a base of its own, an accent would sit on the token before.
    return f"◌{shown}" if token and unicodedata.category(token[0]) in ("Mn", "Me") else shown


_BLANKS = {"\n": "↵\n", "\t": "⇥", "\r": "␍"}


def _character(character: str) -> str:
    if character in _BLANKS:
        return _BLANKS[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode has a picture of each control character there
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"[U+{code:04X}]"
    return character


def legend(largest: float, behaviour: Behaviour, more: str, signed: bool = True) -> str:
    """What the shades mean, with the ends of their range."""
    if not signed:
        said = f"± up to {amount_text(largest, behaviour)}; the sign is uncertain: neither credit "
        return (
            f"<div style='margin-top:.6em;font-size:.85em'>{html.escape(said)}nor blame. "
            f"<span style='opacity:.75'>{html.escape(more)}</span></div>"
        )
    unit = f" {behaviour.unit}" if behaviour.unit else ""
    gradient = ", ".join(
        see_through(c, a)
        for c, a in ((BLAME, _STRONGEST), (BLAME, 0), (CREDIT, 0), (CREDIT, _STRONGEST))
    )
    ends = [signed_text(end, behaviour) for end in (-largest, largest)]
    line = "text-underline-offset:.3em;text-decoration:underline"
    return (
        "<div style='display:flex;flex-wrap:wrap;align-items:center;gap:.3em .8em;margin-top:.6em;"
        "font-size:.85em'>"
        f"<span style='{line} wavy {BLAME} 2px'>▼ blame</span>"
        f"<span>{html.escape(ends[0])}</span>"
        f"<span style='width:9em;height:.9em;border:1px solid {MUTED};border-radius:.2em;"
        f"background:linear-gradient(90deg, {gradient})'></span>"
        f"<span>{html.escape(ends[1] + unit)}</span>"
        f"<span style='{line} solid {CREDIT} 2px'>▲ credit</span>"
        f"<span style='opacity:.75'>{html.escape(more)}</span></div>"
    )


def _takeaway(
    tokens: Sequence[str], gains: np.ndarray, behaviour: Behaviour, stage: str, signed: bool
) -> str:
    opening = f"Effect of {stage} on each of {len(tokens):,} tokens."
    if not np.isfinite(gains).any():
        return f"{opening} No token has a number."
    if not signed:
        span, value = strongest_span(tokens, gains)
        size = amount_text(value, behaviour)
        return f"{opening} Largest for {_named(span)} ({size}); the sign is uncertain."
    said = []
    for word, own in (("credit", np.fmax(gains, 0)), ("blame", np.fmin(gains, 0))):
        span, gain = strongest_span(tokens, own)
        if gain:
            said.append(f"most {word} for {_named(span)} ({amount_text(gain, behaviour)})")
    if not said:
        return f"{opening} None has an effect."
    # Not capitalize(), which would change the letters of the tokens too.
    said[0] = said[0].replace("most", "Most", 1)
    return f"{opening} {'; '.join(said)}."


def _named(span: str) -> str:
    return repr(short(visible(span), 40))
