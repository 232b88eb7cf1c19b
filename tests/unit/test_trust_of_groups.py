"""What is known of means over draws, group by group."""

from __future__ import annotations

import numpy as np

from stagelens.estimators.expected_error import RELIABLE_BELOW
from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.trust_words import (
    clear_over_draws,
    trust_advice,
    trust_label,
    trust_of_row,
    trust_word,
)


def test_each_group_goes_by_its_own_interval_and_not_by_that_of_the_whole_set() -> None:
    known = StageTrust(
        stage="s", estimator="replay", trust="estimated", reason="", over_draws=(("accuracy", 0.2),)
    )
    row = {"stage": "s", "effect": 0.4, "n": 30, "draw_effect": 0.4, "drawn": "8 redraws"}
    narrow = row | {"draw_low": 0.38, "draw_high": 0.42}
    wide = row | {"draw_low": 0.1, "draw_high": 0.7}
    around_zero = row | {"draw_low": -0.1, "draw_high": 0.9}
    unknown = row | {"draw_low": None, "draw_high": np.nan}
    words = [
        trust_word(trust_of_row(known, each, "accuracy"), "accuracy")
        for each in (narrow, wide, around_zero, unknown)
    ]
    assert words == ["reliable", "rough", "rough", "rough"]
    clear = [
        clear_over_draws(trust_of_row(known, each, "accuracy"), "accuracy")
        for each in (narrow, wide, around_zero, unknown)
    ]
    assert clear == [True, True, False, False]  # the sign of a rough one may be known
    assert "Rely on its sign" in trust_advice(trust_of_row(known, wide, "accuracy"), "accuracy")
    # The word's limit is that of estimates, on either side of the mean.
    edges = [
        known.model_copy(update={"over_draws": (("accuracy", 2 * (RELIABLE_BELOW + beyond)),)})
        for beyond in (0.0, 0.001)
    ]
    assert [trust_word(each, "accuracy") for each in edges] == ["reliable", "rough"]
    assert "±5 % over draws" in trust_label(trust_of_row(known, narrow, "accuracy"), "accuracy")
    of_run = known.model_copy(update={"over_draws": ()})
    assert trust_of_row(of_run, wide, "accuracy") is of_run
