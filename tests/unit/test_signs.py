"""Credit is up, positive and blue, blame down, negative and orange: in every chart and tile."""

from __future__ import annotations

import html
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from stagelens import charts
from stagelens.analyses.contributions.contribution_table import Question
from stagelens.analyses.saliency.map_table import Map
from stagelens.analyses.shares.pairs import pairs_of
from stagelens.analyses.shares.share_table import SHARE, Shares, shares_of
from stagelens.charts import (
    agreement_picture,
    comparison,
    network,
    saliency,
    steps,
    tokens,
    trust,
)
from stagelens.charts.style import BLAME, CREDIT, NEITHER, Chart, color_of
from stagelens.contracts import Behaviour
from stagelens.report.shares import share_rows
from stagelens.trust.comparing import Side, compare_effects
from stagelens.ui.examples.contributions import Asked, tiles
from stagelens.wording.intervals import Interval, interval_text
from stagelens.wording.signs import gain, gain_range_text, gain_text, marked, side
from tests.support.coalitions import made
from tests.support.stage_trust import EXACT

LOSS = Behaviour("loss", "lower")
MARGIN = Behaviour("margin", "higher")
GOOD, BAD = 0.5, -0.3
"""Gains of the stages ``good`` and ``bad``, so that their effects on a loss are −0.5 and +0.3."""
TRUST = {"good": EXACT, "bad": EXACT}


def effects(kind: Behaviour) -> np.ndarray:
    return kind.sign * np.array([GOOD, BAD])


def stages(kind: Behaviour) -> pd.DataFrame:
    return pd.DataFrame({"stage": ["good", "bad"], "effect": effects(kind)})


def means(kind: Behaviour) -> pd.DataFrame:
    of = np.array([GOOD, BAD])
    return stages(kind).assign(
        group=None, n=10, missing=0, gain=of, credit=of.clip(0), blame=of.clip(None, 0),
        credit_share=0.5, blame_share=0.5, within_noise=pd.NA, error=0.0,
    )  # fmt: skip


