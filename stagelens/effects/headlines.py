"""The strongest mean effects of a table as sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.intervals import chance_over_examples, mean_interval
from stagelens.wording.sentences import Sentence, is_certain, mean_sentence
from stagelens.wording.trust_words import may_be_finding, trust_of_row

from .draws import DrawnEffects
from .summary import stage_summaries

FEWEST = 20
"""Examples that a headline must rest on: at 20, a single one moves accuracy by 5 points."""


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
    draws: DrawnEffects | None = None,
    other: Behaviour | None = None,
) -> list[Sentence]:
    """The strongest mean effects as sentences, each for another stage or of opposite sign.

    Only what stands out is stated: a mean effect over at least :data:`FEWEST` examples must exceed
    chance over them (95 %) and, where these are known, the training noise and the error of
    the estimate (:func:`~stagelens.wording.intervals.mean_interval`). Where the recipe was drawn
    several times, the interval over draws stands for the training noise: it must leave out zero.
    Stages that are refused, and those whose estimate does not agree with its replay or has an
    uncertain sign, give none. Effects that can be relied on come before rough ones; within each
    kind the strongest blame comes first, because people act on it, and the others follow by size.

    Args:
        table: An effect table, with :func:`with_accuracy` applied where accuracy is asked for.
        behaviour: Which of its behaviours.
        stages: Stage names in training order.
        trust: What is known of each stage's counterfactual.
        noun: What an example is called.
        by: Metadata column whose groups are considered as well as all examples.
        limit: The largest number of sentences.
        groups_only: State nothing about all examples, because ``table`` holds only some of them.
        orders: Effects in several orders of the batches; None where the noise is not known.
        draws: Effects in several draws of the recipe; None where there are none.
        other: A behaviour of ``table`` that is named too where it says the opposite of a stage;
            see :func:`meant_too`.
    """
    wanted = [*([] if groups_only else [None]), *([] if by is None else [by])]
    every = stage_summaries([table], behaviour, stages, wanted, orders, draws)
    beside = None
    if other is not None:
        beside = other, stage_summaries([table], other, stages, wanted, orders, draws)
    return of_summaries(every, behaviour, trust, noun, by, limit, beside)


def of_summaries(
    every: Sequence[pd.DataFrame],
    behaviour: Behaviour,
    trust: Mapping[str, StageTrust],
    noun: str = "example",
    by: str | None = None,
    limit: int = 3,
    beside: tuple[Behaviour, Sequence[pd.DataFrame]] | None = None,
) -> list[Sentence]:
    """:func:`headlines` of what :func:`stage_summary` makes of them, over all or by group.

    ``beside`` is the other behaviour, with the same summaries of it.
    """
    rows = []
    for row in (row for frame in every for row in frame.to_dict("records")):
        known = _known(trust, row, behaviour)
        if _stands_out(row, known, behaviour) and may_be_finding(known, behaviour.name):
            rows.append((not is_certain(known, behaviour), -abs(row["effect"]), row))
    rows.sort(key=lambda each: each[:2])  # not by the row, which has no order: ties stay in place
    # Only as certain as the best row: a rough blame does not push aside what can be relied on.
    blamed = [row for rough, _, row in rows if rough == rows[0][0] and row["gain"] < 0]
    chosen: list[dict[str, Any]] = []
    for row in [*blamed[:1], *(row for *_, row in rows)]:
        seen = {(each["stage"], each["gain"] > 0) for each in chosen}
        if (row["stage"], row["gain"] > 0) not in seen and len(chosen) < limit:
            chosen.append(row)
    sentences = []
    for row in chosen:
        known = _known(trust, row, behaviour)
        against = _against(row, beside, trust)
        sentences.append(mean_sentence(row, behaviour, noun, by, known, against, True))
    return sentences


def meant_too(behaviour: Behaviour, behaviours: Mapping[str, Behaviour]) -> Behaviour | None:
    """The behaviour that people mean as well: they ask for right answers, and how clear they are.

    A stage can cost many points of accuracy and raise the mean margin, because the margins of what
    it keeps right grow. Whichever of the two is looked at, the other one is named then.

    Args:
        behaviour: That is looked at.
        behaviours: All that are known, by name.
    """
    if behaviour != ACCURACY:
        return behaviours.get(ACCURACY.name)
    return next((behaviours[name] for name in ("margin", "loss") if name in behaviours), None)


def _against(
    row: Mapping[str, Any],
    beside: tuple[Behaviour, Sequence[pd.DataFrame]] | None,
    trust: Mapping[str, StageTrust],
) -> tuple[Behaviour, Mapping[str, Any]] | None:
    """The other behaviour's row about the same, where it stands out and says the opposite."""
    if beside is None:
        return None
    other, summaries = beside
    for its in (each for frame in summaries for each in frame.to_dict("records")):
        same = its["stage"] == row["stage"] and (
            its["group"] == row["group"] or (pd.isna(its["group"]) and pd.isna(row["group"]))
        )
        if not same or its["gain"] * row["gain"] >= 0:
            continue
        known = _known(trust, its, other)
        if _stands_out(its, known, other) and may_be_finding(known, other.name):
            return other, its
    return None


def _known(
    trust: Mapping[str, StageTrust], row: Mapping[str, Any], behaviour: Behaviour
) -> StageTrust | None:
    """What is known of a row's effect; None where nothing is."""
    known = trust.get(str(row["stage"]))
    return None if known is None else trust_of_row(known, row, behaviour.name)


def _stands_out(row: Mapping[str, Any], trust: StageTrust | None, behaviour: Behaviour) -> bool:
    if row["n"] < FEWEST or not np.isfinite(row["effect"]) or row["effect"] == 0:
        return False
    within = pd.notna(row["within_noise"]) and bool(row["within_noise"])
    interval = mean_interval(row, trust, behaviour)
    if interval is not None and not interval.is_clear:
        return False
    return not within and abs(row["effect"]) > chance_over_examples(row)
