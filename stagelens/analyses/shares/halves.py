"""By how much shares change when one stage is taken as two halves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stagelens.contracts import Behaviour
from stagelens.effects.coalition_results import key_of, lacking
from stagelens.estimators.coalition_plan import Cost, cost
from stagelens.estimators.halves import middle_steps, planned_halves, whole_mask
from stagelens.runs.cutting import Cut
from stagelens.runs.run import Run
from stagelens.runs.sets.evaluation_set import EvaluationSet
from stagelens.wording.numbers import signed_text
from stagelens.wording.sentences import Part, Sentence

from .means import Mean
from .sentences import number_text, subject
from .share_table import SHARE, Shares
from .share_trust import SHARES, SUMS
from .together import joined_groups
from .values import share_weights


@dataclass(frozen=True)
class Change:
    """The share of one stage, counted as before and with a stage taken as two halves.

    Attributes:
        stage: Its name.
        whole: Its share where every stage is one party.
        halved: Its share where one stage is two: of that stage, what both halves get.
        change: The latter less the former.
    """

    stage: str
    whole: Mean
    halved: Mean
    change: Mean


def halves_cost(
    run: Run, examples: EvaluationSet, estimator: str, settings: Mapping[str, Any], cut: Cut
) -> tuple[Cost, int]:
    """What the models take in which only one half happened, and steps to find the state between.

    Models with both halves, or neither, are those that shares of whole stages take.
    """
    planned = planned_halves(run, cut)
    index = run.stage(cut.stage).index
    alone = [m for m in range(1 << len(planned.stages)) if whole_mask(m, index) is None]
    left = lacking(planned, key_of(planned, examples, estimator, settings), alone)
    return cost(planned, left, estimator, settings), middle_steps(run, cut) if left else 0


def changes(found: Shares, cut: Cut, chosen: np.ndarray | None = None) -> list[Change]:
    """What taking a stage as two halves changes of every stage's share, in training order.

    Args:
        found: Shares of all parties, with the two halves as parties of their own.
        cut: Where the stage is taken as two.
        chosen: (N,) which examples the means are over; None for all of them.
    """
    groups = joined_groups(found.m, _halves(found, cut))
    named = [cut.stage if len(own) > 1 else found.names[own[0]] for own in groups]
    masks = [sum(1 << party for party in own) for own in groups]
    made = []
    for place, (name, own) in enumerate(zip(named, groups, strict=True)):
        # In coalitions of the smaller parties, those that have both halves or neither.
        whole = {
            sum(small for at, small in enumerate(masks) if mask >> at & 1): weight
            for mask, weight in share_weights(place, len(groups)).items()
        }
        halved: dict[int, float] = {}
        for party in own:
            for mask, weight in share_weights(party, found.m).items():
                halved[mask] = halved.get(mask, 0.0) + weight
        change = {
            mask: halved.get(mask, 0.0) - whole.get(mask, 0.0) for mask in {**halved, **whole}
        }
        kinds = ((whole, SHARES), (halved, SHARES), (change, SUMS))
        means = [found.combined_mean(name, each, chosen, of) for each, of in kinds]
        made.append(Change(name, *means))
    return made


def half_means(found: Shares, cut: Cut, chosen: np.ndarray | None = None) -> list[Mean]:
    """The shares of the two halves, the first one before the second."""
    means = found.means(SHARE, chosen)
    return [means[party] for party in _halves(found, cut)]


def halves_sentence(
    changed: Sequence[Change],
    halves: Sequence[Mean],
    cut: Cut,
    behaviour: Behaviour,
    about: Sequence[Part],
) -> Sentence:
    """What a stage's share would be, were it taken as two halves, and what others' would.

    Args:
        changed: From :func:`changes`.
        halves: From :func:`half_means`.
        cut: Where.
        behaviour: Whose mean it is.
        about: Which examples, as ``slice_parts`` gives it.
    """
    one = next(each for each in changed if each.stage == cut.stage)
    spans = [half.name[len(cut.stage) + 2 : -1] for half in halves]
    parts = [
        Part(f"Taken as two halves ({' and '.join(spans)}), "),
        Part(cut.stage, "stage"),
        Part(f"'s share of {subject(behaviour)} on "),
        *about,
        Part(" would be "),
        Part(number_text(one.halved, behaviour), "amount"),
        Part(f" instead of {number_text(one.whole, behaviour)}"),
    ]
    if np.isfinite(one.halved.mean):
        both = " and ".join(signed_text(half.mean, behaviour) for half in halves)
        parts.append(Part(f": {both}"))
    others = [each for each in changed if each is not one]
    for number, each in enumerate(others):
        parts.append(Part("; " if number == 0 else ", "))
        parts.append(Part(each.stage, "stage"))
        parts.append(Part(f"'s would change by {number_text(each.change, behaviour)}"))
    parts.append(Part("."))
    return Sentence(tuple(parts), one.change.trust, behaviour.name)


def _halves(found: Shares, cut: Cut) -> list[int]:
    """The places of the two halves among the parties."""
    first = next(
        place for place, name in enumerate(found.names) if name.startswith(f"{cut.stage} (step")
    )
    return [first, first + 1]
