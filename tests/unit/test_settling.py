"""Replay within a time limit: what comes first, what fits, and what becomes of the rest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stagelens
from stagelens.contracts import Refused, no_progress
from stagelens.effects import computing
from stagelens.effects.results import stored_results
from stagelens.estimators import durations, pace
from stagelens.estimators.durations import paces
from stagelens.estimators.stage_trust import REPLAY
from stagelens.runs.run import Run
from stagelens.runs.steps import RecordedSteps
from stagelens.trust import settling
from stagelens.trust.replay_plan import Candidate, doubt, left_out, planned
from stagelens.trust.settling import settle
from tests.support.loops import Plan, make_batches, make_task, record_plans
from tests.support.stage_trust import DISAGREES, EXACT, REFUSED, RELIABLE, UNKNOWN

COUNT = 30
STAGES = ("first", "second", "third", "last")


def named(chosen: list[Candidate]) -> list[str]:
    return [each.stage for each in chosen]


def test_the_stage_whose_numbers_may_be_furthest_off_comes_first() -> None:
    small = Candidate("small", size=0.1, doubt=1.0, seconds=1.0)
    known = Candidate("known", size=5.0, doubt=0.01, seconds=1.0)
    feared = Candidate("feared", size=2.0, doubt=0.5, seconds=1.0)
    unseen = Candidate("unseen", size=float("inf"), doubt=1.0, seconds=1.0)
    order = planned([small, known, feared, unseen], 100.0)
    assert named(order) == ["unseen", "feared", "small", "known"]
    assert named(planned([small, feared], 1.5)) == ["feared"]


def test_what_does_not_fit_leaves_room_for_what_does() -> None:
    long = Candidate("long", size=9.0, doubt=1.0, seconds=50.0)
    unknown = Candidate("unknown", size=8.0, doubt=1.0, seconds=None)
    short = Candidate("short", size=1.0, doubt=1.0, seconds=5.0)
    assert named(planned([long, unknown, short], 20.0)) == ["short"]
    assert planned([long, unknown], 20.0) == []


def test_no_single_replay_may_take_longer_than_the_limit_however_many_share_them() -> None:
    one = Candidate("one", size=1.0, doubt=1.0, seconds=40.0)
    two = Candidate("two", size=0.5, doubt=1.0, seconds=14.0)
    assert named(planned([one, two], 60.0, alone=15.0)) == ["two"]


def test_a_check_that_two_stages_need_is_paid_for_once() -> None:
    a = Candidate("a", 2.0, 1.0, 10.0, {"x": 6.0, "y": 4.0})
    b = Candidate("b", 1.0, 1.0, 4.0, {"y": 4.0})
    assert a.price() == 20 and b.price({"y"}) == 4
    assert named(planned([a, b], 24.0)) == ["a", "b"]  # 20 with its checks, then 4 without
    assert named(planned([a, b], 23.0)) == ["a"]


def test_doubt_is_the_error_that_is_known_or_feared() -> None:
    assert doubt(EXACT) == 0
    assert doubt(RELIABLE) == 0.22
    assert doubt(DISAGREES) == 1.3  # measured against a replay
    assert doubt(UNKNOWN) == doubt(REFUSED) == doubt(None) == 1


# ------------------------------------------------------------------------------------- a real run


def adam(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settled") / "run"
    run = record_plans(path, make_task(), [Plan(name, adam) for name in STAGES])
    images, labels = make_batches(1, seed=5, size=COUNT)[0]
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    recorder.add_set("test", images=images, labels=[int(label) for label in labels])
    recorder.close()
    return path


@pytest.fixture
def run(recorded: Path, tmp_path: Path) -> Run:
    return stagelens.open_run(shutil.copytree(recorded, tmp_path / "run"), make_task())


Slow = Callable[..., None]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Let every stage be predicted to take so long, and every coarse one per budget."""

    def predicted(seconds: float, coarse: dict[float, float] | None = None) -> None:
        monkeypatch.setattr(pace, "pass_seconds", lambda task, stage, load: seconds)
        monkeypatch.setattr(
            pace,
            "coarse_pass_seconds",
            lambda run, stage, budget, load: (0.0, (coarse or {})[budget]),
        )
        monkeypatch.setattr(pace, "example_seconds", lambda run, examples, load: 0.0)

    return predicted


