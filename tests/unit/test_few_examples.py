"""Intervals of mean effects over few examples, and of answers of which hardly any changed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects.contrasts import mean_spread
from stagelens.effects.headlines import headlines
from stagelens.effects.summary import stage_summary, with_accuracy
from stagelens.wording.intervals import mean_interval
from tests.support.effect_tables import effect_table
from tests.support.stage_trust import EXACT

LOSS = Behaviour("loss", "lower", "nats")


def test_the_interval_of_few_examples_is_students() -> None:
    values = [1.0, 2.0, 6.0, 3.0]
    (row,) = stage_summary(effect_table({"one": values}), LOSS, ["one"]).to_dict("records")
    found = mean_interval(row, EXACT, LOSS)
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert row["freedom"] == pytest.approx(3) and found is not None
    assert (found.low, found.high) == pytest.approx(expected)


def test_of_few_sources_it_is_that_of_the_sources() -> None:
    table = effect_table({"one": [1.0, 2.0, 6.0, 3.0] * 10}).assign(
        cluster=["a", "b", "c", "d"] * 10
    )
    (row,) = stage_summary(table, LOSS, ["one"]).to_dict("records")
    found = mean_interval(row, EXACT, LOSS)
    assert row["freedom"] == pytest.approx(3) and found is not None
    expected = stats.t.interval(0.95, 3, 3.0, stats.sem([1, 2, 6, 3]))
    assert (found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize(("up", "down"), [(0.02, 0.0), (0.2, 0.05), (0.9, 0.0), (0.99, 0.0)])
@pytest.mark.parametrize("n", [5, 20, 50])
def test_intervals_of_changed_answers_hold_the_truth(n: int, up: float, down: float) -> None:
    random, runs = np.random.default_rng(n), 300
    values = random.choice([1.0, -1.0, 0.0], p=[up, down, 1 - up - down], size=(runs, n))
    ends = np.array([mean_spread(each, answers=True).ends() for each in values])
    held = int(((ends[:, 0] <= up - down) & (up - down <= ends[:, 1])).sum())
    # Without what is added, 10 % of intervals hold a change of 2 % of five answers.
    assert held >= stats.binom.ppf(0.001, runs, 0.93)


def test_of_many_answers_the_error_is_the_usual_one_and_goes_by_sources() -> None:
    values = np.random.default_rng(0).choice([1.0, -1.0, 0.0], size=5000)
    usual = mean_spread(values).error
    assert mean_spread(values, answers=True).error == pytest.approx(usual, rel=1e-3)
    clusters = np.arange(5000) // 500  # ten sources
    usual = mean_spread(values, clusters).error
    known = np.hypot(usual, np.sqrt(2 + 2 * values.mean() ** 2) / 12)
    assert mean_spread(values, clusters, answers=True).error == pytest.approx(known)


@pytest.mark.parametrize("n", [20, 25, 60])
def test_a_headline_is_there_if_and_only_if_its_interval_leaves_out_zero(n: int) -> None:
    told = []
    for lost in range(n + 1):
        answers = ["b"] * lost + ["a"] * (n - lost)
        table = with_accuracy(effect_table({"one": [0.0] * n}, without={"one": answers}))
        (row,) = stage_summary(table, ACCURACY, ["one"]).to_dict("records")
        interval = mean_interval(row, EXACT, ACCURACY)
        assert interval is not None
        assert interval.high - interval.low > 0  # not even where none changed, or all did
        found = headlines(table, ACCURACY, ["one"], {"one": EXACT})
        assert bool(found) == interval.is_clear
        told.append(bool(found))
    assert not told[0] and not told[3] and all(told[8:])
