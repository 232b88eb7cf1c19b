"""What shares say, in sentences; how they are read, and what they must not be taken for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.headlines import FEWEST
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.intervals import Interval
from stagelens.wording.numbers import (
    amount_text,
    count_text,
    is_share,
    phrase,
    signed_text,
    value_text,
)
from stagelens.wording.sentences import Part, Sentence, is_certain, slice_parts, would_be
from stagelens.wording.trust_words import may_be_finding, trust_word, weakest

from .means import Mean
from .pairs import Pair
from .share_table import SEEN_AFTER, SHARE, WITHOUT, Shares

TITLES = {WITHOUT: "Without it", SHARE: "Share", SEEN_AFTER: "Seen after"}
"""Reading to its name on pages."""

QUESTIONS = {
    WITHOUT: "What would the model do had this stage alone not happened? These effects do not add "
    "up.",
    SHARE: "What is a stage's fair part (Shapley) of what training as a whole did? The mean, over "
    "all orders in which the stages could join, of what its joining changes; shares add up.",
    SEEN_AFTER: "When did it become visible? The difference between the boundary before a stage "
    "and the one after it; it adds up, too, but credits whoever was last to touch it.",
}
"""Reading to what it answers."""

WHICH = (
    "Which to report: for what removing a stage would change, its effect when it is left out; for "
    "how much of the total it is answerable for, its share."
)

SPLITTING = (
    "Cutting a stage in two changes shares, and a party that cuts its data in two can gain: take "
    "as one what belongs to one party, before looking."
)
NO_INTENT = (
    "A share is about updates of this training in this order, with stages in their places; not "
    "about intent, nor about law. Choose behaviour and set before looking."
)
BY_TASK_VECTOR = (
    "By task vectors a model without some stages is the final one less these stages' changes, so "
    "what stages do only together shows as far as the model is not linear in its weights; that is "
    "rough where stages interact."
)


def cautions(found: Shares) -> list[str]:
    """What shares must not be taken for, where it applies."""
    said = [SPLITTING] if found.m > 1 else []
    if found.estimator == "task-vector":
        said.append(BY_TASK_VECTOR)
    if found.sampled is not None:
        pairs = count_text(found.sampled.pairs, "pair")
        said.append(
            f"Of {found.m} stages all coalitions would be {2**found.m:,} models; shares rest on "
            f"{pairs} of an order of joining and its reverse, drawn at random, and their intervals "
            "include that choice."
        )
    said += [found.left_out] if found.left_out else []
    return [*said, NO_INTENT]


def total_sentence(
    found: Shares,
    noun: str,
    column: str | None = None,
    group: str | None = None,
    chosen: np.ndarray | None = None,
) -> Sentence:
    """What training as a whole did, and each stage's share of it."""
    base, final = found.level(0, chosen), found.level(found.full, chosen)
    means = found.means(SHARE, chosen)
    change = final - base
    way = "higher" if change > 0 else "lower"
    behaviour = found.behaviour
    who = f"Over {found.over} of the recipe, training" if found.over else "Training"
    parts = [
        Part(f"{who} as a whole made {subject(behaviour)} on "),
        *slice_parts(noun, column, group),
        Part(" "),
        Part(f"{amount_text(change, behaviour)} {way}", "amount"),
        Part(f", from {value_text(base, behaviour)} to {value_text(final, behaviour)}. Shares: "),
    ]
    for number, one in enumerate(means):
        parts += [Part(", ")] if number else []
        parts += [Part(one.name, "stage"), Part(f" {number_text(one, behaviour)}")]
    parts.append(Part("."))
    return Sentence(tuple(parts), _least(means, behaviour), behaviour.name)


def share_sentence(one: Mean, behaviour: Behaviour, about: Sequence[Part], noun: str) -> Sentence:
    """One stage's share of what training did to a mean, as it was measured, with its interval."""
    name, what = Part(one.name, "stage"), (Part(f" {subject(behaviour)} on "), *about)
    if not np.isfinite(one.mean):
        said: tuple[Part, ...] = (name, Part("'s share in"), *what, Part(" is not known."))
        return Sentence(said, one.trust, behaviour.name)
    # Over draws nothing is estimated, and how far the mean varies is printed.
    exact = one.trust.trust == "exact" or bool(one.trust.over_draws)
    certain = exact or is_certain(one.trust, behaviour)
    verb = " may have" if not certain else " was measured to" if exact else " was estimated to"
    # It speaks of the model without something: seen from there, a share is a lack.
    _, amount, *why = would_be(-one.mean, behaviour, one.trust)
    if one.interval is not None and not one.is_clear:
        why, unclear = [], Part("no clear change" if certain else "not clearly", "amount")
        said = (Part(f"{verb} make "), unclear, Part(" in"), *what)
        if not certain:
            said = (Part(" may have changed"), *what, Part(", but "), unclear)
    else:
        left = "same" in amount.text
        do = ("leave" if left else "make") if certain else "left" if left else "made"
        said = (Part(f"{verb} {do}"), *what, Part(" "), amount, *why)
    ends = Part(f", by its share ({_how_far(one, behaviour, noun)}).")
    return Sentence((name, *said, ends), one.trust, behaviour.name)


