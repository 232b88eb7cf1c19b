"""Intervals of means, differences and shares: against scipy, by hand, in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stagelens.effects.contrasts import (
    Spread,
    difference_spread,
    mean_spread,
    share_interval,
    shares_difference,
)
from stagelens.wording.quantiles import t_quantile

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.normal(size=60) * np.repeat([1.0, 5.0], [20, 40])
FIRST = np.arange(60) < 20


def test_the_quantile_is_students_and_of_endless_freedom_the_normal_one() -> None:
    found = t_quantile(np.array([2.5, 30.0, np.inf]), 0.1)
    np.testing.assert_allclose(found, [*stats.t.ppf(0.95, [2.5, 30.0]), stats.norm.ppf(0.95)])
    assert np.isnan(t_quantile(np.nan))


def test_the_interval_of_a_mean_is_students() -> None:
    own = VALUES[FIRST]
    expected = stats.t.interval(0.95, 19, own.mean(), stats.sem(own))
    assert mean_spread(np.append(own, np.nan)).ends() == pytest.approx(expected, rel=1e-12)
    # Clusters of one example each are none.
    for clusters in (np.arange(20), np.full(20, -1)):
        assert mean_spread(own, clusters).ends() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clusters", [None, np.arange(60)])
def test_the_interval_of_a_difference_is_welchs(clusters) -> None:
    found = difference_spread(VALUES, FIRST, ~FIRST, clusters)
    test = stats.ttest_ind(VALUES[FIRST], VALUES[~FIRST], equal_var=False)
    expected = test.confidence_interval(0.95)
    assert found.freedom == pytest.approx(test.df, rel=1e-9)
    assert found.ends() == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_of_pairs_that_share_a_source_it_is_that_of_paired_differences() -> None:
    one = RANDOM.normal(size=30)
    other = one + 0.3 * RANDOM.normal(size=30)
    first = np.arange(60) < 30
    found = difference_spread(np.append(one, other), first, ~first, np.tile(np.arange(30), 2))
    test = stats.ttest_rel(one, other)
    expected = test.confidence_interval(0.95)
    # The variances of both sides are estimated, so a little freedom is lost where they differ.
    assert 28.0 < found.freedom <= 29.0 + 1e-9
    assert found.error == pytest.approx(stats.sem(one - other), rel=1e-9)
    assert found.ends() == pytest.approx((expected.low, expected.high), rel=2e-3)


def test_examples_in_both_groups_count_in_neither_direction() -> None:
    first, second = np.arange(60) < 40, np.arange(60) >= 20
    means = VALUES[first].mean(), VALUES[second].mean()
    moves = (first * (VALUES - means[0]) - second * (VALUES - means[1])) / 40
    found = difference_spread(VALUES, first, second)
    assert found.error == pytest.approx(np.sqrt((moves**2).sum() * 40 / 39), rel=1e-9)
    same = difference_spread(VALUES, first, first)
    assert (same.value, same.error) == (0, 0) and same.ends() == (0, 0)


@pytest.mark.parametrize("answers", [False, True])
def test_examples_taken_three_times_say_no_more_than_once(answers: bool) -> None:
    values = RANDOM.choice([-1.0, 0.0, 1.0], size=60) if answers else VALUES
    thrice, clusters, first = np.tile(values, 3), np.tile(np.arange(60), 3), np.tile(FIRST, 3)
    for once, three in (
        (mean_spread(values, None, answers), mean_spread(thrice, clusters, answers)),
        (
            difference_spread(values, FIRST, ~FIRST, None, answers),
            difference_spread(thrice, first, ~first, clusters, answers),
        ),
    ):
        np.testing.assert_allclose(three.ends(), once.ends(), rtol=1e-9)
    hits = (values > 0).astype(float)
    once = [*share_interval(hits), *shares_difference(hits, FIRST, ~FIRST)]
    three = [*share_interval(np.tile(hits, 3), clusters)]
    three += shares_difference(np.tile(hits, 3), first, ~first, clusters)
    np.testing.assert_allclose(three, once, rtol=1e-9)


def test_variance_and_freedom_of_unequal_sources_are_bell_and_mccaffreys() -> None:
    """Against their matrices, written out for the regression on two groups."""
    sizes = np.array([1, 7, 2, 2, 5, 1, 3])
    clusters = np.repeat(np.arange(7), sizes)
    n, values = len(clusters), RANDOM.normal(size=len(clusters))
    first = RANDOM.random(n) < 0.5
    sides = []
    for of in (first, ~first):
        x = of[:, None].astype(float)
        hat = x @ x.T / of.sum()
        moves = []
        for own in range(7):
            here = np.flatnonzero((clusters == own) & of)
            if not len(here):
                moves.append(np.zeros(n))
                continue
            lever, basis = np.linalg.eigh(np.eye(len(here)) - hat[np.ix_(here, here)])
            root = basis @ np.diag(lever**-0.5) @ basis.T
            left = (np.eye(n) - hat)[here] * of  # residuals of this side's values
            moves.append(np.ones(len(here)) @ root @ left / of.sum())
        sides.append(np.array(moves))
    total = sides[0] - sides[1]
    found = difference_spread(values, first, ~first, clusters)
    assert found.error**2 == pytest.approx(((total @ values) ** 2).sum(), rel=1e-9)
    variances = [
        ((side @ values) ** 2).sum() * of.sum()
        for side, of in zip(sides, (first, ~first), strict=True)
    ]
    spread = sum(variance * side @ side.T for variance, side in zip(variances, sides, strict=True))
    freedom = np.trace(spread) ** 2 / (spread**2).sum()
    assert found.freedom == pytest.approx(freedom, rel=1e-9)
    alone = mean_spread(values[first], clusters[first])
    one = sides[0] @ sides[0].T
    assert alone.freedom == pytest.approx(np.trace(one) ** 2 / (one**2).sum(), rel=1e-9)


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, 1.0]])
def test_there_is_no_interval_of_fewer_than_two_examples_or_sources(values: list[float]) -> None:
    assert np.isnan(mean_spread(np.asarray(values)).ends()).all()
    together = np.zeros(60, dtype=int)
    assert np.isnan(mean_spread(VALUES, together).ends()).all()
    assert np.isnan(difference_spread(VALUES, FIRST, ~FIRST, together).ends()).all()
    assert np.isnan(shares_difference((VALUES > 0) * 1.0, FIRST, ~FIRST, together)).all()
    lone = np.arange(60) == 3
    assert np.isnan(difference_spread(VALUES, lone, ~lone).ends()).all()


def test_numbers_that_are_all_alike_have_no_interval_unless_nothing_changed_at_all() -> None:
    assert mean_spread(np.zeros(9)).ends() == (0, 0)
    assert np.isnan(mean_spread(np.full(9, 2.0)).ends()).all()
    assert np.isnan(Spread(1.0, 0.0, 8.0).ends()).all()
    low, high = mean_spread(np.ones(9), answers=True).ends()
    assert low < 1 < high  # of answers that all changed, others might not have


def test_the_interval_of_a_share_is_agresti_and_coulls() -> None:
    z = stats.norm.ppf(0.975)
    for hits, n in ((0, 5), (3, 5), (5, 5), (190, 200)):
        share = (hits + z**2 / 2) / (n + z**2)
        half = z * np.sqrt(share * (1 - share) / (n + z**2))
        found = share_interval(np.arange(n) < hits)
        assert found == pytest.approx((max(share - half, 0), min(share + half, 1)))
        assert found[0] < found[1]


def _covers(p: float, q: float, n: int) -> float:
    """The probability that the interval of a difference of shares holds p - q, summed exactly."""
    first, total = np.arange(2 * n) < n, 0.0
    for a in range(n + 1):
        for b in range(n + 1):
            hits = np.concatenate([np.arange(n) < a, np.arange(n) < b]).astype(float)
            low, high = shares_difference(hits, first, ~first)
            if low - 1e-12 <= p - q <= high + 1e-12:
                total += stats.binom.pmf(a, n, p) * stats.binom.pmf(b, n, q)
    return total


@pytest.mark.parametrize(("p", "q"), [(0.01, 0.01), (0.02, 0.3), (0.5, 0.5), (0.02, 0.98)])
def test_intervals_of_differences_of_few_answers_hold_the_truth(p: float, q: float) -> None:
    assert _covers(p, q, 5) > 0.925


@pytest.mark.parametrize("sizes", [np.full(12, 4), np.arange(12) % 6 + 1])
def test_intervals_of_clustered_rows_hold_the_truth(sizes: np.ndarray) -> None:
    """Of 12 sources, half of whose spread is common to their rows, in two groups."""
    random, held = np.random.default_rng(5), np.zeros(3)
    clusters, runs = np.repeat(np.arange(12), sizes), 1500
    first = np.arange(len(clusters)) % 3 == 0  # sources have rows in both
    apart = clusters < 5
    for _ in range(runs):
        values = random.normal(size=12)[clusters] + random.normal(size=len(clusters))
        for place, found in enumerate(
            (
                mean_spread(values, clusters),
                difference_spread(values, first, ~first, clusters),
                difference_spread(values, apart, ~apart, clusters),
            )
        ):
            low, high = found.ends()
            held[place] += low <= 0 <= high
    assert (stats.binom.cdf(held, runs, 0.935) > 0.001).all(), held / runs
    assert (stats.binom.sf(held, runs, 0.975) > 0.001).all(), held / runs


@pytest.mark.parametrize("n", [20, 200])
def test_intervals_hold_rare_changes_of_answers(n: int) -> None:
    """Summed exactly, over how many of n answers change."""
    changed = np.arange(n + 1)
    ends = np.array([mean_spread((np.arange(n) < x) * 1.0, answers=True).ends() for x in changed])
    for p in (0.005, 0.01, 0.02, 0.05, 0.12, 0.5):
        holds = (ends[:, 0] <= p) & (p <= ends[:, 1])
        assert stats.binom.pmf(changed, n, p)[holds].sum() > 0.93, p