def by(result: Any) -> dict[str, str]:
    rows = result.table.drop_duplicates("stage")
    return dict(zip(rows["stage"], rows["estimator"], strict=True))


def replayed(run: Run) -> list[str]:
    return [t.stage for f in stored_results(run, "test") if f.estimator == REPLAY for t in f.stages]


def test_everything_that_fits_becomes_exact(run: Run) -> None:
    said: list[str] = []
    result = stagelens.attribute(run, "test", progress=lambda share, text: said.append(text))
    assert said[0].startswith("Preview: ")
    assert {t.trust for t in result.trust.values()} == {"exact"}
    assert list(result.trust) == list(STAGES) and set(by(result).values()) == {REPLAY}
    whole = computing.attribute(run, "test", REPLAY)
    assert result.table["effect"].tolist() == whole.table["effect"].tolist()
    assert paces(run).taken is not None and left_out(run, "test") == []


def test_what_does_not_fit_is_estimated_at_the_largest_budget_and_has_its_price(
    run: Run, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durations, "slowdown", lambda own=0: 1.0)
    slow(1000.0, {0.5: 30.0, 0.25: 8.0, 0.125: 4.0})
    # "third" needs one pass and its check, 2,000 s; coarse 2 + 3 + 4 passes: 72 s at 1/4
    settled = settle(run, "test", limit=100.0)
    # The last stage is exact by any estimator; the preview had it first.
    assert by(settled.result) == {
        **dict.fromkeys(STAGES[:3], "coarse-replay"), "last": "task-vector",
    }  # fmt: skip
    assert settled.result.trust["last"].trust == "exact"
    assert replayed(run) == []
    budgets = [f.settings for f in stored_results(run, "test") if f.estimator == "coarse-replay"]
    assert budgets == [{"budget": 0.25}]
    seconds = {left.stage: left.seconds for left in settled.left}
    assert seconds == pytest.approx({"first": 6000, "second": 4000, "third": 2000}, rel=1e-3)
    assert settled.left[0].said == "exact in about 2 hours on this machine"