def _how_far(one: Mean, behaviour: Behaviour, noun: str) -> str:
    """The interval of a share: over draws where there are some, else over examples."""
    count = count_text(one.n, noun)
    if one.interval is None:
        over = "over draws" if one.trust.over_draws else "in one run"
        return f"{count}; how far it varies {over} is not known"
    over = f"{one.interval.drawn} of the recipe, {count}" if one.interval.drawn else count
    return f"95 % over {over}: {_between(one.interval, behaviour)}"


def example_sentence(one: Mean, behaviour: Behaviour, reading: str = SHARE) -> Sentence:
    """One stage's share of what training did to one example, or what is seen after it."""
    name = Part(one.name, "stage")
    of = f" of the {phrase(behaviour)}"
    opening = (
        (Part("Seen after "), name) if reading == SEEN_AFTER else (name, Part(f"'s share{of}"))
    )
    if not np.isfinite(one.mean):
        said: tuple[Part, ...] = (Part(f": not known. {one.trust.reason}"),)
    else:
        unit = f" {behaviour.unit}" if behaviour.unit and not is_share(behaviour) else ""
        number = Part(number_text(one, behaviour, unit), "amount")
        said = (Part(": "), number, Part(f"{_judged(one, behaviour)}."))
    return Sentence((*opening, *said), one.trust, behaviour.name)


def rest_sentence(found: Shares, chosen: np.ndarray | None = None) -> str:
    """How much of what training did the effects of leaving out single stages leave unsaid."""
    means = [one.mean for one in found.means(WITHOUT, chosen)]
    total = found.level(found.full, chosen) - found.level(0, chosen)
    if found.m < 2 or not np.isfinite([*means, total]).all():
        return ""
    of = signed_text(total, found.behaviour)
    return (
        f"Together these effects are {signed_text(sum(means), found.behaviour)}, while training as "
        f"a whole did {of}: the rest is what stages do only together. Shares add up to all of it."
    )


def pair_sentences(
    pairs: Sequence[Pair],
    behaviour: Behaviour,
    noun: str,
    column: str | None = None,
    group: str | None = None,
    limit: int = 3,
) -> list[Sentence]:
    """What stages do only because others came before, the strongest first.

    See :func:`pair_rule` for which are told.
    """
    about = slice_parts(noun, column, group)
    told = sorted(pairs, key=lambda pair: -abs(pair.given_all.mean))
    found = (
        _pair_sentence(pair, behaviour, about) for pair in told if _stands_out(pair, behaviour)
    )
    return [sentence for sentence in found if sentence is not None][:limit]


def pair_rule(pairs: Sequence[Pair], noun: str) -> str:
    """Which pairs are told, as it is printed beside them."""
    over = f"{noun}s, with the error of an estimate"
    drawn = [pair.given_all.interval.drawn for pair in pairs if pair.given_all.interval is not None]
    if any(drawn):
        over = f"{drawn[0]} of the recipe"
    return (
        f"{count_text(len(pairs), 'pair')} looked at. A pair is told where its interval (95 % over "
        f"{over}) leaves out zero, over at least "
        f"{count_text(FEWEST, noun)}, and no sign in it is uncertain."
    )


def _stands_out(pair: Pair, behaviour: Behaviour) -> bool:
    numbers = (pair.given_all, pair.after_first, pair.without_first)
    signs = all(may_be_finding(one.trust, behaviour.name) for one in numbers)
    return pair.in_turn and pair.given_all.n >= FEWEST and pair.given_all.is_clear and signs


