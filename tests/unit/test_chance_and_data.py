"""What other data and what other chance add to the spread of draws is told apart."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stagelens.effects.chance_and_data import half_width, spreads
from stagelens.effects.draws import draws_for_width, interval_over_draws, likely_draws
from stagelens.replaying.draw_plan import data_of


def _draws(data: float, chance: float, count: int, random: np.random.Generator) -> np.ndarray:
    """Draws around a truth of 0, by the standard deviations of what they are made of."""
    of = [data_of(number) for number in range(count)]
    recorded, drawn = random.normal(scale=data), random.normal(scale=data, size=max(of) + 1)
    return recorded + drawn[of] + random.normal(scale=chance, size=count)


def test_mean_squares_are_those_of_the_formula() -> None:
    found = spreads(np.array([1.0, 3.0, 4.0, 8.0, 6.0, 6.0]), [0, 0, 1, 1, 2, 2])
    assert found.between == pytest.approx(np.var([2, 6, 6], ddof=1))
    assert found.within == pytest.approx((2 + 8 + 0) / 3)
    assert (found.part, found.freedom) == (0.5, (2, 3))
    assert found.imbalance == pytest.approx(1 / 3)


def test_without_repeats_all_is_taken_to_be_the_data() -> None:
    values = np.array([1.0, 2.0, 6.0, 4.0])
    error = values.std(ddof=1) * (1 + 1 / 4) ** 0.5
    found = half_width(spreads(values, [0, 1, 2, 3]), 0.05)
    assert found == pytest.approx(stats.t.ppf(0.975, 3) * error)
    # Means over five batches drawn with replacement vary by a fifth less.
    assert half_width(spreads(values, [0, 1, 2, 3]), 0.05, 5) == pytest.approx(
        found * (5 / 4) ** 0.5
    )


def test_where_repeats_do_not_differ_it_is_the_t_interval_over_data() -> None:
    values = np.array([1.0, 2.0, 6.0, 4.0, 3.0, 1.0, 2.0, 6.0])
    error = values[:5].std(ddof=1) * (1 + (3 * 4 + 2) / 64) ** 0.5
    found = interval_over_draws(values)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 4) * error, rel=1e-3)


def test_what_is_chance_averages_out_over_draws_and_what_is_data_does_not() -> None:
    random = np.random.default_rng(0)

    def width(data: float, chance: float, count: int) -> float:
        every = (interval_over_draws(_draws(data, chance, count, random)) for _ in range(40))
        return float(np.mean([one.high - one.low for one in every]))

    assert width(0.0, 1.0, 64) < 0.6 * width(0.0, 1.0, 16)
    assert width(1.0, 0.0, 64) == pytest.approx(2 * 1.96 * (1 + 1 / 32) ** 0.5, rel=0.1)


@pytest.mark.parametrize(("data", "chance"), [(1.0, 0.0), (1.0, 0.5), (1.0, 1.3)])
def test_intervals_hold_the_truth_as_often_as_they_say(data: float, chance: float) -> None:
    random, runs = np.random.default_rng(1), 400
    every = (interval_over_draws(_draws(data, chance, 12, random)) for _ in range(runs))
    held = sum(one.low <= 0 <= one.high for one in every)
    # What true rates of 93 and 97 % leave in 998 of 1,000 such simulations.
    assert stats.binom.ppf(0.001, runs, 0.93) <= held <= stats.binom.ppf(0.999, runs, 0.97)


def test_where_all_is_chance_the_interval_is_rather_too_wide() -> None:
    random = np.random.default_rng(2)
    every = [interval_over_draws(_draws(0.0, 1.0, 12, random)) for _ in range(200)]
    assert np.mean([one.low <= 0 <= one.high for one in every]) > 0.95


def test_the_draws_that_a_width_needs_are_told_with_how_well_they_are_known() -> None:
    random, pilot, width = np.random.default_rng(3), 12, 0.8
    true = (2 * stats.t.ppf(0.975, pilot - 1) / width) ** 2
    held = 0
    for _ in range(400):
        needed = draws_for_width(random.normal(size=(pilot, 1)), width)
        low, high = likely_draws(needed, pilot)
        assert pilot <= low <= needed <= high
        held += low <= true <= high
    assert stats.binom.ppf(0.001, 400, 0.8) <= held <= stats.binom.ppf(0.999, 400, 0.8)
