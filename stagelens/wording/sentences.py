"""Stage effects as sentences that people read aloud, each with what is known of its number.

The words carry the trust: "would be 0.41 higher" where it is exact, "would be about 0.41 higher"
where an estimate can be relied on, "may be some 0.4 higher" where it is rough, and "may be some 0.4
higher or lower, its sign uncertain" where that is so; "on the answers recorded in grpo" where a
later stage was trained on answers that the model had sampled. An effect whose interval includes
zero shows no clear change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor, log10
from typing import Any, Literal

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, OTHER_EXAMPLES, SLICE_COLUMN, Behaviour, is_score
from stagelens.estimators.stage_trust import StageTrust

from . import intervals
from .intervals import Interval, example_interval, mean_interval
from .numbers import amount_text, count_text, is_share, phrase, scaled
from .trust_words import MARKS, REPLAY, clear_over_draws, holds, signs_known, trust_word

_TWO = 2.0
"""Standard deviations of the training noise that a finding has to exceed."""


@dataclass(frozen=True)
class Part:
    """A piece of a sentence; ``kind`` tells the page what to emphasise. Never markup.

    A seal is the mark and the word of what is known of the number before it.
    """

    text: str
    kind: Literal["plain", "stage", "group", "amount", "seal"] = "plain"


@dataclass(frozen=True)
class Sentence:
    """A sentence with what is known of its number.

    It says at its end if its number is about recorded answers only.

    Attributes:
        parts: Its words. Stage and group names come from data: escape them before showing.
        trust: What is known of the counterfactual behind it; None for plain descriptions.
        behaviour: The behaviour that its number is about.
    """

    parts: tuple[Part, ...]
    trust: StageTrust | None = None
    behaviour: str | None = None

    def __post_init__(self) -> None:
        known = self.trust
        if known is None or not known.on_samples or known.trust == "refused":
            return
        said = f", on the answers recorded in {' and '.join(known.on_samples)}."
        if not str(self).endswith(said):
            last = replace(self.parts[-1], text=self.parts[-1].text.removesuffix("."))
            object.__setattr__(self, "parts", (*self.parts[:-1], last, Part(said)))

    @property
    def is_sealed(self) -> bool:
        """Whether what is known of its number is among its words, so that nothing is put after."""
        return any(part.kind == "seal" for part in self.parts)

    def __str__(self) -> str:
        return "".join(part.text for part in self.parts)


def slice_parts(noun: str, column: str | None = None, value: object = None) -> tuple[Part, ...]:
    """Which examples a number is about: ``all images``, ``stamped images``, ...

    Args:
        noun: What an example is called, in the singular: ``image``, ``text`` or ``example``.
        column: Metadata column of the group; None for all examples.
        value: The group.
    """
    if column is None:
        return (Part(f"all {noun}s"),)
    if column == "group":
        return (Part(str(value), "group"), Part(f" {noun}s"))
    if column == "label":
        return (Part(f"{noun}s labelled "), Part(str(value), "group"))
    if column.startswith(SLICE_COLUMN):
        inside = "outside" if value == OTHER_EXAMPLES else "in"
        return (Part(f"{noun}s {inside} slice "), Part(column.removeprefix(SLICE_COLUMN), "group"))
    return (Part(f"{noun}s with {column} "), Part(str(value), "group"))


def mean_sentence(
    row: Mapping[str, Any],
    behaviour: Behaviour,
    noun: str,
    column: str | None,
    trust: StageTrust | None = None,
    against: tuple[Behaviour, Mapping[str, Any]] | None = None,
    ends: bool = False,
) -> Sentence:
    """One row of :func:`stage_summary` as a sentence a person can read aloud.

    Args:
        row: With ``stage``, ``group``, ``effect``, ``n``, and ``error`` and ``rms`` where known.
        behaviour: What was measured.
        noun: What an example is called.
        column: The column that ``group`` is a value of; ignored where ``group`` is null.
        trust: What is known of the stage's counterfactual.
        against: Another behaviour, with the same row of it, that says the opposite of the stage:
            one alone would be half of the truth.
        ends: Whether the ends of its interval over examples and the training noise are told, where
            they are known and no interval over draws is.
    """
    group = row["group"]
    about = slice_parts(noun, None if pd.isna(group) else column, group)
    if pd.isna(group) and is_score(behaviour) and row["n"] and row.get("missing"):
        have = "has" if row["n"] == 1 else "have"
        about = (Part(f"the {count_text(int(row['n']), noun)} that {have} this score"),)
    known = _how_sure(row, behaviour, trust) if ends else ""
    other: tuple[Part, ...] = ()
    if against is not None:
        kind, its = against
        # Seen from the model without the stage, where a loss may be higher as accuracy is.
        ways = ("worse", "better") if row["gain"] > 0 else ("better", "worse")
        names = [phrase(each) if each == ACCURACY else f"the {phrase(each)}"
                 for each in (behaviour, kind)]  # fmt: skip
        other = (
            Part(f", while {_mean_of(kind)}"),
            *would_be_on_average(its, kind, trust),
            Part(f": {ways[0]} by {names[0]}, {ways[1]} by {names[1]}"),
        )
    return Sentence(
        (
            Part("Without "),
            Part(str(row["stage"]), "stage"),
            Part(f", {_mean_of(behaviour)} on "),
            *about,
            *would_be_on_average(row, behaviour, trust),
            *over_draws(row, behaviour, f"{known}{count_text(int(row['n']), noun)}", trust),
            *other,
            Part("."),
        ),
        trust,
        behaviour.name,
    )


def _how_sure(row: Mapping[str, Any], behaviour: Behaviour, trust: StageTrust | None) -> str:
    """``95 %: 24 to 34, training noise ±2.0; ``; empty if neither is known, or draws say more."""
    if np.isfinite(float(row.get("draw_low", np.nan))):
        return ""
    said = []
    interval = mean_interval(row, trust, behaviour)
    if interval is not None and interval.is_clear and interval.low != interval.high:
        # With the error of an estimate in it, it is no longer one of 95 %.
        name = "interval" if interval.estimate else "95 %:"
        said.append(f"{name} {_ends(interval.low, interval.high, behaviour)}")
    noise = float(row.get("noise_sd", np.nan))
    if np.isfinite(noise):
        said.append(f"training noise ±{amount_text(_TWO * noise, behaviour, unit=False)}")
    return f"{', '.join(said)}; " if said else ""


def _mean_of(behaviour: Behaviour) -> str:
    return phrase(behaviour) if behaviour == ACCURACY else f"the mean {phrase(behaviour)}"


def over_draws(
    row: Mapping[str, Any], behaviour: Behaviour, count: str, trust: StageTrust | None = None
) -> tuple[Part, ...]:
    """How many examples a mean effect is over, and its interval over draws where there is one.

    Args:
        row: As :func:`mean_sentence` takes it, with ``draw_effect``, ``draw_low``, ``draw_high``
            and ``drawn`` where the recipe was drawn.
        behaviour: What was measured.
        count: Of the examples, and what else is said in parentheses.
        trust: What is known of the number of this run, which is said right behind it, because the
            interval over draws that follows is another matter.
    """
    low, high = (float(row.get(name, np.nan)) for name in ("draw_low", "draw_high"))
    if not (np.isfinite(low) and np.isfinite(high)):
        return _alike(row, behaviour, count, trust)
    if (own := intervals.over_draws(row)) is not None:
        if not own.is_clear and _is_printed(amount_text(float(row["effect"]), behaviour)):
            # The sentence has its ends already.
            return (Part(f" over {row['drawn']} ({count})"),)
        return (Part(f", 95 %: {_ends(low, high, behaviour)} over {row['drawn']} ({count})"),)
    unsure = ", so it is not known to come again" * bool(intervals.draws_hold_zero(row))
    effect, mean = float(row["effect"]), float(row["draw_effect"])
    single = float(row.get("draw_single", np.nan))
    apart = intervals.beside_draws(effect, mean, low, high, single, behaviour)
    # Another centre than this run's number is told where the interval does not show it.
    centre = f" {_way(mean, behaviour)} on average" if apart else ""
    return (
        *_in_this_run(behaviour, count, trust),
        Part(f"; of this recipe{centre}, 95 %: "),
        Part(f"{_ends(low, high, behaviour, way=True)} over {row['drawn']}{unsure}{apart}"),
    )


def _way(effect: float, behaviour: Behaviour) -> str:
    """An amount from the side of the counterfactual: ``0.41 lower``."""
    return f"{amount_text(abs(effect), behaviour)} {'lower' if effect > 0 else 'higher'}"


def _in_this_run(behaviour: Behaviour, count: str, trust: StageTrust | None) -> tuple[Part, ...]:
    if trust is None:
        return (Part(f" in this run ({count})"),)
    return (Part(" in this run ("), Part(seal(trust, behaviour.name), "seal"), Part(f"; {count})"))


def seal(trust: StageTrust, behaviour: str | None) -> str:
    """The mark and the word of what is known, and by which estimator: ``● exact, by replay``."""
    word = trust_word(trust, behaviour)
    # The start of the last stage is exact without any estimate.
    by = f", by {trust.estimator}" if trust.estimator == REPLAY or word != "exact" else ""
    return f"{MARKS[word]} {word}{by}"


def _alike(
    row: Mapping[str, Any], behaviour: Behaviour, count: str, trust: StageTrust | None
) -> tuple[Part, ...]:
    """Of draws that are all alike, which give no interval: that they are; else the count alone."""
    # As accuracy is, where a stage turns the very same answers every time.
    if not row.get("drawn") or row.get("draw_sd") != 0:
        return (Part(f" ({count})"),)
    effect, every = float(row["effect"]), float(row["draw_effect"])
    if np.isclose(effect, every, rtol=1e-9):
        return (Part(f", the same in each of {row['drawn']} ({count})"),)
    return (
        *_in_this_run(behaviour, count, trust),
        Part(f"; {_way(every, behaviour)} in each of {row['drawn']}"),
    )


def _ends(low: float, high: float, behaviour: Behaviour, way: bool = False) -> str:
    """The ends of an interval of effects from the side of the counterfactual."""
    # effect = final - without, so the model without the stage is lower by the upper end.
    if low <= 0 <= high:
        lower, higher = (amount_text(end, behaviour) for end in (high, low))
        return f"{lower} lower to {higher} higher"
    nearer, further = sorted((abs(low), abs(high)))
    said = f"{amount_text(nearer, behaviour, unit=False)} to "
    if not way:
        return said + amount_text(further, behaviour, unit=False)
    return f"{said}{amount_text(further, behaviour)} {'lower' if low > 0 else 'higher'}"


def would_be_on_average(
    row: Mapping[str, Any], behaviour: Behaviour, trust: StageTrust | None
) -> tuple[Part, ...]:
    """:func:`would_be` of a mean effect, whose interval may include zero.

    An amount of this run is not emphasised where its interval over draws holds zero.

    Args:
        row: As :func:`mean_sentence` takes it.
        behaviour: What was measured.
        trust: What is known of the stage's counterfactual.
    """
    interval = mean_interval(row, trust, behaviour)
    said = _would_be_within(float(row["effect"]), interval, behaviour, trust)
    if intervals.draws_hold_zero(row) and intervals.over_draws(row) is None:
        return tuple(Part(part.text) for part in said)
    return said


def _would_be_within(
    effect: float, interval: Interval | None, behaviour: Behaviour, trust: StageTrust | None
) -> tuple[Part, ...]:
    plain = not _is_printed(amount_text(effect, behaviour)) or not signs_known(
        trust, behaviour.name
    )
    if interval is None or interval.is_clear or plain:
        return would_be(effect, behaviour, trust)
    verb = " would" if is_certain(trust, behaviour) else " may"
    return (
        Part(f"{verb} show "),
        Part("no clear change", "amount"),
        Part(f": {_between(interval, behaviour)}"),
    )


def _between(interval: Interval, behaviour: Behaviour) -> str:
    """The ends of an interval from the side of the counterfactual: ``0.1 lower to 0.3 higher``."""
    # effect = final - without, so the model without the stage is lower by the upper end.
    lower, higher = (amount_text(end, behaviour) for end in (interval.high, interval.low))
    return f"{lower} lower to {higher} higher"


def example_sentence(
    stage: str,
    behaviour: Behaviour,
    effect: float,
    trust: StageTrust | None = None,
    answers: tuple[str, str] | None = None,
    label: str | None = None,
    within_noise: bool = False,
    error: float = np.nan,
    final: float = np.nan,
) -> Sentence:
    """One stage's effect on one example: "Without *shortcut*, the loss would be 0.41 higher.".

    Args:
        stage: The stage that is left out.
        behaviour: What was measured.
        effect: ``final - without``; NaN where the stage was refused.
        trust: What is known of the counterfactual.
        answers: Of the final model and of the counterfactual; mentioned where they differ.
        label: Tells whether the counterfactual's answer is right.
        within_noise: Whether the effect is known to be within training noise.
        error: What the error of the estimate adds on either side, as ``intervals.example_error``
            gives it; NaN where it is not known.
        final: The behaviour of the final model; NaN where it is not known.
    """
    opening = (Part("Without "), Part(stage, "stage"))
    if trust is not None and trust.trust == "refused":
        return Sentence((*opening, Part(f": not known. {trust.reason}")), trust, behaviour.name)
    verb = "would be" if is_certain(trust, behaviour) else "may be"
    changed: tuple[Part, ...] = ()
    if answers is not None and answers[0] != answers[1]:
        verdict = "" if label is None else " (right)" if answers[1] == label else " (wrong)"
        changed = (
            Part(", and the answer " if verb == "would be" else ", and the answer perhaps "),
            Part(f"{answers[1]}{verdict}", "amount"),
            Part(f" instead of {answers[0]}"),
        )
    noise = (Part("; this is within training noise, so not a finding"),) if within_noise else ()
    interval = example_interval(effect, error, behaviour, final)
    said = Part(f", the {phrase(behaviour)}"), *_would_be_within(effect, interval, behaviour, trust)
    return Sentence((*opening, *said, *changed, *noise, Part(".")), trust, behaviour.name)


def is_certain(trust: StageTrust | None, behaviour: Behaviour) -> bool:
    """Whether a number of this trust is stated without reservation.

    A mean over draws is, if its interval leaves out zero, because that interval is printed with it.
    """
    name = behaviour.name
    return trust is None or holds(trust, name) or clear_over_draws(trust, name)


def would_be(effect: float, behaviour: Behaviour, trust: StageTrust | None) -> tuple[Part, ...]:
    """What the behaviour would be without the stage, as strongly as its trust allows."""
    if not np.isfinite(effect):
        return (Part(" is not known"),)
    certain = is_certain(trust, behaviour)
    verb = Part(" would be " if certain else " may be ")
    text = amount_text(effect, behaviour)
    if not _is_printed(text):
        # Neither a rounded 0 nor an estimated one has to be 0.
        same = "the same" if effect == 0 and certain else "practically the same"
        return (verb, Part(same, "amount"))
    if not certain:
        text = f"some {_roughly(effect, behaviour)}"
    elif trust is not None and trust.trust != "exact":
        text = f"about {text}"
    # effect = final - without: where it is positive, the model without the stage is lower.
    way = ("lower", "higher") if effect > 0 else ("higher", "lower")
    if signs_known(trust, behaviour.name):
        return (verb, Part(f"{text} {way[0]}", "amount"))
    refuted = trust is not None and trust_word(trust, behaviour.name) == "does not agree"
    why = ", and a replay does not agree" if refuted else ", its sign uncertain"
    return (verb, Part(f"{text} {' or '.join(way)}", "amount"), Part(why))


def _is_printed(text: str) -> bool:
    """Whether an amount is not rounded to zero."""
    return any(digit in text for digit in "123456789")


def _roughly(effect: float, behaviour: Behaviour) -> str:
    """The size of an effect to its first significant digit: ``40 points``, ``0.3``."""
    size = abs(scaled(effect, behaviour))
    # Its caller has ruled out 0, which has no logarithm.
    digits = max(-floor(log10(size)), 0)
    text = f"{round(size, -floor(log10(size))):.{digits}f}"
    return f"{text} points" if is_share(behaviour) else text
