"""Stage effects as sentences that people read aloud, each with what is known of its number.

The words carry the trust: "would be 0.41 higher" where it is exact, "would be about 0.41 higher"
where an estimate may be leaned on, "may be some 0.4 higher" where it is rough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Any, Literal

import numpy as np
import pandas as pd

from .contracts import Behaviour
from .results import StageTrust
from .slices.saved import COLUMN, OTHERS
from .standing import may_lean_on, standing_of
from .summary import ACCURACY, amount_text, count_text, is_share, phrase, scaled, stage_summary

FEWEST = 20
"""Examples that a headline must rest on: of fewer, a single one moves accuracy by 5 points."""


@dataclass(frozen=True)
class Part:
    """A piece of a sentence; ``kind`` tells the page what to emphasise. Never markup."""

    text: str
    kind: Literal["plain", "stage", "group", "amount"] = "plain"


@dataclass(frozen=True)
class Sentence:
    """A sentence with what is known of its number.

    Attributes:
        parts: Its words. Stage and group names come from data: escape them before showing.
        trust: What is known of the counterfactual behind it; None for plain descriptions.
        behaviour: The behaviour that its number is of.
    """

    parts: tuple[Part, ...]
    trust: StageTrust | None = None
    behaviour: str | None = None

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
    if column.startswith(COLUMN):
        inside = "outside" if value == OTHERS else "in"
        return (Part(f"{noun}s {inside} slice "), Part(column.removeprefix(COLUMN), "group"))
    return (Part(f"{noun}s with {column} "), Part(str(value), "group"))


def mean_sentence(
    row: Mapping[str, Any],
    behaviour: Behaviour,
    noun: str,
    column: str | None,
    trust: StageTrust | None = None,
) -> Sentence:
    """One row of :func:`stage_summary` as a sentence a person can read aloud.

    Args:
        row: With ``stage``, ``group``, ``effect``, ``n``.
        behaviour: What was measured.
        noun: What an example is called.
        column: The column that ``group`` is a value of; ignored where ``group`` is null.
        trust: What is known of the stage's counterfactual.
    """
    group = row["group"]
    about = slice_parts(noun, None if pd.isna(group) else column, group)
    subject = phrase(behaviour) if behaviour == ACCURACY else f"the mean {phrase(behaviour)}"
    return Sentence(
        (
            Part("Without "),
            Part(str(row["stage"]), "stage"),
            Part(f", {subject} on "),
            *about,
            *would_be(float(row["effect"]), behaviour, trust),
            Part(f" ({count_text(int(row['n']), noun)})."),
        ),
        trust,
        behaviour.name,
    )


def example_sentence(
    stage: str,
    behaviour: Behaviour,
    effect: float,
    trust: StageTrust | None = None,
    answers: tuple[str, str] | None = None,
    label: str | None = None,
    within_noise: bool = False,
) -> Sentence:
    """One stage's effect on one example: "Without *shortcut*, the loss would be 0.41 higher.".

    Args:
        stage: The stage that is left out.
        behaviour: What was measured.
        effect: ``final - without``; NaN where the stage was refused.
        trust: What is known of the counterfactual.
        answers: Of the final model and of the counterfactual; said where they differ.
        label: Tells whether the counterfactual's answer is right.
        within_noise: Whether the effect is known to be within training noise.
    """
    opening = (Part("Without "), Part(stage, "stage"))
    if trust is not None and trust.trust == "refused":
        return Sentence((*opening, Part(f": not known. {trust.reason}")), trust, behaviour.name)
    verb = "would be" if _certain(trust, behaviour) else "may be"
    changed: tuple[Part, ...] = ()
    if answers is not None and answers[0] != answers[1]:
        verdict = "" if label is None else " (right)" if answers[1] == label else " (wrong)"
        changed = (
            Part(", and the answer " if verb == "would be" else ", and the answer perhaps "),
            Part(f"{answers[1]}{verdict}", "amount"),
            Part(f" instead of {answers[0]}"),
        )
    noise = (Part("; this is within training noise, so no finding"),) if within_noise else ()
    said = Part(f", the {phrase(behaviour)}"), *would_be(effect, behaviour, trust)
    return Sentence((*opening, *said, *changed, *noise, Part(".")), trust, behaviour.name)


def _certain(trust: StageTrust | None, behaviour: Behaviour) -> bool:
    return trust is None or may_lean_on(trust, behaviour.name)


def would_be(effect: float, behaviour: Behaviour, trust: StageTrust | None) -> tuple[Part, ...]:
    """What the behaviour would be without the stage, as strongly as its trust allows."""
    if not np.isfinite(effect):
        return (Part(" is not known"),)
    certain = _certain(trust, behaviour)
    verb = Part(" would be " if certain else " may be ")
    text = amount_text(effect, behaviour)
    if not any(c in "123456789" for c in text):
        same = "the same" if effect == 0 and certain else "practically the same"
        return (verb, Part(same, "amount"))
    if not certain:
        text = f"some {_roughly(effect, behaviour)}"
    elif trust is not None and trust.trust != "exact":
        text = f"about {text}"
    return (verb, Part(f"{text} {'lower' if effect > 0 else 'higher'}", "amount"))


def _roughly(effect: float, behaviour: Behaviour) -> str:
    """The size of an effect to its first significant digit: ``40 points``, ``0.3``."""
    size = abs(scaled(effect, behaviour))
    digits = max(-floor(log10(size)), 0)
    text = f"{round(size, -floor(log10(size))):.{digits}f}"
    return f"{text} points" if is_share(behaviour) else text


def headlines(
    table: pd.DataFrame,
    behaviour: Behaviour,
    stages: Sequence[str],
    trust: Mapping[str, StageTrust],
    noun: str = "example",
    by: str | None = None,
    limit: int = 3,
    groups_only: bool = False,
    orders: pd.DataFrame | None = None,
) -> list[Sentence]:
    """The strongest mean effects as sentences, each of another stage or of opposite sign.

    Only what stands out is said: a mean effect over at least :data:`FEWEST` examples must exceed
    two standard errors over them and, where it is known, the training noise. Stages that are
    refused, and those whose estimate does not agree with its replay, give none. What may be leaned
    on comes before what is rough; of equals the strongest blame comes first, because that is what
    people act on, and the others follow by size.

    Args:
        table: An effect table, with :func:`with_accuracy` applied where accuracy is asked for.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        trust: What is known of each stage's counterfactual.
        noun: What an example is called.
        by: Metadata column whose groups are looked at beside all examples.
        limit: How many sentences at most.
        groups_only: Say nothing about all examples, because ``table`` is a part of them.
        orders: Effects in several orders of the batches; None where the noise is not known.
    """
    frames = [] if groups_only else [stage_summary(table, behaviour, stages, None, orders)]
    if by is not None:
        frames.append(stage_summary(table, behaviour, stages, by, orders))
    rows = []
    for row in (row for frame in frames for row in frame.to_dict("records")):
        known = trust.get(str(row["stage"]))
        if _stands_out(row) and (
            known is None or standing_of(known, behaviour.name) not in ("disagrees", "refused")
        ):
            rows.append((not _certain(known, behaviour), -abs(row["effect"]), row))
    rows.sort(key=lambda each: each[:2])
    blamed = [row for rough, _, row in rows if rough == rows[0][0] and row["gain"] < 0]
    chosen: list[dict[str, Any]] = []
    for row in [*blamed[:1], *(row for *_, row in rows)]:
        seen = {(each["stage"], each["gain"] > 0) for each in chosen}
        if (row["stage"], row["gain"] > 0) not in seen and len(chosen) < limit:
            chosen.append(row)
    return [mean_sentence(row, behaviour, noun, by, trust.get(str(row["stage"]))) for row in chosen]


def _stands_out(row: Mapping[str, Any]) -> bool:
    if row["n"] < FEWEST or not np.isfinite(row["effect"]) or row["effect"] == 0:
        return False
    within = pd.notna(row["within_noise"]) and bool(row["within_noise"])
    return not within and bool(abs(row["effect"]) > 2 * row["error"])
