"""What is known of means over draws, group by group."""

from __future__ import annotations

import numpy as np

from stagelens.estimators.stage_trust import StageTrust
from stagelens.wording.trust_words import trust_label, trust_of_row, trust_word


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
    assert words == ["reliable", "reliable", "rough", "rough"]
    assert "±5 % over draws" in trust_label(trust_of_row(known, narrow, "accuracy"), "accuracy")
    of_run = known.model_copy(update={"over_draws": ()})
    assert trust_of_row(of_run, wide, "accuracy") is of_run
