"""Predicted times against what the estimators take on the digits demo, in processor seconds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from stagelens.demos import digits
from stagelens.effects.computing import attribute
from stagelens.estimators.registry import estimate_seconds
from stagelens.trust.noise import measure_noise

pytestmark = pytest.mark.benchmark

ESTIMATES = [
    ("replay", {}),
    *(("coarse-replay", {"budget": budget}) for budget in (0.125, 0.25, 0.5)),
    ("unrolled-jump", {}),
    ("unrolled-scale", {}),
]


def test_predictions_are_right_within_a_factor_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processor time is what wall time would be without other load.
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, clock, time.process_time)
    run = digits.record(tmp_path / "digits")
    attribute(run, "test", "task-vector")  # loads what is loaded once
    ratios = {}
    for estimator, settings in ESTIMATES:
        result = attribute(run, "test", estimator, settings=settings)
        took = sum(trust.seconds for trust in result.facts.stages)
        predicted = estimate_seconds(run.stages, estimator, settings)
        assert predicted
        ratios[estimator, settings.get("budget")] = took / predicted
        print(f"{estimator} {settings}: predicted {predicted:.2f} s, took {took:.2f} s")
    began = time.process_time()
    measure_noise(run, "test", 1, lambda *_: None)
    took, once = time.process_time() - began, estimate_seconds(run.stages, "replay", {})
    assert once
    ratios["noise", None] = took / (2 * once)
    print(f"noise floor, one order: predicted {2 * once:.2f} s, took {took:.2f} s")
    assert all(0.5 <= ratio <= 2 for ratio in ratios.values()), ratios
