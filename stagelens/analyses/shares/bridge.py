"""Why a stage's effect and its share may have opposite signs, in a sentence with both numbers."""

from __future__ import annotations

import numpy as np

from stagelens.contracts import Behaviour
from stagelens.wording.folding import strongest
from stagelens.wording.numbers import signed_text
from stagelens.wording.sentences import Part, Sentence
from stagelens.wording.trust_words import may_be_finding

from .means import Mean
from .sentences import WHICH, number_text
from .share_table import ALONE, SHARE, WITHOUT, Shares

MOST = 3
"""Stages that are told of."""


def bridges(
    found: Shares,
    chosen: np.ndarray | None = None,
    example: int | None = None,
    only: str | None = None,
) -> list[Sentence]:
    """One sentence per stage whose effect and share have different signs; of many, the starkest.

    Both numbers are right then, and whoever reads only one takes the other for a contradiction.
    The last sentence says which of the two answers which question; it is left out where one stage
    alone is asked about, because others are then told of beside it.

    Args:
        found: From ``share_table.shares_of``.
        chosen: (N,) which examples the means are over; None for all of them.
        example: The place of a single example in the set, in place of means.
        only: Of which stage; None for all.
    """
    effects, shares, alone = (
        found.means(each, chosen) if example is None else found.of_example(each, example)
        for each in (WITHOUT, SHARE, ALONE)
    )
    told = [
        each
        for each in zip(effects, shares, alone, strict=True)
        if only in (None, each[0].name) and _differ(each[0], each[1], found.behaviour)
    ]
    kept = strongest((effect.mean - share.mean for effect, share, _ in told), MOST)
    said = [_sentence(*told[at], found.behaviour) for at in kept]
    return [*said, Sentence((Part(WHICH),))] if said and only is None else said


def _differ(one: Mean, other: Mean, behaviour: Behaviour) -> bool:
    """Whether two numbers have different signs, and not merely because neither is clear."""
    known = all(may_be_finding(each.trust, behaviour.name) for each in (one, other))
    signs = {_sign(each, behaviour) for each in (one, other)}
    unclear = all(each.interval is not None and not each.is_clear for each in (one, other))
    return known and signs == {"+", "\N{MINUS SIGN}"} and not unclear


def _sign(one: Mean, behaviour: Behaviour) -> str:
    """As it is printed; neither plus nor minus where it is not known, or rounds to zero."""
    return signed_text(one.mean, behaviour)[0] if np.isfinite(one.mean) else ""


def _sentence(effect: Mean, share: Mean, alone: Mean, behaviour: Behaviour) -> Sentence:
    parts: tuple[Part, ...] = (
        Part(effect.name, "stage"),
        Part(
            " gets numbers of opposite sign, and both hold: taken out of the final model, where "
            "all other stages happened, its effect is "
        ),
        Part(number_text(effect, behaviour), "amount"),
        Part("; its share, which averages over every set of stages that it could have joined, is "),
        Part(number_text(share, behaviour), "amount"),
    )
    # What it did where others were missing is most plain where all of them were.
    if _sign(alone, behaviour) == _sign(share, behaviour):
        parts += (Part(", because it worked the other way where others were missing: "),)
        parts += (Part("alone it gives "), Part(number_text(alone, behaviour), "amount"))
    return Sentence((*parts, Part(".")), share.trust, behaviour.name)
