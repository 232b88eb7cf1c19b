"""What accompanies every number of a report: its trust, its estimator, its set, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagelens.contracts import SCORE
from stagelens.wording.sentences import Part, Sentence
from stagelens.wording.trust_words import (
    FIRST_ORDER as FIRST_ORDER_WORD,
)
from stagelens.wording.trust_words import (
    MARKS,
    TrustWord,
    trust_explanation,
    trust_label,
    trust_word,
    weakest,
)

from .finding import Cell, Seen

OBSERVED = "observed"
"""Takes the place of the estimator where what is shown was measured, not estimated."""

RECORDED = "the models that training recorded"
"""What behaviours after each boundary are measured on."""

FIRST_ORDER = "first-order sweep"
"""The estimator of contributions of steps and of training examples."""
_FIRST_ORDER = (
    "To first order: the derivative of the final behaviour along recorded updates, with all later "
    "steps carried through. It was not checked against a replay, so it says where to look, not how "
    "much."
)

UNKNOWN = "not known"
_UNKNOWN = "How far this can be trusted is not known; look at the view that it comes from."


@dataclass(frozen=True)
class Known:
    """What is known of one counterfactual, as printed.

    Attributes:
        stage: The stage that is left out; empty if everything is observed.
        of: The score that it is about, where a finding is about several; else empty.
        word: What is known.
        words: The same with the figures that matter.
        meaning: The same in sentences.
        by: The estimator.
        reliable: Whether it could be relied on before any replay; None where that is not said.
        expected_error: Relative error that nine of ten such estimates stay within; None where it is
            not known.
    """

    stage: str
    word: TrustWord
    words: str
    meaning: str
    by: str
    reliable: bool | None = None
    expected_error: float | None = None
    of: str = ""

    @property
    def named(self) -> str:
        """The stage, with the score where there are several: ``accuracy, dpo``."""
        return ", ".join(filter(None, (self.of, self.stage)))

    @property
    def mark(self) -> str:
        """A shape, so that trust words can be distinguished without colour."""
        return MARKS[self.word]


def known(seen: Seen) -> list[Known]:
    """What is known of every counterfactual of a finding; never empty."""
    # A file of a finding may be damaged: what is not named there is about the finding's behaviour.
    of = (*seen.trust_of, *[""] * len(seen.trust))
    also = f" Measured on {seen.observed}." if seen.observed else ""
    found = [
        Known(
            trust.stage,
            trust_word(trust, behaviour),
            trust_label(trust, behaviour),
            f"{trust_explanation(trust, behaviour)}{also}",
            trust.estimator,
            trust.reliable,
            trust.expected_error,
            name.removeprefix(SCORE),
        )
        for trust, name in zip(seen.trust, of, strict=False)
        for behaviour in [name or seen.behaviour or None]
    ]
    if found:
        return found
    if seen.observed:
        words = f"exact ({OBSERVED} on {seen.observed})"
        return [Known("", "exact", words, "Nothing in it is estimated.", OBSERVED)]
    if seen.estimator == FIRST_ORDER:
        words = f"{FIRST_ORDER_WORD} (first order, not checked)"
        return [Known("", FIRST_ORDER_WORD, words, _FIRST_ORDER, FIRST_ORDER)]
    # Findings pinned without trust: nothing is made up for them, and none is shown as exact.
    return [Known("", "rough", "rough (trust not known)", _UNKNOWN, UNKNOWN)]


def estimator(seen: Seen) -> str:
    """How the counterfactuals were obtained."""
    return seen.estimator or ", ".join(dict.fromkeys(each.by for each in known(seen)))


def sentences(seen: Seen) -> tuple[Sentence, ...]:
    """The sentence form, or the takeaway in words if no stage effect is shown. Never empty."""
    return seen.sentences or (Sentence((Part(seen.said),)),)


def trust_of_row(seen: Seen, row: Mapping[str, Cell]) -> tuple[TrustWord, str]:
    """The word for a row, and the same with the figures that matter.

    It is the row's own, as of a table of several estimates, else that of its stage, else the
    weakest of all that the finding rests on.

    Args:
        seen: The finding's.
        row: Column to value.
    """
    own = _own(seen, row)
    word = weakest(each.word for each in own)
    said = "; ".join(f"{each.named}: {each.words}" if each.named else each.words for each in own)
    other = _of_another(row, word)
    return (word, said) if other is None else (other, other)


def promise_of_row(seen: Seen, row: Mapping[str, Cell]) -> tuple[bool | None, float | None]:
    """What was promised of a row before any replay: reliable or not, and the expected error.

    Both are None where a row rests on several counterfactuals, or is of another estimate.

    Args:
        seen: The finding's.
        row: Column to value.
    """
    own = _own(seen, row)
    if len(own) > 1 or _of_another(row, own[0].word) is not None:
        return None, None
    return own[0].reliable, own[0].expected_error


def _own(seen: Seen, row: Mapping[str, Cell]) -> list[Known]:
    """What is known of a row's stage and score, else of all that the finding rests on."""
    found = known(seen)
    own = [each for each in found if each.stage == row.get("stage")] or found
    return [each for each in own if each.of and each.of == row.get("score")] or own


def _of_another(row: Mapping[str, Cell], word: TrustWord) -> TrustWord | None:
    """The row's own word where it differs, as in a table of several estimates."""
    told = row.get("trust")
    return next((one for one in MARKS if one == told != word), None)


def sentence_word(sentence: Sentence) -> TrustWord | None:
    """What is known of a sentence's number; None for a plain description, or if it says it."""
    known = sentence.trust
    return None if known is None or sentence.is_sealed else trust_word(known, sentence.behaviour)


def filters_text(filters: Mapping[str, str]) -> str:
    """Which examples were asked for."""
    return "; ".join(f"{name}: {value}" for name, value in filters.items()) or "none"
