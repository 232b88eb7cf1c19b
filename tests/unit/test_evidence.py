"""What measured models say about the error of an effect, and how both read-outs are combined."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stagelens.estimators.course import Course
from stagelens.estimators.evidence import Evidence, PairedEvidence, correlation
from stagelens.estimators.travel import Travel

COURSE = Course(
    hardness=0.0,
    sgd=False,
    batch_norm=False,
    first=False,
    stages=2,
    steps=60,
    moved=1.0,
    turned=0.2,
)
TRAVEL = Travel(missed=0.2, direction=0.9, progress=0.95, growth=1.1, kept=0.8, gap=0.3)


def paired(disagreement: float = 0.05, missed: float = 0.05, **course: Any) -> PairedEvidence:
    """Evidence of 300 examples whose read-outs differ by ``disagreement``."""
    random = np.random.default_rng(0)
    effect, other, third, final = random.normal(size=(4, 300))
    return PairedEvidence(
        course=replace(COURSE, **course),
        final=final,
        factual=final + missed * other,
        by_weights=effect,
        by_twins=effect + disagreement * other,
        by_task_vector=effect + third,
        sampling=0.1,
        travels=(TRAVEL,),
    )


def test_under_adam_both_read_outs_weigh_the_same() -> None:
    one = paired(0.5)
    assert one.twins_share == pytest.approx(0.5)
    np.testing.assert_allclose(one.effect(), (one.by_weights + one.by_twins) / 2)


def test_near_the_edge_of_stability_half_of_the_factual_twins_error_stays_out() -> None:
    unsteady = paired(0.02, hardness=1.0, sgd=True)
    np.testing.assert_allclose(unsteady.twins_share, 1.0)
    half = (unsteady.final + unsteady.factual) / 2
    twin = unsteady.factual - unsteady.by_twins
    np.testing.assert_allclose(unsteady.effect(), half - twin)
    assert paired(0.02, hardness=0.0, sgd=True).twins_share == 0


def test_twins_that_do_not_resemble_the_final_model_are_not_read() -> None:
    assert paired(missed=5.0).twins_share < 0.1
    assert paired(missed=50.0).twins_share == 0


def test_features_are_relative_to_the_effect() -> None:
    one = paired(0.3)
    thrice = replace(
        one,
        by_weights=3 * one.by_weights,
        by_twins=3 * one.by_twins,
        by_task_vector=3 * one.by_task_vector,
    )
    same, own = thrice.features(), one.features()
    for name in ("readouts", "pattern", "undone", "undone_pattern", "sampling", "gap"):
        assert same[name] == pytest.approx(own[name]), name
    assert own["missed"] - same["missed"] == pytest.approx(math.log(3))
    assert same["size"] - own["size"] == pytest.approx(math.log(3))


def test_signs_of_trouble_grow_with_what_they_measure() -> None:
    for name in ("readouts", "pattern"):
        found = [paired(d).features()[name] for d in (0.0, 0.02, 0.1, 0.5)]
        assert found == sorted(found)
    found = [paired(missed=m).features()["missed"] for m in (0.05, 0.2, 1.0)]
    assert found == sorted(found)


def test_the_worst_of_the_later_stages_counts() -> None:
    bad = Travel(missed=2.0, direction=0.1, progress=0.3, growth=3.0, kept=-0.5, gap=4.0)
    found = replace(paired(), travels=(TRAVEL, bad, TRAVEL)).features()
    expected = {
        "strayed": 2.0,
        "direction": 1 - 0.1,
        "progress": 1 - 0.3,
        "growth": 3.0,
        "kept": 1 + 0.5,
        "gap": 4.0,
    }
    assert {name: math.exp(found[name]) for name in expected} == pytest.approx(expected)


def test_features_are_finite_where_there_is_no_effect_at_all() -> None:
    nothing = np.zeros(10)
    plain = Evidence(COURSE, nothing, nothing, nothing).features()
    paired = {"factual": nothing, "by_twins": nothing}
    both = PairedEvidence(COURSE, nothing, nothing, nothing, **paired).features()
    assert all(map(math.isfinite, [*plain.values(), *both.values()]))


def test_a_partial_replay_is_a_feature_only_where_it_was_done() -> None:
    assert "partial" not in paired().features()
    assert math.exp(replace(paired(), partial=0.25).features()["partial"]) == pytest.approx(0.25)


def test_correlation_is_over_what_both_know() -> None:
    a, b = np.asarray([1.0, 2.0, np.nan, 4.0]), np.asarray([2.0, 4.0, 1.0, 8.0])
    assert correlation(a, b) == pytest.approx(1.0)
    assert correlation(np.ones(3), np.arange(3.0)) == 0.0
