"""Shares, interactions and the other readings of coalitions, held against their definitions."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest

from stagelens.analyses.shares import together, values
from stagelens.analyses.shares.values import (
    combined,
    every,
    pair_given_all,
    pair_interaction,
    shapley,
)
from stagelens.contracts import StageLensError

EXAMPLES = 7
SIZES = (1, 2, 3, 4, 5)


def game(m: int, seed: int = 0) -> dict[int, np.ndarray]:
    """Coalitions with random values, (N,) each."""
    random = np.random.default_rng([seed, m])
    return {mask: random.normal(size=EXAMPLES) for mask in range(1 << m)}


def by_permutations(v: dict[int, np.ndarray], m: int) -> np.ndarray:
    """Shares as the mean over every order of joining; (M, N)."""
    total, count = np.zeros((m, EXAMPLES)), 0
    for order in permutations(range(m)):
        steps = [sum(1 << party for party in order[:size]) for size in range(m + 1)]
        for party, (before, after) in zip(order, pairwise(steps), strict=True):
            total[party] += v[after] - v[before]
        count += 1
    return total / count


@pytest.mark.parametrize("m", SIZES)
def test_shares_are_means_over_all_orders_of_joining(m: int) -> None:
    v = game(m)
    np.testing.assert_allclose(shapley(v, m), by_permutations(v, m), atol=1e-12)


@pytest.mark.parametrize("m", [*SIZES, 6, 8])
def test_shares_add_up_to_what_training_did(m: int) -> None:
    v = game(m)
    total = v[every(m)] - v[0]
    np.testing.assert_allclose(shapley(v, m).sum(axis=0), total, atol=1e-6)
    np.testing.assert_allclose(values.boundary_difference(v, m).sum(axis=0), total, atol=1e-6)


def test_one_party_has_all_of_it() -> None:
    v = {0: np.array([1.0]), 1: np.array([4.0])}
    for read in (shapley, values.leave_one_out, values.first_in, values.boundary_difference):
        assert read(v, 1).tolist() == [[3.0]]
    assert pair_interaction(v, 1).tolist() == [[[0.0]]]


def test_two_parties_by_hand() -> None:
    # none 1, first alone 3, second alone 2, both 10.
    v = {mask: np.array([value]) for mask, value in enumerate((1.0, 3.0, 2.0, 10.0))}
    assert shapley(v, 2)[:, 0].tolist() == [5.0, 4.0]  # halves of 2 + 8 and of 1 + 7
    assert values.leave_one_out(v, 2)[:, 0].tolist() == [8.0, 7.0]
    assert values.first_in(v, 2)[:, 0].tolist() == [2.0, 1.0]
    assert values.boundary_difference(v, 2)[:, 0].tolist() == [2.0, 7.0]
    assert pair_interaction(v, 2)[0, 1, 0] == pair_given_all(v, 2)[0, 1, 0] == 6.0


@pytest.mark.parametrize("m", [2, 3, 5])
def test_a_party_that_changes_nothing_gets_nothing(m: int) -> None:
    v, null = game(m), 1
    v = {mask: v[mask & ~(1 << null)] for mask in v}
    for read in (shapley, values.leave_one_out, values.first_in, values.boundary_difference):
        np.testing.assert_allclose(read(v, m)[null], 0, atol=1e-12)
    for pairs in (pair_interaction(v, m), pair_given_all(v, m)):
        np.testing.assert_allclose(pairs[null], 0, atol=1e-12)


@pytest.mark.parametrize("m", [2, 3, 5])
def test_parties_that_do_the_same_get_the_same(m: int) -> None:
    v = game(m)
    # Swapping the first two bits changes no value.
    swapped = {mask: (mask & ~3) | (mask & 1) << 1 | (mask & 2) >> 1 for mask in v}
    v = {mask: v[min(mask, swapped[mask])] for mask in v}
    shares = shapley(v, m)
    np.testing.assert_allclose(shares[0], shares[1], atol=1e-12)


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_everything_is_linear_in_the_values(m: int) -> None:
    one, other = game(m, 1), game(m, 2)
    both = {mask: 2 * one[mask] - 3 * other[mask] for mask in one}
    readings = (
        *(shapley, values.leave_one_out, values.first_in, values.boundary_difference),
        *(pair_interaction, pair_given_all),
    )
    for read in readings:
        np.testing.assert_allclose(read(both, m), 2 * read(one, m) - 3 * read(other, m), atol=1e-12)


@pytest.mark.parametrize("m", [3, 4, 5])
def test_the_interaction_index_is_the_mean_over_contexts(m: int) -> None:
    v, one, other = game(m), 0, 2
    # In an order of the others with the pair as one, the context is whoever came before the pair.
    rest = [party for party in range(m) if party not in (one, other)]
    found = []
    for order in permutations([*rest, one]):  # which stands for both
        context = sum(1 << party for party in order[: order.index(one)])
        joint, first, second = context | 1 << one | 1 << other, context | 1 << one, context | 4
        found.append(v[joint] - v[first] - v[second] + v[context])
    index = pair_interaction(v, m)
    np.testing.assert_allclose(index[one, other], np.mean(found, axis=0), atol=1e-12)
    np.testing.assert_allclose(index, index.transpose(1, 0, 2), atol=0)


def test_parties_that_only_add_up_do_not_interact() -> None:
    own = np.random.default_rng(0).normal(size=(4, EXAMPLES))
    v = {mask: own[[p for p in range(4) if mask >> p & 1]].sum(axis=0) + 1 for mask in range(16)}
    np.testing.assert_allclose(pair_interaction(v, 4), 0, atol=1e-12)
    for read in (shapley, values.leave_one_out, values.first_in, values.boundary_difference):
        np.testing.assert_allclose(read(v, 4), own, atol=1e-12)


def test_halves_taken_as_one_get_the_share_of_the_whole() -> None:
    whole = game(3)  # its party 1 is cut in two: half of it alone is a model of its own
    halves = game(4, 5)
    groups = [[0], [1, 2], [3]]
    for mask in whole:
        small = sum(
            sum(1 << p for p in own) for place, own in enumerate(groups) if mask >> place & 1
        )
        halves[small] = whole[mask]
    joined = together.as_one(halves, 4, groups)
    assert together.joined_groups(4, [1, 2]) == groups
    np.testing.assert_array_equal(shapley(joined, 3), shapley(whole, 3))
    apart = shapley(halves, 4)
    change = combined(halves, together.joined_weights(4, [1, 2]))
    np.testing.assert_allclose(change, apart[1] + apart[2] - shapley(whole, 3)[1], atol=1e-12)
    assert np.abs(change).min() > 1e-3  # of models that interact, splitting changes the share
    # Taking everybody as one changes nothing: shares add up to all of it.
    assert together.joined_weights(3, [0, 1, 2]) == {}


def test_every_stage_is_in_one_party() -> None:
    with pytest.raises(StageLensError, match="exactly one"):
        together.as_one(game(3), 3, [[0, 1], [1, 2]])


def test_a_missing_model_is_told() -> None:
    v = game(3)
    del v[5]
    with pytest.raises(StageLensError, match="1 of the 8 models"):
        shapley(v, 3)
    values.first_in(v, 3)  # which does not need it
