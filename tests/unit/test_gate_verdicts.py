"""What a gate says of drops whose truth is known: by formulas, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stagelens.analyses.gate.verdict import (
    FAMILY,
    Drop,
    TrainingNoise,
    holm,
    judge,
    overall,
    training_noise,
)
from stagelens.effects.contrasts import Spread, mean_spread

ALLOWED = 0.02


@pytest.mark.parametrize("freedom", [3.0, 8.0, 199.0])
def test_without_training_noise_it_is_students_t(freedom: float) -> None:
    drop = Drop(Spread(0.1, 0.03, freedom))
    assert drop.above(ALLOWED) == pytest.approx(stats.t.sf(0.08 / 0.03, freedom))
    assert drop.below(0.15) == pytest.approx(stats.t.sf(0.05 / 0.03, freedom))
    half = stats.t.ppf(0.975, freedom) * 0.03
    assert drop.ends() == pytest.approx((0.1 - half, 0.1 + half))


@pytest.mark.parametrize("freedom", [2.0, 7.0, 16.0])
@pytest.mark.parametrize("reach", [0.5, 2.0, 5.0])
def test_of_training_noise_alone_it_is_students_t_of_two_models(
    freedom: float, reach: float
) -> None:
    error = 0.04
    noise = TrainingNoise(error**2, 0.0, freedom)
    drop = Drop(Spread(reach * error, 0.0, 199.0), noise)
    assert drop.above(0.0) == pytest.approx(stats.t.sf(reach, freedom), rel=1e-4)


def test_noise_that_intervals_over_examples_have_already_is_not_counted_twice() -> None:
    alone = Drop(Spread(0.1, 0.03, math.inf))
    counted = Drop(Spread(0.1, 0.03, math.inf), TrainingNoise(1e-4, 1e-4, math.inf))
    more = Drop(Spread(0.1, 0.03, math.inf), TrainingNoise(2e-4, 1e-4, math.inf))
    assert counted.above(ALLOWED) == pytest.approx(alone.above(ALLOWED), rel=1e-6)
    known = stats.norm.sf(0.08 / math.sqrt(0.03**2 + 1e-4))
    assert more.above(ALLOWED) == pytest.approx(known, rel=1e-6)


def test_training_noise_is_told_apart_from_what_single_examples_do() -> None:
    random = np.random.default_rng(0)
    shift, own, examples = 0.05, 0.4, 400

    def trained(count: int) -> np.ndarray:
        return random.normal(0, shift, (count, 1)) + random.normal(0, own, (count, examples))

    found = [training_noise(trained(9), trained(5)) for _ in range(400)]
    within = np.mean([one.within for one in found if one])
    square = np.mean([one.mean_square for one in found if one])
    # Of the difference of two means over so many trainings.
    assert within == pytest.approx((1 / 9 + 1 / 5) * own**2 / examples, rel=0.02)
    assert square == pytest.approx((1 / 9 + 1 / 5) * (shift**2 + own**2 / examples), rel=0.1)
    assert all(one is not None and 4 <= one.freedom <= 12 for one in found)


def test_a_recipe_that_was_trained_once_is_taken_to_differ_as_the_other_does() -> None:
    values = np.random.default_rng(0).normal(size=(5, 40))
    both, one = training_noise(values, values), training_noise(values, values[:1])
    assert both is not None and one is not None
    spread = values.mean(axis=1).var(ddof=1)
    assert both.mean_square == pytest.approx(2 * spread / 5)
    assert one.mean_square == pytest.approx((1 + 1 / 5) * spread)
    assert one.freedom == 4 and both.freedom == pytest.approx(8)
    assert training_noise(values[:1], values[:1]) is None


def test_what_redraws_have_in_common_does_not_average_out() -> None:
    values = np.random.default_rng(0).normal(size=(5, 40))
    apart, alike = training_noise(values, values), training_noise(values, values, None, (1, 1))
    assert apart is not None and alike is not None
    assert alike.mean_square == pytest.approx(5 * apart.mean_square)
    assert alike.within == pytest.approx(5 * apart.within)
    assert alike.freedom == apart.freedom


def test_what_single_sources_do_is_counted_by_sources() -> None:
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(50), 4)
    values = np.repeat(random.normal(0, 0.4, (400, 50)), 4, axis=1)
    found = training_noise(values, values, clusters)
    assert found is not None
    assert found.within == pytest.approx(2 * 0.4**2 / 50 / 400, rel=0.03)


def test_holm_keeps_to_the_family() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan], nan_ok=True
    )
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_neither_shown_nor_ruled_out_is_no_verdict() -> None:
    assert judge(0.009, 0.2, ALLOWED) == "regressed"
    assert judge(0.5, 0.019, ALLOWED) == "fine"
    assert judge(0.5, 0.021, ALLOWED) == "could not tell"
    assert judge(math.nan, math.nan, ALLOWED) == "could not tell"
    assert overall(["fine", "could not tell", "regressed"]) == "regressed"
    assert overall(["fine", "could not tell"]) == "could not tell"
    assert overall(["fine", "fine"]) == "fine"
    assert overall([]) == "could not tell"


def answers(
    random: np.random.Generator, hard: np.ndarray, lost: int = 0, shift: float = 0.0
) -> np.ndarray:
    """Right and wrong answers of 9 trainings of a recipe to 200 questions, (9, 200).

    Args:
        random: Of everything.
        hard: (200,) how probably each question is answered wrong.
        lost: To how many of the others all give a wrong answer.
        shift: Standard deviation of what a training shifts that by for all questions at once; of
            its variance one half is common to a recording and its redraws.
    """
    common, own = random.normal(0, shift / 2**0.5, 1), random.normal(0, shift / 2**0.5, (9, 1))
    wrong = np.where(np.arange(200) < lost, 1.0, hard) + common + own
    return (random.random((9, 200)) >= wrong).astype(float)


def adjusted(
    random: np.random.Generator, lost: int = 0, shift: float = 0.0, slices: int = 4
) -> list[float]:
    """Adjusted p that slices dropped by no more than allowed; the first one has lost answers."""
    values = []
    for number in range(slices):
        # Few questions are hard: for most, all trainings agree.
        hard = random.choice([0.0, 0.3], 200, p=[0.95, 0.05])
        old = answers(random, hard, 0, shift)
        new = answers(random, hard, 0 if number else lost, shift)
        over = mean_spread(old.mean(axis=0) - new.mean(axis=0), None, True)
        values.append(Drop(over, training_noise(old, new, None, (1, 1))).above(ALLOWED))
    return holm(values)


def test_two_trainings_of_one_recipe_are_no_regression() -> None:
    """A/A with a shift of 3 points a training, which intervals over examples do not see."""
    random = np.random.default_rng(2)
    false = sum(min(adjusted(random, shift=0.03)) < FAMILY for _ in range(400))
    assert false <= 8


def test_a_slice_that_lost_10_points_is_found() -> None:
    random = np.random.default_rng(3)
    found = sum(adjusted(random, lost=20)[0] < FAMILY for _ in range(40))
    assert found >= 38


def test_where_training_noise_is_left_out_the_same_trainings_are_called_regressions() -> None:
    """The simulation could fail: without the noise it does."""
    random = np.random.default_rng(2)
    false = 0
    for _ in range(200):
        shift = random.normal(0, 0.05, 2)
        right = [(random.random(2000) < 0.9 + one).astype(float) for one in shift]
        over = mean_spread(right[0] - right[1], None, True)
        false += Drop(over).above(ALLOWED) < FAMILY
    assert false > 20
