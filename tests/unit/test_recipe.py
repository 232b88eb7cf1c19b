"""An estimate against this run and against its recipe, on simulated effects of known means."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.trust.noise import RECORDED
from stagelens.trust.recipe import FEWEST_ORDERS, two_errors

EXAMPLES = 40_000


def _simulated(orders: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """The recipe's effects, those of the recorded order, and the table of all orders."""
    random = np.random.default_rng(3)
    mean = random.normal(size=EXAMPLES)
    each = mean + random.normal(size=(1 + orders, EXAMPLES))
    numbers = np.repeat([RECORDED, *range(orders)], EXAMPLES)
    ids = np.tile([str(n) for n in range(EXAMPLES)], 1 + orders)
    return (
        mean,
        each[0],
        pd.DataFrame({"order": numbers, "example_id": ids, "effect": each.ravel()}),
    )


def _estimate(effects: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"example_id": [str(n) for n in range(EXAMPLES)], "effect": effects})


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_error_against_the_recipe_has_the_noise_of_few_orders_taken_off(share: float) -> None:
    mean, recorded, orders = _simulated(5)
    unrelated = np.random.default_rng(4).normal(size=EXAMPLES)
    found = two_errors(_estimate(mean + share * unrelated), orders)
    assert found is not None and found.orders == 5
    assert found.of_recipe == pytest.approx(share, abs=0.1)
    apart = np.linalg.norm(mean + share * unrelated - recorded) / np.linalg.norm(recorded)
    assert found.of_run == pytest.approx(apart)


def test_an_estimate_of_this_very_run_is_farther_from_the_recipe() -> None:
    _, recorded, orders = _simulated(6)
    found = two_errors(_estimate(recorded), orders)
    assert found is not None and found.of_run == 0
    assert found.of_recipe == pytest.approx(1, abs=0.05)


def test_it_takes_a_replay_and_enough_orders() -> None:
    mean, _, orders = _simulated(FEWEST_ORDERS)
    assert two_errors(_estimate(mean), orders) is not None
    assert two_errors(_estimate(mean), orders[orders["order"] != RECORDED]) is None
    assert two_errors(_estimate(mean), orders[orders["order"] != 0]) is None
    missing = orders.assign(effect=orders["effect"].where(orders["order"] != 0))
    assert two_errors(_estimate(mean), missing) is None
