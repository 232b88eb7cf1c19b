"""Of many stages: which are shown, and how the others are counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.charts import effect_bars, example_effects, time_line
from stagelens.charts.stages import MOST_BANDS
from stagelens.contracts import BASE, Behaviour
from stagelens.wording.folding import MOST, listed, strongest

LOSS = Behaviour("loss", "lower", "nats")
NAMES = [f"stage {number:03d}" for number in range(200)]


def test_the_strongest_are_taken_and_keep_their_order() -> None:
    assert strongest([1.0, -5.0, 0.0, 3.0, np.nan], most=3) == [0, 1, 3]
    assert strongest([2.0, 2.0, 2.0], most=2) == [0, 1]  # of equal ones the first
    assert strongest([np.nan, 0.0], most=1) == [1]
    assert strongest([np.nan, 1.0]) == [0, 1]  # of few, all


def test_names_are_listed_up_to_a_number() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(["a", "b", "c", "d"], most=2) == "a, b and 2 more"
    assert listed(NAMES).endswith(f"{NAMES[MOST - 1]} and 188 more")


def test_an_example_has_bars_for_the_strongest_stages() -> None:
    effects = pd.DataFrame({"stage": NAMES, "effect": np.arange(200.0)})
    chart, markup = example_effects(effects, LOSS, {}), effect_bars(effects, LOSS, {})
    assert len(chart.figure.data[0].y) == MOST
    assert len(chart.rows) == 200  # exports have all of them
    for said in (chart.alt, markup.alt, markup.html):
        assert "188 more stages have smaller effects." in said
        assert NAMES[188] in said and NAMES[187] not in said


def test_a_time_line_of_many_stages_draws_neighbours_as_one() -> None:
    steps = dict.fromkeys(NAMES, 3)
    rates = pd.DataFrame(
        [{"stage": name, "step": step, "lr": 0.1} for name in NAMES for step in range(3)]
    )
    measured = pd.DataFrame(
        {"boundary": [BASE, *NAMES], "group": None, "n": 9, "value": np.arange(201.0)}
    )
    chart = time_line(steps, rates, measured, LOSS)
    bands, *curves, path = chart.figure.data
    assert len(bands.x) == len(curves) == MOST_BANDS
    assert "stage 000 to stage 004: 15 steps" in bands.customdata[0]
    assert curves[0].customdata[-1].startswith("stage 000 to stage 004, step 14")
    # At the end of each group, and before the first.
    assert list(path.y) == [0.0, *np.arange(5.0, 201.0, 5.0)]
    assert len(chart.figure.layout.xaxis3.ticktext) <= 13
    assert len(chart.alt) < 1500
    assert len(chart.rows) == 201
    few = time_line(dict.fromkeys(NAMES[:4], 3), rates, None, None)
    assert len(few.figure.data[0].x) == 4


@pytest.mark.parametrize("count", [40, 41, 79])
def test_no_stage_of_a_time_line_is_lost(count: int) -> None:
    steps = {name: number for number, name in enumerate(NAMES[:count])}
    rates = pd.DataFrame({"stage": NAMES[:count], "step": 0, "lr": 0.1})
    drawn = time_line(steps, rates, None, None).figure.data[0]
    assert len(drawn.x) <= MOST_BANDS
    total = sum(int(text.split(": ")[1].split()[0].replace(",", "")) for text in drawn.customdata)
    assert total == sum(steps.values())
