"""The arithmetic of the two truths, on simulated effects whose mean over all orders is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.two_truths import (
    OTHER,
    RECORDED,
    against_mean,
    answer,
    cells,
    compared,
    floors,
    knows,
    markdown,
)

EXAMPLES, ORDERS = 4000, 8


def _draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """B, A, effects in other orders, and noise as long as B that has nothing to do with them."""
    random = np.random.default_rng(seed)
    mean = 0.5 + random.normal(size=EXAMPLES)
    special = random.normal(size=(1 + ORDERS, EXAMPLES))
    unrelated = random.normal(size=EXAMPLES) * np.linalg.norm(mean) / np.sqrt(EXAMPLES)
    return mean, mean + special[0], mean + special[1:], unrelated


def test_the_noise_of_a_few_orders_is_taken_off_the_error() -> None:
    mean, _, orders, unrelated = _draw()
    for share in (0.0, 0.3, 1.5):
        found = against_mean(mean + share * unrelated, orders)
        assert found["error_mean"] == pytest.approx(share, abs=0.08)
    assert found["size_mean"] == pytest.approx(np.linalg.norm(mean), rel=0.02)
    # Without it, an estimate that is B itself would seem to be a third off.
    assert against_mean(mean, orders)["error_mean_raw"] > 0.25


def test_the_correlation_is_that_with_the_mean_of_all_orders() -> None:
    mean, _, orders, unrelated = _draw()
    estimate = mean + unrelated
    found = against_mean(estimate, orders)
    assert found["r_mean"] == pytest.approx(np.corrcoef(estimate, mean)[0, 1], abs=0.02)
    assert np.corrcoef(estimate, orders.mean(0))[0, 1] < found["r_mean"] - 0.02
    assert found["slope_mean"] == pytest.approx(mean @ estimate / (estimate @ estimate), abs=0.02)
    assert against_mean(mean, orders)["r_mean"] <= 1


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_what_an_estimate_knows_of_the_order_does_not_depend_on_its_scale_of_the_mean(
    share: float, scale: float
) -> None:
    mean, recorded, orders, unrelated = _draw()
    estimate = scale * mean + share * (recorded - mean) + 0.5 * unrelated
    assert knows(estimate, recorded, orders) == pytest.approx(share, abs=0.05)


def test_another_order_is_further_from_the_recorded_one_than_from_the_mean() -> None:
    _, recorded, orders, _ = _draw()
    rows = pd.DataFrame(floors(recorded, orders)).groupby("estimator").mean()
    # Of unit noise on effects of mean square 1.25, two orders differ by twice the variance.
    assert rows.loc[OTHER, "error"] == pytest.approx(np.sqrt(2 / 2.25), abs=0.03)
    for name in (OTHER, RECORDED):
        assert rows.loc[name, "error_mean"] == pytest.approx(np.sqrt(1 / 1.25), abs=0.03)
    assert rows.loc[OTHER, "knows"] == pytest.approx(0, abs=0.05)


def test_a_mean_that_is_nothing_but_noise_gives_no_figures() -> None:
    random = np.random.default_rng(0)
    orders = random.normal(size=(ORDERS, EXAMPLES))
    orders -= orders.mean(0)
    found = against_mean(random.normal(size=EXAMPLES), orders)
    assert np.isnan(found["error_mean"]) and np.isnan(found["r_mean"])
    assert np.isnan(knows(orders[0], orders[1], orders))


def test_the_answer_is_a_ratio_per_seed_and_counts_the_cells_that_are_nearer_to_the_mean() -> None:
    rows = []
    for seed in range(2):
        mean, recorded, orders, unrelated = _draw(seed)
        key = {"scenario": "s", "seed": seed, "stage": "first", "refused": False}
        own = {"estimator": "of the mean", **compared(mean + 0.3 * unrelated, recorded, orders)}
        other = {"estimator": "of A", **compared(recorded + 0.1 * unrelated, recorded, orders)}
        rows += [{**key, "reliable": None, **each} for each in (own, other)]
    found = answer(cells(pd.DataFrame(rows))).loc["s"]
    assert found.loc["of the mean", "lower for B"] == "2 of 2"
    assert found.loc["of A", "lower for B"] == "0 of 2"
    # Error against A: (1 + .3^2 * 1.25) / 2.25, against B: .3^2, both squared.
    ratio = float(found.loc["of the mean", "B / A"].split()[0])
    assert ratio == pytest.approx(0.3 / np.sqrt((1 + 0.09 * 1.25) / 2.25), abs=0.06)


def test_the_table_for_pages_ends_with_what_estimates_cost() -> None:
    rows = pd.DataFrame(
        {
            "scenario": "digits",
            "stage": "first",
            "estimator": ["coarse-replay 1/4"] * 3,
            "seed": range(3),
            "refused": [0, 0, 1],
            "r": [0.9, 0.8, None],
            "error": [0.2, 0.3, None],
            "cost": [0.2, 0.4, 9.0],
            "wall": [1.0, 1.0, 9.0],
        }
    )
    *_, cell, gradients, time = markdown(rows).splitlines()
    assert "0.80 to 0.90 (0.20 to 0.30), refused 1 of 3" in cell
    # A refusal costs nothing that anybody would compare.
    assert gradients.startswith("| *gradients") and "0.30 (0.25 to 0.35)" in gradients
    assert time.startswith("| *time") and "1.00 (1.00 to 1.00)" in time