def test_where_a_part_of_a_replay_fits_it_shows_how_far_off_cheap_replay_is(
    run: Run, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(30.0, {0.5: 1.0, 0.25: 0.5, 0.125: 0.3})
    monkeypatch.setattr(settling, "holds", lambda known: False)
    monkeypatch.setattr(settling._Settling, "left", property(lambda self: 58.0))
    # No replay with its check fits, but one pass of the first later stage does.
    settle(run, "test", limit=50.0)
    assert replayed(run) == []
    partly = [f for f in stored_results(run, "test") if f.settings.get("exact_stages")]
    assert [facts.settings for facts in partly] == [{"budget": 0.25, "exact_stages": 1}]
    # "third" has one later stage only: its part would be the whole.
    assert [trust.stage for trust in partly[0].stages] == ["first", "second"]
    for trust in partly[0].stages:
        said = "At the end of the stages that were replayed, cheap replay was off by"
        assert said in trust.reason


def test_the_default_budget_may_take_the_whole_limit_and_beyond_that_the_preview_stays(
    run: Run, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(1000.0, {0.5: 300.0, 0.25: 40.0, 0.125: 30.0})
    monkeypatch.setattr(settling._Settling, "left", property(lambda self: 50.0))
    # 2 + 3 + 4 passes at 1/4: 360 s
    assert settle(run, "test", limit=300.0).result.trust["first"].estimator == "task-vector"
    assert settle(run, "test", limit=400.0).result.trust["first"].estimator == "coarse-replay"
    assert {"budget": 0.25} in [f.settings for f in stored_results(run, "test")]


def test_where_time_is_short_what_fits_is_replayed_until_predictions_say_more_does(
    run: Run, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(10.0)
    asked: list[list[str]] = []
    inner = settling.planned

    def seen(candidates: Any, *limits: float) -> Any:
        asked.append(named(inner(candidates, *limits)))
        return inner(candidates, *limits)

    monkeypatch.setattr(settling, "planned", seen)
    monkeypatch.setattr(settling._Settling, "left", property(lambda self: 45.0))
    settle(run, "test", limit=45.0)
    # "third" takes a pass and a check, "second" two of each: 20 and 40 s, 50 s together; "first" 60
    assert len(asked[0]) == 1 and asked[0][0] in ("second", "third")
    # The replays of a few steps took no ten seconds, so that the others were found to fit.
    assert asked[-1] == [] and replayed(run) == list(STAGES)


def test_predictions_follow_what_replays_really_took(run: Run, slow: Slow) -> None:
    slow(10.0)
    settle(run, "test", limit=1000.0)
    # The replays took no ten seconds a stage, and what is stored for the pages says so now.
    assert all(timed.seconds < 5 for timed in paces(run).stages[1:] if timed.seconds is not None)


def test_what_was_finished_is_there_after_an_interruption(
    run: Run, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(0.1)
    inner, calls = computing.attribute, []

    def interrupted(run: Run, set_name: str, estimator: str, *more: Any) -> Any:
        if estimator == REPLAY:
            calls.append(estimator)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return inner(run, set_name, estimator, *more)

    monkeypatch.setattr(computing, "attribute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        settle(run, "test", limit=1000.0)
    before = replayed(run)
    assert len(before) == 2 and "last" in before
    settle(run, "test", limit=1000.0)
    assert replayed(run) == list(STAGES)


def test_a_stage_that_replay_refuses_is_estimated_and_not_asked_again(
    run: Run, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(0.1, {0.5: 0.1})
    inner, asked = computing.attribute, []

    def refusing(run: Run, set_name: str, estimator: str, stages: Any, *more: Any) -> Any:
        if estimator == REPLAY:
            asked.append(tuple(stages))
            if "second" in stages:
                raise Refused("no")
        return inner(run, set_name, estimator, stages, *more)

    monkeypatch.setattr(computing, "attribute", refusing)
    settled = settle(run, "test", limit=1000.0)
    assert sum("second" in stages for stages in asked) == 1
    assert settled.result.trust["second"].estimator == "coarse-replay"
    assert settled.left == []


def test_only_some_stages_may_be_asked_for(run: Run, slow: Slow) -> None:
    slow(0.1)
    result = stagelens.attribute(run, "test", stages=["second"])
    assert list(result.trust) == ["second"] and result.trust["second"].trust == "exact"
    assert "first" not in replayed(run)


def test_batches_larger_than_those_that_were_timed_are_reckoned_with(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = run.stage("second")
    assert len(stage.read_steps().sizes()) == stage.steps and min(stage.read_steps().sizes()) > 0

    def window(self: Any, first: int, count: int) -> Any:
        for _ in range(count):
            until = time.process_time() + 0.02
            while time.process_time() < until:
                pass
            yield

    monkeypatch.setattr(pace.StageReplay, "window", window)
    monkeypatch.setattr(pace, "_ENOUGH", 1000.0)  # however busy the machine is, all are timed
    alike = pace.pass_seconds(run.task, stage, pace.Load())
    assert alike > 6 * 0.02
    # Every second of the six steps is timed.
    monkeypatch.setattr(RecordedSteps, "sizes", lambda self: [19, 1] * 3)
    assert pace.pass_seconds(run.task, stage, pace.Load()) > 4 * alike


def test_coarse_steps_are_timed_too(run: Run) -> None:
    load = pace.Load()
    ready, stepping = pace.coarse_pass_seconds(run, run.stage("second"), 0.25, load)
    assert ready > 0 and 0 < stepping < 60 and load.processor > 0


def test_a_busy_machine_makes_everything_longer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "pass_seconds", lambda task, stage, load: 2.0)
    monkeypatch.setattr(pace, "coarse_pass_seconds", lambda run, stage, budget, load: (1.0, 3.0))
    monkeypatch.setattr(pace, "example_seconds", lambda run, examples, load: 0.5)
    monkeypatch.setattr(pace.Load, "factor", property(lambda self: 4.0))
    pace.measure_paces(run, run.evaluation_set("test"), run.stages[1:], no_progress)
    pace.measure_coarse(run, run.stages[1:], 0.25, no_progress)
    known = paces(run)
    assert [stage.seconds for stage in known.stages[1:]] == [8.0] * 3 and known.example == 2.0
    assert known.stages[1].cheap == {0.25: (4.0, 12.0)}
