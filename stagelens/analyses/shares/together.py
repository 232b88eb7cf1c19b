"""Parties taken as one, and by how much shares change with how training is cut into stages.

Cutting a stage in two changes everybody's Shapley share, so a party that cuts its data in two can
gain (Faithful Group Shapley, arXiv 2505.19013). What belongs to one party is therefore taken as
one before sharing; what that changes is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.contracts import StageLensError
from stagelens.wording.sentences import Part, Sentence

from .sentences import number_text
from .share_table import Shares
from .values import Values, share_weights


def as_one(v: Values, m: int, groups: Sequence[Sequence[int]]) -> dict[int, np.ndarray]:
    """The coalitions of larger parties, each made of some of the smaller ones.

    Args:
        v: Coalitions of the ``m`` smaller parties; those that split a larger one are left out.
        m: Number of smaller parties.
        groups: The smaller parties of each larger one; each in exactly one.

    Raises:
        StageLensError: A smaller party is in none of them, or in several.
    """
    if sorted(party for group in groups for party in group) != list(range(m)):
        raise StageLensError("take every stage into exactly one of the parties that share")
    masks = [sum(1 << party for party in group) for group in groups]
    found = {}
    for mask in range(1 << len(groups)):
        small = sum(own for place, own in enumerate(masks) if mask >> place & 1)
        if small in v:
            found[mask] = v[small]
    return found


def joined_groups(m: int, joined: Sequence[int]) -> list[list[int]]:
    """Parties of which some are taken as one, which stands where the first of them does."""
    first = min(joined)
    return [
        sorted(joined) if p == first else [p] for p in range(m) if p == first or p not in joined
    ]


def joined_weights(m: int, joined: Sequence[int]) -> dict[int, float]:
    """Coalition to its weight in what parties gain together by being counted apart.

    That is the sum of their shares less the one share that they have as one party. For two halves
    of a stage, it is by how much its share grows when it is split.

    Args:
        m: Number of parties.
        joined: The parties that may be taken as one.
    """
    groups = joined_groups(m, joined)
    masks = [sum(1 << party for party in group) for group in groups]
    place = next(at for at, group in enumerate(groups) if len(group) > 1)
    weights = {
        sum(own for at, own in enumerate(masks) if mask >> at & 1): -weight
        for mask, weight in share_weights(place, len(groups)).items()
    }
    for party in joined:
        for mask, weight in share_weights(party, m).items():
            weights[mask] = weights.get(mask, 0.0) + weight
    # Sums that are 0 but for rounding: what is not part of the number has no error in it.
    return {mask: weight for mask, weight in weights.items() if abs(weight) > 1e-12}


def apart_sentence(
    apart: Shares, joined: Sequence[int], chosen: np.ndarray | None = None
) -> Sentence:
    """How much more parties would get between them, were they not taken as one.

    Args:
        apart: Shares of which each of them has one of its own.
        joined: The parties that are taken as one elsewhere.
        chosen: (N,) which examples the mean is over; None for all of them.
    """
    names = [apart.names[party] for party in joined]
    weights = joined_weights(apart.m, joined)
    one = apart.combined_mean(" + ".join(names), weights, chosen)
    parts = [Part("Were ")]
    for number, name in enumerate(names):
        parts += [Part(" and ")] if number else []
        parts.append(Part(name, "stage"))
    parts += [
        Part(" counted apart, the sum of their shares would change by "),
        Part(number_text(one, apart.behaviour), "amount"),
        Part("."),
    ]
    return Sentence(tuple(parts), one.trust, apart.behaviour.name)