def shares(kind: Behaviour) -> Shares:
    """Two stages that do the same whether or not the other happened."""
    of = effects(kind)
    v = {mask: np.full(60, 5 + mask % 2 * of[0] + mask // 2 * of[1]) for mask in range(4)}
    return shares_of(made(v, ("good", "bad"), better=kind.better), "score")


def pairs(kind: Behaviour) -> Shares:
    """Two stages that do something only together."""
    v = {0: np.zeros(60), 1: np.zeros(60), 2: np.zeros(60), 3: np.full(60, effects(kind)[1])}
    return shares_of(made(v, ("good", "bad"), better=kind.better), "score")


def shared(kind: Behaviour) -> Chart:
    found = shares(kind)
    ends = found.level(0), found.level(found.full)
    return charts.waterfall(found.means(SHARE), *ends, found.behaviour)


def contributed(kind: Behaviour) -> Chart:
    rows = pd.DataFrame({"step": [0, 1], "value": effects(kind)})
    rates = pd.DataFrame({"step": [0, 1], "lr": [0.1, 0.1]})
    return steps.step_contributions(rows, rates, kind, "s", effects(kind)[0], "#56B4E9")


def points(kind: Behaviour) -> pd.DataFrame:
    of = {"estimate": effects(kind), "replay": effects(kind)}
    return pd.DataFrame({"example_id": ["a", "b"], **of, "within_noise": pd.NA})


def against_replay(kind: Behaviour) -> Chart:
    return trust.agreement(points(kind), kind, "s", "task-vector", 1.0)


def pictured(kind: Behaviour) -> charts.Markup:
    return agreement_picture.agreement_picture(points(kind), kind, "s", "task-vector", 1.0)


def compared(kind: Behaviour) -> Chart:
    table = pd.DataFrame({"example_id": [f"e{i}" for i in range(40)],
                          "effect": np.tile(effects(kind), 20)})  # fmt: skip
    return comparison.effect_against_effect(
        compare_effects(Side("one", kind, table, EXACT), Side("two", kind, table, EXACT)), "s"
    )


def of_tokens(kind: Behaviour) -> Map:
    return Map("e", ("good", "bad"), effects(kind), np.zeros(2), (0.2, 0.0), (0.0, 0.0), 8)


def of_pixels(kind: Behaviour) -> Map:
    final = effects(kind)[None]
    return Map("e", None, final, np.zeros((1, 2)), (0.2, 0.0), (0.0, 0.0), 8)


def of_blocks(kind: Behaviour) -> charts.Markup:
    rows = pd.DataFrame(
        {"layer": [None, None], "block": ["good", "bad"], "effect": effects(kind),
         "low": np.nan, "high": np.nan, "moved": 1.0}
    )  # fmt: skip
    return network.network_map(rows, float(effects(kind)[0]), "s", kind, EXACT)


DRAWN: dict[str, Callable[[Behaviour], charts.Chart | charts.Markup]] = {
    "credit_and_blame": lambda kind: charts.credit_and_blame(means(kind), kind, TRUST),
    "example_effects": lambda kind: charts.example_effects(stages(kind), kind, TRUST),
    "effect_bars": lambda kind: charts.effect_bars(stages(kind), kind, TRUST),
    "waterfall": shared,
    "pair_matrix": lambda kind: charts.pair_matrix(pairs_of(pairs(kind)), pairs(kind).behaviour),
    "step_contributions": contributed,
    "agreement": against_replay,
    "agreement_picture": pictured,
    "effect_against_effect": compared,
    "shaded_tokens": lambda kind: tokens.shaded_tokens(["x", "y"], effects(kind), kind, "s"),
    "token_maps": lambda kind: saliency.token_maps(of_tokens(kind), kind, "s"),
    "network_map": of_blocks,
    "pixel_maps": lambda kind: saliency.pixel_maps(of_pixels(kind), "", kind, "s"),
}
WITHOUT_SIGN = {"patch_map", "expected_error_curve"}
"""Sizes only."""
MARKED = {"effect_bars", "network_map"}
"""Their amounts stand behind ▲ and ▼."""
SCALES = {"pixel_maps", "token_maps", "shaded_tokens"}
"""Their legends print both ends of the scale."""
PLACES = {"agreement_picture"}
"""They print no amounts: credit stands right of zero, blame left of it."""
AXES_OF_THE_BEHAVIOUR = {
    "time_line", "observed_path", "group_gaps", "gap_rows",
    "trained_rows", "trained_bars", "horizon_curve",
}  # fmt: skip
"""They draw the behaviour itself, on an axis named after it."""
DROPS = {"drop_rows"}
"""A regression gate's are positive for worse, as their name says; no stage effects."""


def texts(drawn: charts.Chart | charts.Markup) -> str:
    """Everything that is printed, as it is read."""
    if isinstance(drawn, charts.Markup):
        return unquote(html.unescape(drawn.html))
    return json.dumps(json.loads(drawn.figure.to_json()), ensure_ascii=False) + drawn.alt


def test_every_chart_of_effects_is_walked_over() -> None:
    found = set()
    for module in pkgutil.iter_modules(charts.__path__):
        own = importlib.import_module(f"stagelens.charts.{module.name}")
        for name, function in inspect.getmembers(own, inspect.isfunction):
            asked = inspect.signature(function)
            drawn = asked.return_annotation in ("Chart", "Markup")
            about = {"behaviour", "found"} & set(asked.parameters)
            if not name.startswith("_") and drawn and about:
                found.add(name)
    assert found == set(DRAWN) | WITHOUT_SIGN | AXES_OF_THE_BEHAVIOUR | DROPS


@pytest.mark.parametrize("kind", [LOSS, MARGIN], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", DRAWN)
def test_a_better_behaviour_is_positive_whichever_way_is_better(name: str, kind: Behaviour) -> None:
    said = texts(DRAWN[name](kind))
    signed = set(re.findall(r"[+−]0\.[35]0?(?!\d)", said))
    if name in SCALES:
        assert {"−0.50", "+0.50"} <= signed
    elif name in MARKED:
        assert "▲ 0.50" in said and "▼ 0.30" in said and not signed
    elif name in PLACES:
        zero = re.search(r"M([\d.]+) 200\.0L\1 0\.0", said)
        credit = re.search(rf"M([\d.]+) [\d.]+m[^>]*fill='{CREDIT}'", said)
        blame = re.search(rf"M([\d.]+) [\d.]+m[^>]*fill='{BLAME}'", said)
        assert zero and credit and blame
        assert float(blame[1]) < float(zero[1]) < float(credit[1])
    else:
        assert signed and signed <= {"+0.50", "−0.30"}
    assert CREDIT in said or "rgba(0,114,178" in said
    assert BLAME in said or "rgba(213,94,0" in said


@pytest.mark.parametrize("name", DRAWN)
def test_a_loss_and_a_margin_of_equal_gains_print_the_same_signs_and_colours(name: str) -> None:
    drawn = [texts(DRAWN[name](kind)) for kind in (LOSS, MARGIN)]
    for pattern in (r"[+−]\d+\.\d+", r"#0072B2|#D55E00|rgba\((?:0,114,178|213,94,0),[\d.]+\)",
                    r"[▲▼] [\d.]+", r"\b(?:credit|blame)\b"):  # fmt: skip
        of_loss, of_margin = (re.findall(pattern, said) for said in drawn)
        assert of_loss == of_margin


@pytest.mark.parametrize("kind", [LOSS, MARGIN], ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", [n for n in DRAWN if n not in ("effect_bars", "waterfall")])
def test_bars_and_points_of_credit_are_blue_and_up_or_right(name: str, kind: Behaviour) -> None:
    drawn = DRAWN[name](kind)
    if not isinstance(drawn, charts.Chart):
        return
    for trace in drawn.figure.data:
        for color, sign in ((CREDIT, 1), (BLAME, -1)):
            if isinstance(trace, go.Bar) and trace.orientation == "h":
                values, colors = trace.x, [trace.marker.color] * len(trace.x)
            elif isinstance(trace, go.Bar):
                values, colors = trace.y, list(trace.marker.color)
            elif isinstance(trace, go.Scatter) and trace.mode == "markers":
                values, colors = trace.y, [trace.marker.color] * len(trace.y)
            else:
                continue
            own = [v for v, c in zip(values, colors, strict=True) if c == color]
            assert all(sign * v >= 0 for v in own if v == v)


def test_better_is_to_the_right_in_a_waterfall_of_either() -> None:
    for kind in (LOSS, MARGIN):
        figure = shared(kind).figure
        low, high = figure.layout.xaxis.range
        assert (low < high) == (kind.better == "higher")
        bars = {
            trace.name: trace.x[0] for trace in figure.data if trace.name in ("credit", "blame")
        }
        # Towards the better end of the axis.
        assert kind.sign * bars["credit"] > 0 > kind.sign * bars["blame"]


@pytest.mark.parametrize("kind", [LOSS, MARGIN], ids=lambda kind: kind.name)
def test_tiles_of_when_have_the_signs_of_the_chart_below_them(kind: Behaviour) -> None:
    asked = Asked(("a",), kind, "good", float(effects(kind)[1]), EXACT, Question(ids=("a",)))
    effect, together, rest = tiles(asked, 2, float(effects(kind).sum()))
    assert effect[1:] == ("−0.30", "blame, ● exact, by replay")
    # Of the opposite sign than the effect, so neither credit nor blame.
    assert together[1] == "+0.20" and together[2].startswith("○ rough, ")
    agreeing = replace(asked, effect=-asked.effect)
    assert tiles(agreeing, 2, float(effects(kind).sum()))[1][2].startswith("credit, ")
    assert rest[1] == "−0.50" and "blame" not in rest[2]
    chart = steps.step_contributions(
        pd.DataFrame({"step": [0, 1], "value": effects(kind)}),
        pd.DataFrame({"step": [0], "lr": [0.1]}), kind, "good", asked.effect, "#56B4E9",
    )  # fmt: skip
    ends = next(t for t in chart.figure.data if t.type == "scatter" and t.mode == "markers")
    assert list(ends.y) == pytest.approx([0.2, -0.3])
    assert [said.split(": ")[1].split(",")[0] for said in ends.customdata] == [
        together[1],
        effect[1],
    ]


@pytest.mark.parametrize("kind", [LOSS, MARGIN], ids=lambda kind: kind.name)
def test_tables_of_shares_follow_the_rule(kind: Behaviour) -> None:
    rows = share_rows(shares(kind)).set_index("stage")
    for reading in ("share", "without it", "seen after", "alone"):
        assert rows[reading].tolist() == pytest.approx([GOOD, BAD])
    assert (rows["share low"] <= rows["share"]).all() and (
        rows["share"] <= rows["share high"]
    ).all()


def test_one_place_decides() -> None:
    assert gain(-0.4, LOSS) == 0.4 and gain(-0.4, MARGIN) == -0.4
    assert (gain_text(-0.4, LOSS), gain_text(-0.4, MARGIN)) == ("+0.40", "−0.40")
    assert (side(-0.4, LOSS), side(-0.4, MARGIN), side(0.0001, LOSS)) == ("credit", "blame", "")
    assert side(float("nan"), LOSS) == ""
    assert gain_range_text(0.1, 0.5, LOSS) == "−0.50 to −0.10"
    assert interval_text(Interval(0.1, 0.5, 0.0, 0.0), LOSS) == "−0.50 to −0.10"
    assert interval_text(Interval(0.1, 0.5, 0.0, 0.0), MARGIN) == "+0.10 to +0.50"
    assert marked(gain(-0.4, LOSS), LOSS) == "▲ 0.40"
    assert [color_of(one) for one in (0.1, -0.1, 0.0, float("nan"))] == [
        CREDIT, BLAME, NEITHER, NEITHER,
    ]  # fmt: skip
