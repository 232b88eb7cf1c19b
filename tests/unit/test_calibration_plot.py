"""What promised errors are worth: counts over the bench, and the plot that the Trust page opens."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from stagelens import charts
from stagelens.charts.calibration import MOST_POINTS, OwnEstimate, calibration_plot
from stagelens.report.figures import TRACES
from stagelens.trust.coverage import coverage
from tests.support.calibration_bench import bench_points

OWN = [
    OwnEstimate("shortcut", 0.2, 0.31, "verified (r 0.97, error 31 %)"),
    OwnEstimate("<b>adapt", 0.5, float("nan"), "rough (error up to 50 %)"),
]


def points_of(chart: charts.Chart, name: str) -> tuple[list[float], list[float]]:
    trace = next(each for each in chart.figure.data if (each.name or "").startswith(name))
    return list(trace.x), list(trace.y)


def test_promises_are_counted_and_so_is_what_came_of_them() -> None:
    points = pd.concat([bench_points(), bench_points(1).assign(promised=np.nan, reliable=False)])
    found = coverage(points)
    assert (found.families, found.estimates, found.within) == (4, 40, 38)
    assert (found.reliable, found.close) == (8, 6)
    assert (found.worst, found.worst_share) == ("family 3", 0.0)
    agree = (points["r"] >= 0.9) & (points["error"] <= 0.5)
    assert found.deserving == int(agree.sum())


def test_without_reliable_estimates_there_is_no_worst_family() -> None:
    found = coverage(bench_points().assign(reliable=False))
    assert found.worst is None and np.isnan(found.worst_share) and found.reliable == 0


@pytest.mark.parametrize("palette", [charts.LIGHT, charts.DARK, charts.EITHER])
def test_it_shows_the_bench_and_the_run_on_one_pair_of_axes(palette: charts.Palette) -> None:
    chart = calibration_plot(bench_points(), OWN, palette)
    assert points_of(chart, "called reliable")[1].count(0.9) == 2
    assert len(points_of(chart, "not called")[0]) == 32
    x, y = points_of(chart, "this run (")
    assert x == [0.2, 0.5] and y[0] == 0.31 and y[1] < 0.01
    layout = chart.figure.layout
    assert layout.xaxis.type == layout.yaxis.type == "log"
    assert layout.xaxis.range == layout.yaxis.range and layout.font.color == palette.text
    assert {trace.type for trace in chart.figure.data} <= TRACES
    assert "<b>adapt" not in chart.figure.to_json().replace("<b>&lt;b&gt;adapt</b>", "")


def test_it_says_what_it_shows() -> None:
    chart = calibration_plot(bench_points(), OWN)
    assert "38 are within the promised error" in chart.alt
    assert "6 of the 8 called reliable are close enough" in chart.alt
    assert "shortcut: up to 20 %, true 31 %" in chart.alt
    assert "adapt: up to 50 %, not checked" in chart.alt
    assert chart.rows is not None and len(chart.rows) == 42
    assert "This run" not in calibration_plot(bench_points(), []).alt


def test_a_large_bench_stays_light_and_keeps_every_broken_promise() -> None:
    many = bench_points(families=10, each=300)
    chart = calibration_plot(many, [])
    x, y = points_of(chart, "called reliable")
    others, _ = points_of(chart, "not called")
    assert len(x) + len(others) == MOST_POINTS and y.count(0.9) == 2
    assert f"{3000 - MOST_POINTS:,} more points are not drawn" in chart.alt
    assert len(json.dumps(chart.figure.to_json())) < 400_000


def test_errors_beyond_the_axes_are_drawn_at_the_edge() -> None:
    wild = bench_points().assign(error=[0.0, 1e6, *[0.5] * 38])
    _, y = points_of(calibration_plot(wild, []), "called reliable")
    assert (min(y), max(y)) == (0.005, 10.0)
