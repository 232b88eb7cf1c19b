"""Predicted times, from the times that were recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stagelens.effects.results import ResultFacts
from stagelens.estimators.durations import (
    STARTING,
    Pace,
    coarse_seconds,
    replay_seconds,
    replays_seconds,
)
from stagelens.estimators.registry import estimate_seconds, saves_time
from stagelens.trust.durations import verify_seconds
from stagelens.wording import numbers
from tests.support.stage_trust import trust


def run_of(*seconds: float | None, steps: int = 1000, **more: Any) -> list[Pace]:
    return [Pace(f"stage {n}", steps, s, **more) for n, s in enumerate(seconds)]


LONG = run_of(10, 20, 40)


def test_replay_is_predicted_from_the_later_stages_of_every_open_stage() -> None:
    # without 1: 20 + 40; without 2: 40; and both once more as recorded: 60
    assert replay_seconds(LONG) == 60 + 40 + 60
    assert replay_seconds(run_of(10)) == 0
    assert replay_seconds(run_of(10, None)) is None


def test_what_is_not_bit_for_bit_is_replayed_twice_and_checks_are_done_once() -> None:
    twice = [replace(pace, twice=pace.stage == "stage 2") for pace in LONG]
    assert replay_seconds(twice) == 2 * 60 + 2 * 40 + 60
    assert replay_seconds([replace(pace, check=False) for pace in LONG]) == 60 + 40


def test_processes_that_share_replays_are_done_when_the_last_one_is() -> None:
    # The checks of 40 and 20 beside each other, the second begun by a helper that starts first.
    checked = max(40, STARTING + 20)
    assert replays_seconds(LONG, [0, 1], 2) == checked + max(60, 40)
    settled = [replace(pace, check=False) for pace in LONG]
    assert replays_seconds(settled, [0, 1], 2) == max(60, STARTING + 40)
    assert replays_seconds(settled, [1], 2) == 40


def test_timed_coarse_steps_count_one_factual_twin_for_all_stages_before() -> None:
    timed = [replace(pace, cheap={0.25: (1.0, 2.0)}) for pace in LONG]
    assert estimate_seconds(timed, "coarse-replay", {"budget": 0.25}) == (1 + 2 * 2) + (1 + 3 * 2)
    assert coarse_seconds(timed, 0.25, [1]) == 1 + 2 * 2
    assert coarse_seconds(run_of(1, None), 0.25) is None


def test_a_coarse_replay_costs_its_budget_and_time_for_every_step() -> None:
    steps = [run_of(10, 20, 40, steps=n) for n in (0, 1000)]
    few, many = (estimate_seconds(s, "coarse-replay", {"budget": 0.25}) for s in steps)
    assert few == pytest.approx(0.25 * 100)
    assert many is not None and many > 25


def test_tangents_cost_more_than_a_replay_and_the_task_vector_nothing() -> None:
    jump = estimate_seconds(LONG, "unrolled-jump", {})
    scale = estimate_seconds(LONG, "unrolled-scale", {})
    assert jump == 500 and scale == 590
    assert estimate_seconds(LONG, "unrolled-jump", {"neglected": False}) == 300
    assert estimate_seconds(LONG, "task-vector", {}) == 0
    assert estimate_seconds(run_of(1, None), "unrolled-jump", {}) is None


def test_where_steps_are_short_a_coarse_replay_saves_no_time() -> None:
    assert not saves_time(run_of(0.5, 0.4, 0.1, steps=200), "coarse-replay", {"budget": 0.25})
    assert saves_time(run_of(500, 400, 100, steps=200), "coarse-replay", {"budget": 0.25})
    assert saves_time(
        run_of(1, None), "coarse-replay", {"budget": 0.25}
    )  # nothing says that it does not


def replayed_of(*stages: str) -> ResultFacts:
    return ResultFacts(
        kind="effects", run_digest="", set_name="test", set_digest="", estimator="replay",
        behaviours=[], stages=[trust("exact", stage=name, seconds=50.0) for name in stages],
    )  # fmt: skip


def test_a_verification_is_predicted_from_what_is_not_stored_yet() -> None:
    vector: list[tuple[str, dict[str, float]]] = [("task-vector", {})]
    alone = verify_seconds(LONG, vector, 0, [])
    assert alone is not None
    jump = verify_seconds(LONG, [("unrolled-jump", {})], 0, [])
    noise = verify_seconds(LONG, vector, 2, [])
    assert jump == pytest.approx(alone + 500) and noise == pytest.approx(alone + 400)
    names = [pace.stage for pace in LONG]
    replayed = replayed_of(*names)
    assert verify_seconds(LONG, vector, 0, [replayed]) == pytest.approx(alone - 160)
    measured = verify_seconds(LONG, vector, 2, [replayed])
    assert measured == pytest.approx(alone - 160 + 2 * 2 * 150)
    known = [trust.model_copy(update={"ensemble": True}) for trust in replayed.stages]
    together = replayed.model_copy(update={"stages": known})
    # Other orders are replayed one by one.
    assert verify_seconds(LONG, vector, 2, [together]) == pytest.approx(noise - 160)
    shared = verify_seconds(LONG, vector, 0, [], processes=2)
    assert shared is not None and alone - shared == pytest.approx(160 - (40 + 60))
    # the second is left: the last stage without it, and once more as recorded
    partly = verify_seconds(LONG, vector, 0, [replayed_of(names[0], names[2])])
    assert partly == pytest.approx(alone - 160 + 2 * 40)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "under 10 seconds"), (21, "about 20 seconds"), (62, "about a minute"),
     (200, "about 3 minutes"), (9000, "about 2 hours")],
)  # fmt: skip
def test_predictions_are_no_more_exact_than_they_deserve(seconds: float, said: str) -> None:
    assert numbers.predicted_time(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0, "0 ms"), (0.0071, "7 ms"), (2.44, "2.4 s"), (186.0, "3.1 min")]
)
def test_measured_times(seconds: float, said: str) -> None:
    assert numbers.measured_time(seconds) == said
