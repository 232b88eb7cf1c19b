"""Shares, interactions and other readings of a table of coalitions, all of them linear in it.

A coalition is a bit mask over M parties in training order: bit i is set where party i happened.
``2**M - 1`` is the final model, 0 the base after all boundary rules. Below, v maps masks to (N,)
values of a behaviour, one per example; every function is linear in v, so it holds for examples,
for means over groups and for accuracies alike. A positive number means that the behaviour is
higher because of the party.

L. S. Shapley, A value for n-person games, 1953. M. Grabisch and M. Roubens, An axiomatic approach
to the concept of interaction among players in cooperative games, 1999.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import factorial

import numpy as np

from stagelens.contracts import StageLensError

Values = Mapping[int, np.ndarray]
"""Coalition to (N,) values."""


def shapley(v: Values, m: int) -> np.ndarray:
    """Each party's share: the mean, over all orders of joining, of what its joining changes.

    Shares add up to ``v[2**m - 1] - v[0]``. Joining is not re-ordering: parties keep their places
    in time, and only who happened varies.

    Args:
        v: All ``2**m`` coalitions.
        m: Number of parties.

    Returns:
        (M, N).

    Raises:
        StageLensError: A coalition is missing.
    """
    return np.stack([combined(v, share_weights(party, m)) for party in range(m)])


def share_weights(party: int, m: int) -> dict[int, float]:
    """Coalition to its weight in a party's share, all ``2**m`` of them."""
    weights: dict[int, float] = {}
    for mask in _without(m, party):
        size = mask.bit_count()
        weight = factorial(size) * factorial(m - size - 1) / factorial(m)
        weights[mask | 1 << party], weights[mask] = weight, -weight
    return weights


def pair_interaction(v: Values, m: int) -> np.ndarray:
    """Shapley interaction index: how much more two parties do together than each by itself.

    Over all contexts S of other parties, the mean of ``v(S + i + j) - v(S + i) - v(S + j) + v(S)``.

    Args:
        v: All ``2**m`` coalitions.
        m: Number of parties.

    Returns:
        (M, M, N), symmetric; 0 on the diagonal.

    Raises:
        StageLensError: A coalition is missing.
    """
    return _pairs(v, m, interaction_weights)


def interaction_weights(one: int, other: int, m: int) -> dict[int, float]:
    """Coalition to its weight in the interaction index of two parties."""
    weights: dict[int, float] = {}
    for mask in _without(m, one, other):
        size = mask.bit_count()
        weight = factorial(size) * factorial(m - size - 2) / factorial(m - 1)
        weights.update(_of_pair(mask, one, other, weight))
    return weights


def pair_given_all(v: Values, m: int) -> np.ndarray:
    """How much of what one party does to the final model it does only because of the other.

    ``v(all) - v(all but i) - v(all but j) + v(all but i and j)``: the effect of leaving out i,
    less the same effect where j never happened.

    Returns:
        (M, M, N), symmetric; 0 on the diagonal.

    Raises:
        StageLensError: A coalition is missing.
    """
    return _pairs(v, m, given_all_weights)


def given_all_weights(one: int, other: int, m: int) -> dict[int, float]:
    """Coalition to its weight in what two parties do together, given all others."""
    return _of_pair(every(m) & ~(1 << one) & ~(1 << other), one, other, 1.0)


def leave_one_out(v: Values, m: int) -> np.ndarray:
    """The stage effects: ``v(all) - v(all but k)``; (M, N)."""
    return np.stack([combined(v, left_out_weights(party, m)) for party in range(m)])


def left_out_weights(party: int, m: int) -> dict[int, float]:
    """Coalition to its weight in the effect of leaving out a party."""
    return {every(m): 1.0, every(m) & ~(1 << party): -1.0}


def first_in(v: Values, m: int) -> np.ndarray:
    """What each party does alone: ``v({k}) - v(none)``; (M, N)."""
    return np.stack([combined(v, alone_weights(party, m)) for party in range(m)])


def alone_weights(party: int, m: int) -> dict[int, float]:
    """Coalition to its weight in what a party does alone."""
    return {1 << party: 1.0, 0: -1.0}


def boundary_difference(v: Values, m: int) -> np.ndarray:
    """What is seen after each party: ``v(1..k) - v(1..k-1)``; (M, N). Adds up as shares do."""
    return np.stack([combined(v, seen_after_weights(party, m)) for party in range(m)])


def seen_after_weights(party: int, m: int) -> dict[int, float]:
    """Coalition to its weight in what is seen after a party."""
    return {every(party + 1): 1.0, every(party): -1.0}


def combined(v: Values, weights: Mapping[int, float]) -> np.ndarray:
    """A weighted sum of coalitions, (N,).

    Raises:
        StageLensError: A coalition is missing.
    """
    missing = [mask for mask in weights if mask not in v]
    if missing:
        raise StageLensError(
            f"{len(missing)} of the {len(weights)} models that this number is made of have not "
            "been measured; compute them with: stagelens shares"
        )
    total = np.zeros(np.shape(v[next(iter(weights))]), dtype=np.float64)
    for mask, weight in weights.items():
        total += weight * np.asarray(v[mask], dtype=np.float64)
    return total


def every(m: int) -> int:
    """The coalition of the first ``m`` parties."""
    return (1 << m) - 1


def _without(m: int, *parties: int) -> Iterator[int]:
    out = sum(1 << party for party in parties)
    return (mask for mask in range(1 << m) if not mask & out)


def _of_pair(mask: int, one: int, other: int, weight: float) -> dict[int, float]:
    first, second = 1 << one, 1 << other
    return {
        mask | first | second: weight,
        mask | first: -weight,
        mask | second: -weight,
        mask: weight,
    }


def _pairs(
    v: Values, m: int, weights: Callable[[int, int, int], Mapping[int, float]]
) -> np.ndarray:
    found = np.zeros((m, m, len(next(iter(v.values())))))
    for one in range(m):
        for other in range(one + 1, m):
            found[one, other] = found[other, one] = combined(v, weights(one, other, m))
    return found
