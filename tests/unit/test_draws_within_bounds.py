"""No interval over draws goes beyond what an effect on a bounded behaviour can be."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import Behaviour
from stagelens.effects.draws import DrawnEffects
from stagelens.effects.summary import stage_summary
from stagelens.wording.intervals import Interval, possible, widened
from stagelens.wording.sentences import mean_sentence
from stagelens.wording.trust_words import HOLDS_ZERO, width_in_means

FORMAT = Behaviour("score:format", "higher", "points", lowest=0.0, highest=1.0)
LOSS = Behaviour("loss", "lower")


def drawn(behaviour: Behaviour, effects: list[float]) -> tuple[DrawnEffects, pd.DataFrame]:
    """Draws, and what a run of one stage and 30 examples comes to with them."""
    rows = [
        {"stage": "s", "behaviour": behaviour.name, "draw": d, "example_id": str(e), "final": 1.0}
        | {"effect": effect}
        for d, effect in enumerate(effects)
        for e in range(30)
    ]
    found = DrawnEffects(pd.DataFrame(rows), "same data")
    own = pd.DataFrame({"stage": "s", "behaviour": behaviour.name, "effect": 0.92}, range(30))
    own = own.assign(example_id=[str(e) for e in range(30)], final=1.0, without=0.08, label=None)
    own = own.assign(within_noise=pd.array([None] * 30, dtype="boolean"))
    return found, stage_summary(own, behaviour, ["s"], draws=found)


def test_a_share_moves_by_no_more_than_100_points() -> None:
    _, means = drawn(FORMAT, [0.99, 0.5, 0.98, 0.97])
    (row,) = means.to_dict("records")
    assert 0 < row["draw_low"] < row["draw_effect"] and row["draw_high"] == 1.0
    assert row["draw_single"] <= 1 + row["draw_effect"]
    assert "to 100 points lower over 4 redraws" in str(mean_sentence(row, FORMAT, "text", None))
    # Without bounds the same numbers keep their interval.
    _, means = drawn(LOSS, [0.99, 0.5, 0.98, 0.97])
    assert means["draw_high"].item() > 1.0


def test_a_difference_of_two_effects_may_be_twice_as_large() -> None:
    found, _ = drawn(FORMAT, [0.1, 0.2, 0.3])
    wide = [-1.5, 0.0, 1.9]
    assert (found.interval(wide, FORMAT).low, found.interval(wide, FORMAT).high) == (-1.0, 1.0)
    assert found.interval(wide, FORMAT, effects=2).high == 2.0
    assert np.isinf(possible(-np.inf, np.inf, LOSS)).all()


def test_the_choice_of_orders_does_not_widen_beyond_that_either() -> None:
    interval = widened(Interval(0.2, 0.9, 0.1, 0.0), 0.4, FORMAT)
    assert (interval.low, interval.high, interval.cut) == (pytest.approx(-0.2), 1.0, True)


@pytest.mark.parametrize(("mean", "low", "clear"), [(0.8, -0.1, False), (0.8, 0.1, True)])
def test_a_cut_end_does_not_make_an_interval_look_clear(
    mean: float, low: float, clear: bool
) -> None:
    assert (width_in_means(mean, low, 1.0) < HOLDS_ZERO) == clear
    assert (width_in_means(-mean, -1.0, -low) < HOLDS_ZERO) == clear
