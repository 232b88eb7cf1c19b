"""Scatter of estimate against replay, and names of estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stagelens import charts
from stagelens.charts.trust import agreement
from stagelens.contracts import Behaviour
from stagelens.estimators import registry

LOSS = Behaviour("loss", "lower", "nats")
MARGIN = Behaviour("margin", "higher", "nats")
HOSTILE = "<b onmouseover=alert(1)>x</b>"


def points(count: int = 40, slope: float = 1.0, noisy: int = 0) -> pd.DataFrame:
    estimate = np.linspace(-2, 3, count)
    return pd.DataFrame(
        {
            "example_id": [f"e{i}" for i in range(count)],
            "estimate": estimate,
            "replay": slope * estimate,
            "within_noise": pd.array([i < noisy for i in range(count)], dtype="boolean"),
        }
    )


def drawn(table: pd.DataFrame, behaviour: Behaviour = MARGIN, slope: float = 1.0) -> charts.Chart:
    return agreement(table, behaviour, "pretrain", "coarse-replay 1/4", slope, charts.EITHER)


def traces(chart: charts.Chart) -> dict[str, Any]:
    return {trace.name: trace for trace in chart.figure.data if trace.name}


def test_credit_and_blame_differ_by_colour_and_shape() -> None:
    found = traces(drawn(points()))
    assert found["credit"].marker.color == charts.CREDIT
    assert found["blame"].marker.color == charts.BLAME
    assert found["credit"].marker.symbol != found["blame"].marker.symbol


@pytest.mark.parametrize(("behaviour", "sign"), [(MARGIN, 1), (LOSS, -1)])
def test_both_axes_point_towards_credit(behaviour: Behaviour, sign: int) -> None:
    credit = traces(drawn(points(), behaviour))["credit"]
    expected = points()["replay"][sign * points()["replay"] >= 0]
    assert sorted(credit.y) == pytest.approx(sorted(sign * expected))
    assert min(credit.y) >= 0


@pytest.mark.parametrize("count", [400, 401, 3000])
def test_of_many_points_a_sample_is_drawn_with_the_outermost_and_this_is_said(count: int) -> None:
    table = points(count)
    chart = drawn(table)
    seen = np.sort(np.concatenate([trace.x for trace in traces(chart).values()]))
    assert len(seen) == len(np.unique(seen)) == 400
    assert np.isin(seen, table["estimate"]).all()
    assert seen[0] == table["estimate"].min() and seen[-1] == table["estimate"].max()
    assert (f"400 of {count:,} examples" in chart.alt) == (count > 400)
    assert chart.rows is not None and len(chart.rows) == count
    again = np.concatenate([trace.x for trace in traces(drawn(table)).values()])
    assert np.array_equal(np.sort(again), seen)


def test_effects_within_training_noise_are_neither_credit_nor_blame() -> None:
    found = traces(drawn(points(noisy=7)))
    assert len(found["within noise"].x) == 7
    assert sum(len(trace.x) for trace in found.values()) == 40


@pytest.mark.parametrize("slope", [1.0, 0.3, 4.0, -2.0, 0.0])
def test_the_dashed_line_goes_through_the_origin_within_the_square(slope: float) -> None:
    chart = drawn(points(slope=slope), slope=slope)
    line = next(t for t in chart.figure.data if t.mode == "lines" and t.line.dash == "dash")
    low, high = chart.figure.layout.xaxis.range
    assert tuple(chart.figure.layout.yaxis.range) == (low, high)
    for x, y in zip(line.x, line.y, strict=True):
        assert y == pytest.approx(slope * x)
        assert low - 1e-9 <= x <= high + 1e-9 and low - 1e-9 <= y <= high + 1e-9


def test_an_identity_line_spans_the_square() -> None:
    chart = drawn(points())
    line = next(t for t in chart.figure.data if t.mode == "lines" and t.line.dash == "solid")
    assert tuple(line.x) == tuple(line.y) == tuple(chart.figure.layout.xaxis.range)


def test_the_alternative_text_has_the_takeaway() -> None:
    said = drawn(points()).alt
    assert (
        "is verified by replay: r 1.00, slope 1.00, relative error 0 %; 0 % have the wrong" in said
    )
    wrong = drawn(points(slope=-1.0), slope=-1.0).alt
    assert "does not agree with replay: r −1.00" in wrong and "100 % have the wrong" in wrong
    steep = drawn(points(slope=0.4), slope=0.4).alt
    assert "does not agree with replay: r 1.00, slope 0.40, relative error 150 %" in steep


def test_no_points_and_undefined_slopes_are_drawn_empty() -> None:
    chart = drawn(points().iloc[:0], slope=float("nan"))
    assert "no example" in chart.alt
    same = drawn(points().assign(estimate=0.0), slope=float("nan"))
    assert "r n/a" in same.alt


def test_ids_from_data_are_escaped() -> None:
    text = drawn(points().assign(example_id=HOSTILE)).figure.to_json()
    assert HOSTILE not in text.replace("\\u003c", "<").replace("\\u003e", ">")


def test_estimates_are_named_by_their_budget() -> None:
    assert registry.estimate_name("coarse-replay", {"budget": 0.125}) == "coarse-replay 1/8"
    assert registry.estimate_name("coarse-replay", {"budget": 0.3}) == "coarse-replay 3/10"
    assert registry.estimate_name("replay", {}) == "replay"
    named = registry.estimate_name("unrolled-jump", {"dtype": "float64"})
    assert named == "unrolled-jump dtype=float64"
