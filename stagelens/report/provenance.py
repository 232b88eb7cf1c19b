"""What accompanies every number of a report: its trust, its estimator, its set, and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stagelens.wording.sentences import Part, Sentence
from stagelens.wording.trust_words import MARKS, trust_explanation, trust_label, trust_word

from .finding import Seen

OBSERVED = "observed"
"""Takes the place of trust and estimator where what is shown was measured, not estimated."""

RECORDED = "the models that training recorded"
"""What behaviours after each boundary are measured on."""

FIRST_ORDER = "first-order sweep"
"""The estimator of contributions of steps and of training examples."""
_FIRST_ORDER = (
    "To first order: the derivative of the final behaviour along recorded updates, with all later "
    "steps carried through. It was not checked against a replay, so it says where to look, not how "
    "much."
)

UNKNOWN = "trust not known"
_UNKNOWN = "How far this can be trusted is not known; look at the view that it comes from."


@dataclass(frozen=True)
class Known:
    """What is known of one counterfactual, as printed.

    Attributes:
        stage: The stage that is left out; empty if everything is observed.
        mark: A shape, so that trust words can be distinguished without colour.
        words: A few words with the figures that matter.
        meaning: The same in sentences.
        by: The estimator.
    """

    stage: str
    mark: str
    words: str
    meaning: str
    by: str


def known(seen: Seen) -> list[Known]:
    """What is known of every counterfactual of a finding; never empty."""
    behaviour = seen.behaviour or None
    found = [
        Known(
            trust.stage,
            MARKS[trust_word(trust, behaviour)],
            trust_label(trust, behaviour),
            trust_explanation(trust, behaviour),
            trust.estimator,
        )
        for trust in seen.trust
    ]
    if found:
        return found
    if seen.observed:
        words = f"{OBSERVED} on {seen.observed}"
        return [Known("", MARKS["exact"], words, "Nothing in it is estimated.", OBSERVED)]
    if seen.estimator == FIRST_ORDER:
        words = "first order, not verified"
        return [Known("", MARKS["rough"], words, _FIRST_ORDER, FIRST_ORDER)]
    # Findings pinned without trust: nothing is made up for them, and none is shown as exact.
    return [Known("", MARKS["rough"], UNKNOWN, _UNKNOWN, UNKNOWN)]


def estimator(seen: Seen) -> str:
    """How the counterfactuals were obtained."""
    return seen.estimator or ", ".join(dict.fromkeys(each.by for each in known(seen)))


def sentences(seen: Seen) -> tuple[Sentence, ...]:
    """The sentence form, or the takeaway in words if no stage effect is shown. Never empty."""
    return seen.sentences or (Sentence((Part(seen.said),)),)


def says_itself(seen: Seen) -> bool:
    """Whether the title already says everything, so that it need not be said twice."""
    return " ".join(str(each) for each in sentences(seen)).rstrip(".") == seen.title.rstrip(".")


def trust_text(seen: Seen, stage: object = None) -> str:
    """What is known, in one line: of one stage if the number is about one, else of all.

    Args:
        seen: The finding's.
        stage: A stage's name; anything else means all stages.
    """
    found = known(seen)
    own = [each for each in found if each.stage == stage] or found
    return "; ".join(f"{each.stage}: {each.words}" if each.stage else each.words for each in own)


def filters_text(filters: Mapping[str, str]) -> str:
    """Which examples were asked for."""
    return "; ".join(f"{name}: {value}" for name, value in filters.items()) or "none"
