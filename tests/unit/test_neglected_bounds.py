"""Bounds on errors of first order: chosen on some runs, told of others, and nowhere beyond them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stagelens.derivatives.second_order import PROBES
from stagelens.estimators.neglected_bounds import (
    _SPANS,
    SEVERAL,
    Line,
    _measured_on,
    beyond,
    bound,
    bounds,
    held_sentence,
    kind_of,
)
from tests.benchmarks.neglected_terms import fitting
from tests.benchmarks.neglected_terms.__main__ import ERRORS


def test_a_bound_rises_with_the_expected_error_and_ends_where_none_was_measured() -> None:
    own = Line(floor=0.1, factor=1.5, up_to=0.8, cases=9)
    assert own.bound(0.0) == pytest.approx(0.15) and own.bound(0.8) == pytest.approx(1.35)
    assert own.bound(0.81) is None and own.bound(float("nan")) is None
    # What is expected is never more than the bound.
    assert Line(floor=0.0, factor=0.5, up_to=1.0, cases=9).bound(0.4) == 0.4


def test_what_is_stored_is_what_the_command_makes_of_the_stored_errors() -> None:
    known = bounds()
    assert fitting.fit(pd.read_parquet(ERRORS)) == known
    # Of another number of steps looked at, it would say nothing.
    assert known.probes == PROBES
    assert not set(known.chosen_on) & set(known.told_of) and known.level == 0.9


def test_it_is_said_what_was_promised_and_what_was_measured() -> None:
    for kind in bounds().kinds:
        said = held_sentence(kind)
        if not said:
            continue
        runs = bounds().of(kind).runs
        assert said.startswith(f"90 % are promised; in {runs} runs that it was not chosen on it ")
        own = [h for h in bounds().held if h.kind == kind and h.scenario and h.cases >= 5]
        worst = min((h for h in own if h.span), key=lambda h: h.kept / h.cases)
        assert f"least, {100 * worst.kept / worst.cases:.0f} %, {_SPANS[worst.span]}, on " in said
        # In words: names of scenarios are the benchmark's own.
        assert not any(f" {name}." in said for name in bounds().scenarios if "-" in name)
    assert _measured_on("digits-adamw-5e-4") == (
        "on images of digits, with AdamW at a learning rate of 5e-4"
    )
    assert _measured_on("comments") == "on comments"


def test_nothing_is_promised_beyond_what_was_measured() -> None:
    known = bounds()
    assert kind_of(1) == kind_of(SEVERAL - 1) == "one" and kind_of(SEVERAL) == "several"
    assert bound("one", "near", 1e6) is None and bound("several", "near", 0.01) is not None
    low, high = known.shares
    assert (
        beyond("margin", known.steps, False, low)
        == ""
        == beyond("margin", known.final_steps, True, high)
    )
    assert f"beyond {known.steps:,} steps" in beyond("margin", 2 * known.steps, False, low)
    assert f"beyond {known.final_steps:,} steps" in beyond(
        "margin", 2 * known.final_steps, True, low
    )
    assert "only parts of" in beyond("margin", 1, False, 0.001)
    assert "on the loss were not measured" in beyond("loss", 1, False, low)


def _rows(runs: int, ratio: float, scenario: str = "a") -> pd.DataFrame:
    random = np.random.default_rng(0)
    expected = random.uniform(0.01, 0.9, (runs, 200))
    return pd.DataFrame(
        {"kind": "several", "final": False, "steps": 20, "examples": 20, "scenario": scenario,
         "seed": np.repeat(np.arange(runs), 200), "expected": expected.ravel(),
         "true": (expected * ratio * random.uniform(0, 1, expected.shape)).ravel()}
    )  # fmt: skip


def test_a_line_is_the_quantile_of_the_worst_scenario() -> None:
    both = pd.concat([_rows(3, 2.0, "a"), _rows(3, 4.0, "b")], ignore_index=True)
    both["run"] = both["scenario"] + both["seed"].astype(str)
    own = fitting.line(both)
    assert own is not None and own.floor == 0.0 and own.factor == pytest.approx(3.6, rel=0.05)
    assert own.up_to == pytest.approx(0.9, abs=0.02)  # nothing was measured above
    assert fitting.line(both[both["seed"] == 0]) is None  # of two runs
    # Small expected errors that hide large true ones ask for a floor.
    chance = both.assign(true=both["true"] + 0.2)
    found = fitting.line(chance)
    assert found is not None and found.floor > 0
    assert (chance["true"] <= found.factor * (found.floor + chance["expected"])).mean() >= 0.9


def test_errors_are_those_of_one_example_and_of_several() -> None:
    random = np.random.default_rng(0)
    first, expected, true = random.normal(size=(3, 40))
    rows = pd.DataFrame(
        {"begin": 0, "horizon": 4, "steps": 30, "example": [f"{n:02d}" for n in range(40)],
         "first": first, "expected": expected, "true": true}
    )  # fmt: skip
    found = fitting.errors(rows)
    whole = found[found["examples"] == 40].iloc[0]
    assert whole["kind"] == "several" and whole["steps"] == 4
    norm = np.linalg.norm
    assert whole["expected"] == pytest.approx(norm(expected - first) / norm(expected))
    assert whole["true"] == pytest.approx(norm(true - first) / norm(true))
    one = found[found["kind"] == "one"].iloc[0]
    assert one["true"] == pytest.approx(abs(true[0] - first[0]) / abs(true[0]))
    # The same example in two stretches: both count, in the other first order is right.
    again = fitting.errors(pd.concat([rows, rows.assign(begin=9, true=first)]))
    both = again[again["kind"] == "one"].iloc[0]
    assert both["true"] == pytest.approx(abs(true[0] - first[0]) / norm([true[0], first[0]]))
    assert len(again) == len(found)
