"""The bootstrap: who is drawn, what follows, and how often its intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stagelens.effects import resampling
from stagelens.effects.resampling import Resamples, interval, places, sums


@pytest.mark.parametrize(("examples", "count"), [(0, 1000), (100, 1000), (5000, 400), (10**6, 50)])
def test_large_sets_are_resampled_less(examples: int, count: int) -> None:
    assert Resamples(most=1000, fewest=50, draws=2_000_000).of(examples) == count


def test_blocks_draw_what_one_draw_would(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(places(30, 100, np.random.default_rng(1))))
    monkeypatch.setattr(resampling, "_BLOCK", 70)
    blocks = list(places(30, 100, np.random.default_rng(1)))
    assert {len(block) for block in blocks} == {2}
    assert (np.concatenate(blocks) == whole).all()
    assert whole.shape == (100, 30) and set(whole.ravel()) == set(range(30))


def test_sums_are_those_of_the_drawn_rows() -> None:
    columns = np.random.default_rng(0).normal(size=(40, 3))
    drawn = np.concatenate(list(places(40, 25, np.random.default_rng(7))))
    found = sums(columns, 25, np.random.default_rng(7))
    np.testing.assert_allclose(found, columns[drawn].sum(axis=1), rtol=1e-12)


def test_of_many_rows_sums_put_together_at_random_spread_as_the_rows_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "_MOST", 2000)
    # Far from zero and sorted, and of a number that the sums do not divide.
    values = 1000 + np.sort(np.random.default_rng(0).exponential(size=3100))
    found = sums(np.stack([values, 2 * values], axis=1), 4000, np.random.default_rng(1))
    np.testing.assert_allclose(found[:, 1], 2 * found[:, 0])  # the same draws for all columns
    assert found[:, 0].mean() == pytest.approx(values.sum(), abs=5)
    # 1.6 % by chance from 2000 sums, and 1.1 % from 4000 resamples.
    expected = values.std() * np.sqrt(len(values))
    assert found[:, 0].std() == pytest.approx(expected, rel=0.06)
    assert np.isnan(sums(np.full((3100, 1), np.nan), 10, np.random.default_rng(1))).all()


def test_intervals_agree_with_scipy_within_monte_carlo_error() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    draws = sums(values[:, None], 4000, np.random.default_rng(1))[:, 0] / 80
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2)
    )
    width = result.confidence_interval.high - result.confidence_interval.low
    np.testing.assert_allclose(interval(draws), result.confidence_interval, atol=0.05 * width)


def test_95_of_100_intervals_of_a_mean_hold_it() -> None:
    random, held = np.random.default_rng(3), 0
    for _ in range(400):
        values = random.normal(size=100)
        low, high = interval(sums(values[:, None], 400, random)[:, 0] / 100)
        held += low <= 0 <= high
    # 380 are expected; a percentile interval of 100 values holds about 94 of 100.
    assert stats.binomtest(held, 400, 0.94).pvalue > 0.001, held


def test_what_is_not_known_has_no_interval() -> None:
    assert np.isnan(interval(np.array([0.1, np.nan]))).all()
    assert np.isnan(interval(np.array([]))).all()
    assert interval(np.arange(101.0), level=0.5) == (25.0, 75.0)


def test_the_standard_error_of_a_mean_goes_by_clusters() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=40)
    usual = values.std(ddof=1) / np.sqrt(40)
    assert resampling.standard_error(values) == pytest.approx(usual)
    assert resampling.standard_error(values, np.arange(40)) == pytest.approx(usual)
    assert resampling.standard_error(values, np.full(40, -1)) == pytest.approx(usual)
    # Every example three times says no more than once.
    thrice = np.repeat(values, 3)
    clusters = np.repeat(np.arange(40), 3)
    assert resampling.standard_error(thrice, clusters) == pytest.approx(usual)
    assert resampling.standard_error(thrice) < 0.6 * usual
    assert np.isnan(resampling.standard_error(values, np.zeros(40, int)))
    assert np.isnan(resampling.standard_error(values[:1]))


def test_a_clustered_standard_error_is_the_spread_over_sets_of_clusters() -> None:
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), random.integers(1, 5, 60))

    def drawn() -> np.ndarray:
        return random.normal(size=60)[clusters] + 0.3 * random.normal(size=len(clusters))

    means = [drawn().mean() for _ in range(2000)]
    errors = [resampling.standard_error(drawn(), clusters) for _ in range(200)]
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.08)
