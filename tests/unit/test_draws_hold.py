"""Intervals over draws hold what they say: a quick, small version of tests/benchmarks/draws.py."""

from __future__ import annotations

import numpy as np
from scipy import stats

from stagelens.effects.draws import interval_over_draws
from tests.benchmarks.draws import RECIPES, simulate, widths

RUNS = 150


def test_intervals_over_draws_hold_the_truth_and_chance_is_no_finding() -> None:
    found = simulate(RECIPES[0], "recipe", RUNS, 8, seed=0, truth_runs=2000)
    # What a true rate of 93 %, or of 5 %, leaves in 999 of 1,000 such simulations.
    assert found.covered.times >= stats.binom.ppf(0.001, RUNS, 0.93)
    assert found.findings.times <= stats.binom.ppf(0.999, RUNS, 0.05)


def test_on_the_same_data_chance_in_the_data_looks_like_a_finding() -> None:
    # Which is why such draws do not govern headlines.
    found = simulate(RECIPES[0], "same data", RUNS, 8, seed=0, truth_orders=20)
    assert found.findings.value > 0.5


def test_a_width_is_reached_at_its_level() -> None:
    covered, _ = widths(RUNS, 8, seed=0)
    assert covered.times >= stats.binom.ppf(0.001, RUNS, 0.95)


def test_one_more_training_is_as_near_to_the_mean_as_is_said() -> None:
    random = np.random.default_rng(0)
    near = 0
    for values in random.normal(3.0, 2.0, (1000, 7)):
        found = interval_over_draws(values[:6], "runs")
        near += bool(abs(values[6] - found.mean) <= found.single)
    assert stats.binom.ppf(0.001, 1000, 0.95) <= near <= stats.binom.ppf(0.999, 1000, 0.95)
    # That of the mean is another thing: it grows narrower with every draw.
    assert found.single > 2 * (found.high - found.mean)
