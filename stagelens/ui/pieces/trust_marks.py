"""What is known of numbers on pages: badges, lines and marks, each with its word."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

import streamlit as st

from stagelens.contracts import SCORE
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.folding import MOST, listed
from stagelens.wording.numbers import count_text
from stagelens.wording.trust_words import (
    MARKS,
    MEANINGS,
    TrustWord,
    is_trustworthy,
    trust_advice,
    trust_explanation,
    trust_label,
    trust_word,
)

from .escaping import plain

_BADGES: dict[TrustWord, tuple[str, str]] = {
    "exact": (":material/check_circle:", "green"),
    "verified": (":material/verified:", "blue"),
    "reliable": (":material/contrast:", "violet"),
    "on recorded samples": (":material/history:", "violet"),
    "rough": (":material/radio_button_unchecked:", "orange"),
    "sign uncertain": (":material/swap_horiz:", "red"),
    "does not agree": (":material/gpp_bad:", "red"),
    "refused": (":material/block:", "gray"),
}

_SHORT = 24
"""Characters of what is known that fit into any line."""


def trust_badge(
    trust: StageTrust, behaviour: str | None, name: str | None = None, quiet: bool = False
) -> None:
    """Shape, colour and words for what is known of a stage's effects.

    Args:
        trust: What is known.
        behaviour: Of the effects on which behaviour; None for all of them.
        name: Whose trust it is, printed before it; the figures follow. Without a name, the word
            alone is printed, for places where the figures are nearby.
        quiet: In grey, because nothing that is shown rests on it.
    """
    word = trust_word(trust, behaviour)
    icon, color = _BADGES[word]
    color = "gray" if quiet else color
    st.badge(
        plain(f"{name}: {trust_label(trust, behaviour)}" if name else word),
        icon=icon,
        color=color,  # type: ignore[arg-type]
        help=plain(trust_explanation(trust, behaviour)),
    )


def trust_badges(
    stages: Iterable[StageTrust], behaviour: str | None, of: Sequence[str] = ()
) -> None:
    """One badge per stage in a row, and below it why some are not to be relied on.

    Of many stages, one badge for all of which the same is known.

    Args:
        stages: What is known of each.
        behaviour: Of the effects on which behaviour; None for all of them.
        of: The behaviour of each, where they are about several.
    """
    stages = list(stages)
    known: list[tuple[StageTrust, str | None, str]] = []
    for each, named in zip(stages, [*of, *[""] * len(stages)], strict=False):
        title = ", ".join(filter(None, (named.removeprefix(SCORE), each.stage)))
        known.append((each, named or behaviour, title))
    words: dict[TrustWord, int] = {}
    for stage, kind, _ in known:
        word = trust_word(stage, kind)
        words[word] = words.get(word, 0) + 1
    with st.container(horizontal=True, gap="small"):
        if len(known) > MOST:
            for word, count in words.items():
                icon, color = _BADGES[word]
                text = f"{word}: {count_text(count, 'effect' if of else 'stage')}"
                st.badge(text, icon=icon, color=color)  # type: ignore[arg-type]
        else:
            for stage, kind, name in known:
                trust_badge(stage, kind, name)
    # Stages with the same reason share one line.
    reasons: dict[tuple[str, str], list[str]] = {}
    for stage, kind, name in known:
        if not is_trustworthy(stage, kind):
            checked = bool(stage.agreements)  # its figures are in the badge
            said = (trust_advice if checked else trust_explanation)(stage, kind)
            reasons.setdefault((MARKS[trust_word(stage, kind)], said), []).append(name)
    # Figures differ from stage to stage, and with them the reasons.
    for (mark, said), names in list(reasons.items())[:MOST]:
        st.caption(f"{mark} {plain(listed(names))}: {plain(said)}")
    if len(reasons) > MOST:
        more = sum(len(names) for names in list(reasons.values())[MOST:])
        st.caption(f"{count_text(more, 'further stage')} not to be relied on: see the Trust page.")


def trust_legend() -> None:
    """What every mark and word means, on any page, folded away."""
    with st.expander("What exact, verified, reliable, rough and the other words of trust mean"):
        rows = "".join(
            f"<div style='white-space:nowrap'>{MARKS[one]} <b>{one}</b></div>"
            f"<div>{html.escape(MEANINGS[one])}.</div>"
            for one in MARKS
        )
        st.html(
            "<div style='display:grid;grid-template-columns:minmax(8em,auto) 1fr;gap:.3em 1.2em;"
            f"font-size:.9rem'>{rows}</div>"
        )
        st.caption("Rely on filled marks, not on hollow ones.")


def trust_line(trust: Mapping[str, StageTrust], behaviour: str) -> str:
    """Stages by what is known of their effects, in one line.

    Args:
        trust: Stage to what is known, in training order.
        behaviour: Of the effects on which behaviour.
    """
    stages: dict[TrustWord, list[str]] = {}
    for stage, known in trust.items():
        stages.setdefault(trust_word(known, behaviour), []).append(stage)
    if len(stages) == 1:
        only = next(iter(stages))
        return f"{MARKS[only]} {'all ' if len(trust) > 1 else ''}{only}."
    return " ".join(f"{MARKS[word]} {word}: {', '.join(names)}." for word, names in stages.items())


def trust_html(
    trust: StageTrust, behaviour: str | None, brief: bool = False, by: str = "", seal: str = ""
) -> str:
    """The mark and the word of a number's trust as markup; the rest is said on demand.

    Args:
        trust: What is known.
        behaviour: Of the effects on which behaviour.
        brief: Leave out the figures.
        by: Printed behind the figures.
        seal: Printed in place of mark, word and figures.
    """
    word, label = trust_word(trust, behaviour), f"{trust_label(trust, behaviour)}{by}"
    # Also as the label of the mark, whose shape alone a screen reader would name.
    title = html.escape(f"{label}. {trust_explanation(trust, behaviour)}", quote=True)
    said = html.escape(seal or f"{MARKS[word]} {word if brief else label}")
    # A mark stays with its word, where both are short.
    whole = "white-space:nowrap;" if len(said) <= _SHORT + 2 else ""
    return (
        f"<span title='{title}' role='img' aria-label='{title}' style='opacity:.75;{whole}"
        f"font-size:.85em'>{said}</span>"
    )
