"""Where too many signs may be wrong, nothing is drawn or said as credit or blame."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from stagelens import charts
from stagelens.charts.comparison import effect_against_effect
from stagelens.charts.places import patch_map
from stagelens.charts.saliency import pixel_maps, token_maps
from stagelens.charts.style import NEITHER, see_through
from stagelens.contracts import Behaviour
from stagelens.estimators.stage_trust import StageTrust
from stagelens.trust.comparing import Side, compare_effects
from stagelens.ui.examples import browser, table_cells
from tests.support.saliency_maps import image_map, text_map
from tests.support.stage_trust import AGREES, DISAGREES, EXACT, ROUGH, trust

LOSS = Behaviour("loss", "lower", "nats")
UNSURE = trust(expected_error=0.3, wrong_signs=0.35)
SURE = UNSURE.model_copy(update={"wrong_signs": 0.1})


def coloured(text: str) -> bool:
    """Whether credit's or blame's colour is in markup or in a figure's JSON."""
    heads = [see_through(color, 0.5).rsplit(",", 1)[0] for color in (charts.CREDIT, charts.BLAME)]
    return any(color in text for color in (charts.CREDIT, charts.BLAME, *heads))


def drawn_marks(chart: charts.Chart) -> set[str]:
    """Names of the traces of bars and points that have any."""
    return {
        trace.name
        for trace in chart.figure.data
        if trace.name and trace.x is not None and np.isfinite(np.asarray(trace.x, float)).any()
    }


def test_bars_over_examples() -> None:
    row = {
        **{"stage": "shortcut", "group": None, "n": 40, "missing": 0, "effect": -1.0, "gain": 1.0},
        **{"credit": 1.5, "blame": -0.5, "credit_share": 0.8, "blame_share": 0.2},
        "within_noise": pd.NA,
    }
    for known, named in (
        (UNSURE, {"neither"}),
        (DISAGREES, {"neither"}),
        (SURE, {"credit", "blame"}),
    ):
        chart = charts.credit_and_blame(pd.DataFrame([row]), LOSS, {"shortcut": known})
        assert drawn_marks(chart) - {"net"} == named
        assert ("neither credit nor blame" in chart.alt) is (known is not SURE)
        assert ("a replay does not agree:" in chart.alt) is (known is DISAGREES)
        if known is UNSURE:
            bars = [each for each in chart.figure.data if each.name == "neither"]
            assert [bar.showlegend for bar in bars] == [True, False]
            assert {bar.marker.color for bar in bars} == {NEITHER}
            assert {text for bar in bars for text in bar.text} == {"±1.50", "±0.50"}
            assert "neither credit nor blame" in bars[0].customdata[0]
            assert not re.search(r"(credit|blame) [+−\d]", chart.alt + bars[0].customdata[0])


def test_bars_of_one_example() -> None:
    effects = pd.DataFrame({"stage": ["shortcut", "adapt"], "effect": [-1.0, -2.0]})
    known = {"shortcut": UNSURE, "adapt": EXACT}
    chart = charts.example_effects(effects, LOSS, known)
    assert drawn_marks(chart) == {"credit", "neither"}
    assert "shortcut: its sign is uncertain: neither credit nor blame, 1.00" in chart.alt
    markup = charts.effect_bars(effects, LOSS, known)
    assert markup.alt == chart.alt and "± 1.00" in markup.html and "▲ 2.00" in markup.html
    alone = charts.effect_bars(effects.head(1), LOSS, known).html
    assert not coloured(alone) and NEITHER in alone and "neither credit nor blame" in alone


def test_bars_of_one_example_whose_interval_includes_zero() -> None:
    effects = pd.DataFrame(
        {"stage": ["shortcut", "adapt"], "effect": [-1.0, 2.0], "error": [1.1, 1.9]}
    )
    known = {"shortcut": ROUGH, "adapt": ROUGH}
    chart = charts.example_effects(effects, LOSS, known)
    assert drawn_marks(chart) == {"neither", "blame", "interval"}
    assert "shortcut: no clear change: the interval includes zero, 1.00" in chart.alt
    markup = charts.effect_bars(effects, LOSS, known)
    assert markup.alt == chart.alt and "± 1.00" in markup.html and "▼ 2.00" in markup.html
    assert not coloured(charts.effect_bars(effects.head(1), LOSS, known).html)


def test_a_replay_keeps_the_colours_that_a_refuted_estimate_loses() -> None:
    effects = pd.DataFrame({"stage": ["shortcut"], "effect": [-1.0]})
    for known, has in ((DISAGREES, False), (AGREES, True), (EXACT, True)):
        assert coloured(charts.effect_bars(effects, LOSS, {"shortcut": known}).html) is has


def test_one_side_of_a_comparison_is_enough() -> None:
    ids, effects = [f"e{i}" for i in range(50)], np.linspace(-1, 1, 50)
    table = pd.DataFrame({"example_id": ids, "effect": effects})
    for known, named in (
        (UNSURE, {"sign uncertain"}),
        (ROUGH, {"credit by both", "blame by both"}),
    ):
        found = compare_effects(Side("one", LOSS, table, EXACT), Side("two", LOSS, table, known))
        chart = effect_against_effect(found, "shortcut")
        assert drawn_marks(chart) == named
        assert ("The sign is uncertain." in chart.alt) is (known is UNSURE)


@pytest.mark.parametrize("signed", [True, False])
def test_tokens(signed: bool) -> None:
    options = (np.array([2.0, -1.0]), LOSS, "shortcut")
    markup = charts.shaded_tokens(["a", "b"], *options, signed=signed)
    assert coloured(markup.html) is signed
    assert ("the sign is uncertain" in markup.alt) is not signed
    assert ("lower or higher" in markup.html) is not signed


@pytest.mark.parametrize("signed", [True, False])
def test_maps_of_one_input(signed: bool) -> None:
    chart = pixel_maps(image_map(), "", LOSS, "shortcut", signed=signed)
    figure = json.loads(chart.figure.to_json())
    own = figure["data"][2]["coloraxis"]
    assert coloured(json.dumps(figure["layout"][own])) is signed
    assert ("▲ credit" in json.dumps(figure["data"][2]["customdata"], ensure_ascii=False)) is signed
    assert ("sign uncertain" in chart.alt) is not signed
    markup = token_maps(text_map(("a", "b"), [-2.0, 0.5]), LOSS, "shortcut", signed)
    assert ("sign uncertain" in markup.alt) is not signed
    last = markup.html.split("effect of shortcut")[-1].split("<div style='")[0]
    assert coloured(last) is signed


@pytest.mark.parametrize("signed", [True, False])
def test_the_map_of_a_set(signed: bool) -> None:
    patch = {"top": 0, "left": 0, "height": 2, "width": 2, "mean_with": 1.0, "support": 30}
    chart = patch_map(pd.DataFrame([patch]), (4, 4), LOSS, "shortcut", signed=signed)
    assert coloured(json.dumps(chart.figure.to_json())) is signed


@pytest.mark.parametrize(("signed", "cell"), [(True, "▲ 1.00"), (False, "± 1.00")])
def test_cells_of_examples(signed: bool, cell: str) -> None:
    assert table_cells._effect_cell(-1.0, LOSS, False, signed) == cell


def test_the_legend_of_the_table_explains_the_mark_where_it_is_used() -> None:
    assert "±" in browser._unsigned({"a": UNSURE, "b": EXACT})
    known: dict[str, StageTrust] = {"a": EXACT}
    assert browser._unsigned(known) == ""