def _pair_sentence(pair: Pair, behaviour: Behaviour, about: Sequence[Part]) -> Sentence | None:
    after, before = (_side(one, behaviour) for one in (pair.after_first, pair.without_first))
    grows = abs(pair.after_first.mean) > abs(pair.without_first.mean)
    verb = {
        (-1, -1): "does more harm because" if grows else "would do more harm without",
        (-1, 0): "does its harm only because",
        (-1, 1): "does its harm only because",
        (1, -1): "helps only because",
        (1, 0): "helps only because",
        (1, 1): "helps more because" if grows else "would help more without",
        (0, 1): "would help without",
        (0, -1): "would do harm without",
    }.get((after, before))
    if verb is None:
        return None
    # "because X came before", but "without X before it".
    ends = " came before" if verb.endswith("because") else " before it"
    return Sentence(
        (
            Part(pair.second, "stage"),
            Part(f" {verb} "),
            Part(pair.first, "stage"),
            Part(f"{ends}: in the final model it {_makes(pair.after_first, behaviour)} "),
            Part(f"{subject(behaviour)} on "),
            *about,
            *_amount(pair.after_first, behaviour),
            Part("; had "),
            Part(pair.first, "stage"),
            Part(" not happened, it would "),
            *_would(pair.without_first, behaviour),
            Part("."),
        ),
        pair.given_all.trust,
        behaviour.name,
    )


def _side(one: Mean, behaviour: Behaviour) -> int:
    """1 for credit, -1 for blame, 0 where the interval includes zero or is not known."""
    if not one.is_clear:
        return 0
    return 1 if behaviour.sign * one.mean > 0 else -1


def _makes(one: Mean, behaviour: Behaviour) -> str:
    return "makes" if one.is_clear else "does not clearly change"


def _amount(one: Mean, behaviour: Behaviour) -> tuple[Part, ...]:
    if not one.is_clear:
        return (Part(f" ({_between(one.interval, behaviour)})"),)
    return (Part(" "), Part(_changed(one, behaviour), "amount"))


def _would(one: Mean, behaviour: Behaviour) -> tuple[Part, ...]:
    if not one.is_clear:
        return (Part(f"not clearly change it ({_between(one.interval, behaviour)})"),)
    return (Part("make it "), Part(_changed(one, behaviour), "amount"))


def _changed(one: Mean, behaviour: Behaviour) -> str:
    about = "" if one.trust.trust == "exact" else "about "
    way = "higher" if one.mean > 0 else "lower"
    return f"{about}{amount_text(one.mean, behaviour)} {way}"


def _between(interval: Interval | None, behaviour: Behaviour) -> str:
    if interval is None:
        return "not known how far"
    low, high = (signed_text(end, behaviour) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def number_text(one: Mean, behaviour: Behaviour, unit: str = "") -> str:
    """A mean with its sign, and with how certain that is."""
    if not np.isfinite(one.mean):
        return "not known"
    if one.interval is not None and one.interval.drawn:
        low = signed_text(one.interval.low, behaviour, unit=False)
        ends = f"{low} to {signed_text(one.interval.high, behaviour)}"
        unclear = "" if one.is_clear else ", no clear change"
        return f"{signed_text(one.mean, behaviour)}{unit} (95 %: {ends}{unclear})"
    if one.trust.over_draws:  # of few draws, or of draws that are all alike
        return f"{signed_text(one.mean, behaviour)}{unit} (no interval over draws)"
    if not may_be_finding(one.trust, behaviour.name):
        return f"±{amount_text(one.mean, behaviour)}{unit}, its sign uncertain"
    certain = is_certain(one.trust, behaviour)
    hedge = "" if one.trust.trust == "exact" else "about " if certain else "perhaps "
    text = f"{hedge}{signed_text(one.mean, behaviour)}{unit}"
    return f"{text} (no clear change)" if one.interval and not one.is_clear else text


def _judged(one: Mean, behaviour: Behaviour) -> str:
    """Whether a number is credit or blame; empty where that is not known, or it rounds to zero."""
    unclear = one.interval is not None and not one.is_clear
    known = may_be_finding(one.trust, behaviour.name) and not unclear
    if not known or signed_text(one.mean, behaviour)[0] not in "+−":
        return ""
    return " (credit)" if behaviour.sign * one.mean > 0 else " (blame)"


def _least(means: Sequence[Mean], behaviour: Behaviour) -> StageTrust:
    word = weakest(trust_word(one.trust, behaviour.name) for one in means)
    return next(one.trust for one in means if trust_word(one.trust, behaviour.name) == word)


def subject(behaviour: Behaviour) -> str:
    """``accuracy``, or ``the mean margin``."""
    return phrase(behaviour) if behaviour == ACCURACY else f"the mean {phrase(behaviour)}"
