"""How long a job still takes, on simulated jobs of which the truth is known; and present load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stagelens.cli.terminal import EVERY
from stagelens.compute import load
from stagelens.compute.remaining import Mark, noted, seconds_left
from stagelens.estimators.durations import STARTING, Paces

Speed = Callable[[float, float], float]
"""From seconds worked and the share done to the share that is done in a second."""


def simulated(speed: Speed, started: float = 0.0) -> list[tuple[float, float | None, float]]:
    """A job from its launch to its end: share done, seconds said to be left, and the true ones."""
    now, done, marks = started, 0.0, list[Mark]()
    seen: list[tuple[float, float, float | None]] = []
    while done < 1:
        marks = noted(marks, now, done)
        seen.append((now, done, seconds_left(marks, now, done)))
        done += EVERY * speed(now - started, done)
        now += EVERY
    return [(share, said, now - at) for at, share, said in seen]


JOBS: dict[str, Speed] = {
    "as fast all along": lambda worked, done: 0.01,
    "half as fast after 30 %": lambda worked, done: 0.01 if done < 0.3 else 0.005,
    "twice as fast after 30 %": lambda worked, done: 0.01 if done < 0.3 else 0.02,
    "in jumps of 2 %": lambda worked, done: 0.02 / EVERY if worked % 2 < EVERY else 0.0,
    "slower and slower": lambda worked, done: 0.01 * (1 - 0.5 * done),
}


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("started", [0.0, 40.0])
def test_after_half_of_it_the_time_left_is_within_a_factor_of_one_and_a_half(
    name: str, started: float
) -> None:
    later = [each for each in simulated(JOBS[name], started) if 0.5 <= each[0] < 0.9]
    assert len(later) > 20
    for share, said, true in later:
        assert said is not None and true / 1.5 <= said <= 1.5 * true, (share, said, true)


def test_loading_what_a_job_needs_does_not_count_as_slow_work() -> None:
    # Taken for work, 40 s of loading would make of the 90 s that are left after 10 % 450.
    told = {round(share, 2): said for share, said, _ in simulated(JOBS["as fast all along"], 40.0)}
    assert told[0.1] == pytest.approx(90, rel=0.05)


def test_nothing_is_said_before_anything_is_known() -> None:
    assert seconds_left([], 5.0, 0.0) is None
    assert seconds_left([(3.0, 0.0)], 5.0, 0.01) is None


def test_a_job_that_stands_still_takes_longer_and_longer() -> None:
    marks = [(0.0, 0.0), (10.0, 0.5)]
    said = [seconds_left(marks, now, 0.5) for now in (10.0, 15.0, 30.0)]
    assert said[0] == pytest.approx(10.0)
    assert said[0] < said[1] < said[2]  # type: ignore[operator]


def test_marks_stay_few_however_long_a_job_is() -> None:
    marks: list[Mark] = []
    for step in range(100_000):
        marks = noted(marks, float(step), step / 100_000)
    assert 50 < len(marks) < 70


@pytest.mark.parametrize(
    ("average", "own", "expected"), [(0.0, 0, 1.0), (1.0, 0, 1.0), (5.0, 0, 3.0), (0.0, 3, 2.0)]
)
def test_programs_share_the_cores_evenly(
    monkeypatch: pytest.MonkeyPatch, average: float, own: int, expected: float
) -> None:
    monkeypatch.setattr(load.os, "getloadavg", lambda: (average, 0.0, 0.0))
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    assert load.slowdown(own) == expected


def test_a_prediction_is_that_of_the_machine_as_busy_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load.os, "getloadavg", lambda: (5.0, 0.0, 0.0))
    monkeypatch.setattr(load.os, "cpu_count", lambda: 2)
    assert Paces([]).at_present(4.0) == 12.0
    # A process that does it has to start first, on the same busy machine.
    assert Paces([]).of_a_job(4.0) == 12.0 + 3 * STARTING
    assert Paces([], busy=3.0).at_present(12.0) == 12.0  # it was as busy when steps were timed
