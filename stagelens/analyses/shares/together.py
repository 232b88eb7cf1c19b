"""Parties taken as one, and by how much shares change with how training is cut into stages.

Cutting a stage in two changes everybody's Shapley share, so a party that cuts its data in two can
gain (Faithful Group Shapley, arXiv 2505.19013). What belongs to one party is therefore taken as
one before sharing; what that changes is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagelens.contracts import StageLensError

from .values import Values, shapley


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


def change_when_joined(v: Values, m: int, joined: Sequence[int]) -> np.ndarray:
    """What parties gain together by being counted apart: their shares' sum less their one share.

    For two halves of a stage, this is by how much its share grows when it is split.

    Args:
        v: All ``2**m`` coalitions.
        m: Number of parties.
        joined: The parties that may be taken as one.

    Returns:
        (N,).
    """
    groups = joined_groups(m, joined)
    whole = shapley(as_one(v, m, groups), len(groups))[min(joined)]
    apart: np.ndarray = shapley(v, m)[list(joined)].sum(axis=0)
    return apart - whole
