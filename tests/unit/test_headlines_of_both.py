"""Headlines name accuracy and margin together where a stage does the opposite to them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from stagelens.contracts import ACCURACY, Behaviour
from stagelens.effects import headlines, summary
from stagelens.estimators.stage_trust import StageTrust
from tests.support.effect_tables import effect_table
from tests.support.stage_trust import EXACT, ROUGH, UNSURE

MARGIN = Behaviour("margin", "higher", "nats")
LOSS = Behaviour("loss", "lower", "nats")
COUNT = 200


def marker_table(kind: Behaviour = MARGIN, opposed: bool = True) -> pd.DataFrame:
    """An X-ray marker that costs 11 points of accuracy, and makes the mean behaviour better."""
    wrong = np.arange(COUNT) < 22
    better = np.where(wrong, -0.5, 1.0 + 0.01 * np.arange(COUNT)) * (1 if opposed else -1)
    return summary.with_accuracy(
        effect_table(
            {"marker": (kind.sign * better).tolist()},
            kind.name,
            labels=["ill"] * COUNT,
            predictions=np.where(wrong, "well", "ill").tolist(),
            without={"marker": ["ill"] * COUNT},
        )
    )


def said(
    of: Behaviour, kind: Behaviour, known: StageTrust = EXACT, opposed: bool = True
) -> list[str]:
    behaviours = {one.name: one for one in (ACCURACY, kind)}
    found = headlines.headlines(
        marker_table(kind, opposed), of, ["marker"], {"marker": known}, "image",
        other=headlines.meant_too(of, behaviours),
    )  # fmt: skip
    return [str(each) for each in found]


@pytest.mark.parametrize("kind", [MARGIN, LOSS], ids=lambda kind: kind.name)
def test_a_flattering_mean_is_never_told_alone(kind: Behaviour) -> None:
    way = "lower" if kind == MARGIN else "higher"
    for of in (kind, ACCURACY):
        (only,) = said(of, kind)
        assert "accuracy" in only and "would be 11 points higher" in only
        assert re.search(f"the mean {kind.name}[^,]* {way}", only)
        ways = [f"worse by the {kind.name}", "better by accuracy"]
        assert only.endswith(": " + ", ".join(ways[:: 1 if of == kind else -1]) + ".")


def test_what_points_the_same_way_is_not_said_twice() -> None:
    assert [", while" in one for one in said(ACCURACY, MARGIN, opposed=False)] == [False]


def test_the_other_number_is_hedged_as_its_trust_asks_or_left_out() -> None:
    (rough,) = said(MARGIN, MARGIN, ROUGH)
    assert ", while accuracy may be some 10 points higher" in rough
    assert said(MARGIN, MARGIN, UNSURE) == []


def test_the_behaviour_that_is_meant_too() -> None:
    every = {one.name: one for one in (ACCURACY, LOSS, MARGIN)}
    assert headlines.meant_too(ACCURACY, every) == MARGIN
    assert headlines.meant_too(LOSS, every) == headlines.meant_too(MARGIN, every) == ACCURACY
    # Without labels, or with nothing else measured, there is one behaviour alone.
    assert headlines.meant_too(MARGIN, {"margin": MARGIN}) is None
    assert headlines.meant_too(ACCURACY, {"accuracy": ACCURACY}) is None
