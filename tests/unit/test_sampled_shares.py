"""Shares from sampled orders: unbiased, with intervals that cover, within a budget."""

from __future__ import annotations

import numpy as np
import pytest

from stagelens.analyses.shares import orders
from stagelens.analyses.shares.values import every, shapley
from stagelens.contracts import StageLensError

M = 7
EXAMPLES = 3


@pytest.fixture(scope="module")
def v() -> dict[int, np.ndarray]:
    """Seven parties with main effects, pairs and some interaction of every size."""
    random = np.random.default_rng(0)
    main, pairs = random.normal(size=(M, EXAMPLES)), random.normal(size=(M, M, EXAMPLES))
    found = {}
    for mask in range(1 << M):
        there = [party for party in range(M) if mask >> party & 1]
        # Squared, so that all sizes interact: by reversal alone, pairs would cancel exactly.
        total = main[there].sum(axis=0) + 0.3 * pairs[np.ix_(there, there)].sum(axis=(0, 1))
        found[mask] = total + 0.05 * total**2
    return found


def test_each_estimate_adds_up_too(v: dict[int, np.ndarray]) -> None:
    found = orders.estimated_shares(v, M, orders.sampled_orders(M, 3))
    np.testing.assert_allclose(found.shares.sum(axis=0), v[every(M)] - v[0], atol=1e-9)
    np.testing.assert_allclose(found.of_pairs.mean(axis=0), found.shares)


def test_estimates_are_unbiased_and_their_intervals_cover(v: dict[int, np.ndarray]) -> None:
    truth, repeats, pairs = shapley(v, M), 300, 8
    errors, covered = [], 0
    for seed in range(repeats):
        found = orders.estimated_shares(v, M, orders.sampled_orders(M, pairs, seed))
        errors.append(found.shares - truth)
        off = np.abs(found.shares.mean(axis=1) - truth.mean(axis=1))
        covered += int((off <= found.half_widths()).sum())
    mean, spread = np.mean(errors, axis=0), np.std(errors, axis=0, ddof=1)
    # 21 means over 300 repeats: 4 standard errors are passed by chance in 1 of 700 such tests.
    assert np.abs(mean).max() < 4 * (spread / np.sqrt(repeats)).max()
    # The seven shares of a draw hang together, so the bounds are those of 300 draws: 95 +- 4 %.
    assert 0.91 < covered / (repeats * M) < 0.99


def test_an_order_and_its_reverse_spread_less_than_two_orders(v: dict[int, np.ndarray]) -> None:
    drawn = orders.sampled_orders(M, 200)
    paired = orders.estimated_shares(v, M, drawn)
    alone = [(one, one) for one, _ in drawn]
    single = orders.estimated_shares(v, M, alone)
    # Two independent orders instead of a pair have half the variance of one.
    assert (paired.errors() < single.errors() / np.sqrt(2)).all()


def test_a_budget_is_kept_and_more_pairs_begin_with_the_same_ones() -> None:
    pairs = orders.pairs_within(40, M)
    drawn = orders.sampled_orders(M, pairs)
    assert pairs == 3
    assert len(orders.masks_of(drawn, M)) <= 40
    assert orders.sampled_orders(M, 5)[:3] == drawn
    assert orders.pairs_within(13, M) == 0


def test_what_was_measured_tells_which_orders_were_drawn(v: dict[int, np.ndarray]) -> None:
    drawn = orders.sampled_orders(M, 4)
    masks = orders.masks_of(drawn, M)
    found = orders.measured_pairs(masks, M)
    assert found[:4] == drawn
    assert set(orders.masks_of(found, M)) <= set(masks)
    assert orders.measured_pairs(masks[:-1], M) == drawn[:3]


def test_one_pair_has_no_interval(v: dict[int, np.ndarray]) -> None:
    found = orders.estimated_shares(v, M, orders.sampled_orders(M, 1))
    assert np.isnan(found.half_widths()).all()
    with pytest.raises(StageLensError, match="have not been measured"):
        orders.estimated_shares({0: v[0]}, M, orders.sampled_orders(M, 1))
