"""Scatter of estimate against replay, verdicts in words, and predicted times."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stagelens import charts
from stagelens.charts.trust import agreement
from stagelens.contracts import Behaviour
from stagelens.results import StageTrust
from stagelens.ui import estimates

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


def test_effects_within_training_noise_are_neither_credit_nor_blame() -> None:
    found = traces(drawn(points(noisy=7)))
    assert len(found["within noise"].x) == 7
    assert sum(len(trace.x) for trace in found.values()) == 40


@pytest.mark.parametrize(("count", "kind"), [(999, "scatter"), (1000, "scattergl")])
def test_webgl_is_used_from_a_thousand_points(count: int, kind: str) -> None:
    assert {trace.type for trace in traces(drawn(points(count))).values()} == {kind}


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
    assert "follows replay closely: r 1.00, slope 1.00; 0 % have the wrong" in drawn(points()).alt
    wrong = drawn(points(slope=-1.0), slope=-1.0).alt
    assert "does not follow replay closely: r −1.00" in wrong and "100 %" in wrong


def test_no_points_and_undefined_slopes_are_drawn_empty() -> None:
    chart = drawn(points().iloc[:0], slope=float("nan"))
    assert "no example" in chart.alt
    same = drawn(points().assign(estimate=0.0), slope=float("nan"))
    assert "r n/a" in same.alt


def test_ids_from_data_are_escaped() -> None:
    text = drawn(points().assign(example_id=HOSTILE)).figure.to_json()
    assert HOSTILE not in text.replace("\\u003c", "<").replace("\\u003e", ">")


# ------------------------------------------------------------------------------------ verdicts


def trust(kind: str = "estimated", **more: Any) -> StageTrust:
    facts = {"stage": "a", "estimator": "coarse-replay", "trust": kind, "reason": "R.", **more}
    return StageTrust.model_validate(facts)


ROW = {"r": 0.97, "slope": 1.02, "relative_error": 0.12}


def test_a_verified_stage_says_r_slope_and_error_together() -> None:
    said = estimates.verdict(trust("verified"), ROW)
    assert said.startswith("verified: r 0.97, slope 1.02, relative error 12 %")
    assert "close enough to lean on" in said


def test_high_correlation_with_a_large_error_is_not_close() -> None:
    assert "too far off" in estimates.verdict(trust("verified"), {**ROW, "relative_error": 0.8})


def test_an_expected_error_that_was_far_too_low_is_said() -> None:
    said = estimates.verdict(trust("verified", expected_error=0.04), {**ROW, "relative_error": 0.6})
    assert "only 4 % was expected" in said
    fair = estimates.verdict(trust("verified", expected_error=0.1), ROW)
    assert "was expected" not in fair


def test_estimates_say_what_is_expected_of_them() -> None:
    said = estimates.verdict(trust(expected_error=0.12, reliable=True), None)
    assert said == "estimated; expected error 12 %; reliable."
    said = estimates.verdict(trust(expected_error=0.5, reliable=False), None)
    assert said == "estimated; expected error 50 %; not reliable without a replay."
    assert estimates.verdict(trust(), None) == "estimated; its error is not known."


def test_refusals_and_exact_stages_give_their_reason() -> None:
    assert estimates.verdict(trust("refused", reason="It diverged."), None) == (
        "refused: it diverged."
    )
    exact = trust("exact", reason="Exact: the last stage's start is the model without it.")
    assert estimates.verdict(exact, None) == (
        "exact: the last stage's start is the model without it."
    )


# --------------------------------------------------------------------------------- predictions


def run_of(*seconds: float | None) -> list[Any]:
    return [SimpleNamespace(facts=SimpleNamespace(seconds=s)) for s in seconds]


def test_replay_is_predicted_from_the_later_stages_of_every_open_stage() -> None:
    # without 1: 20 + 40; without 2: 40; and both once more as recorded: 60
    assert estimates.replay_seconds(run_of(10, 20, 40)) == 60 + 40 + 60
    assert estimates.replay_seconds(run_of(10)) == 0
    assert estimates.replay_seconds(run_of(10, None)) is None


def test_a_verification_is_predicted_from_what_is_not_stored_yet() -> None:
    stages = run_of(10, 20, 40)
    alone = estimates.verify_seconds(stages, [("task-vector", None)], 0, {})
    assert alone is not None
    coarse = estimates.verify_seconds(stages, [("coarse-replay", 0.25)], 0, {})
    noise = estimates.verify_seconds(stages, [("task-vector", None)], 2, {})
    assert coarse == pytest.approx(alone + 25) and noise == pytest.approx(alone + 400)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "a few seconds"), (21, "about 20 seconds"), (62, "about a minute"),
     (200, "about 3 minutes"), (9000, "about 2 hours")],
)  # fmt: skip
def test_durations_are_no_more_exact_than_they_deserve(seconds: float, said: str) -> None:
    assert estimates.duration(seconds) == said


def test_estimates_are_named_by_their_budget() -> None:
    assert estimates.estimate_name("coarse-replay", {"budget": 0.125}) == "coarse-replay 1/8"
    assert estimates.estimate_name("coarse-replay", {"budget": 0.3}) == "coarse-replay 3/10"
    assert estimates.estimate_name("replay", {}) == "replay"
    named = estimates.estimate_name("unrolled-jump", {"dtype": "float64"})
    assert named == "unrolled-jump dtype=float64"
