"""Steps run again from recorded states: what does not reproduce is neither exact nor reliable."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.compute.load import Load
from stagelens.contracts import RunError
from stagelens.effects.computing import attribute
from stagelens.estimators.durations import TimedStage, keep_stages, note_replay, paces
from stagelens.estimators.replay_check import check_replay
from stagelens.estimators.reproduction import (
    STEPS,
    StepCheck,
    keep_step_check,
    problems,
    step_check,
)
from stagelens.replaying.reproduction import first_loss, measure_deviation, sample_steps
from stagelens.tasks import ImageClassification
from stagelens.trust.verification import trusted
from stagelens.wording.trust_words import is_trustworthy
from tests.support.damage import edit_and_seal
from tests.support.loops import CLASSES, SHAPE, Plan, make_batches, record_plans

MODEL = {"kind": "mlp", "hidden": [6]}


class Changing(ImageClassification):
    """A task whose loss can be made another one after recording, from some batch on."""

    factor: float = 1.0
    since: int = 0
    seen: int = 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        self.seen += 1
        loss = super().loss(model, batch)
        return loss * self.factor if self.seen > self.since else loss


def sgd(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    task = Changing(CLASSES, SHAPE, model=MODEL)
    plans = [Plan("first", sgd), Plan("second", sgd), Plan("third", sgd)]
    run = record_plans(tmp_path_factory.mktemp("whole") / "run", task, plans)
    images, labels = make_batches(1, seed=5, size=30)[0]
    recorder = stagelens.Recorder(run.path, task, resume=True)
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return run.path


@pytest.fixture
def recorded(whole: Path, tmp_path: Path) -> stagelens.Run:
    """A copy of ``whole`` with a task of its own, to change."""
    path = shutil.copytree(whole, tmp_path / "run")
    return stagelens.open_run(path, Changing(CLASSES, SHAPE, model=MODEL))


def changed(run: stagelens.Run, factor: float, since: int = 0) -> None:
    task = run.task
    assert isinstance(task, Changing)
    task.factor, task.since, task.seen = factor, since, 0


def test_the_steps_of_a_recording_fit(recorded: stagelens.Run) -> None:
    for stage in recorded.stages:
        assert first_loss(recorded, stage).misfit is None
        assert sample_steps(recorded.task, stage, 3).misfit is None
        assert measure_deviation(recorded.task, stage).bitwise


@pytest.mark.parametrize("since", [0, 2, 4])
def test_the_first_step_that_does_not_fit_is_named(recorded: stagelens.Run, since: int) -> None:
    changed(recorded, 1.5, since)
    found = measure_deviation(recorded.task, recorded.last)
    assert not found.bitwise and found.misfit == since
    changed(recorded, 1.5, since)
    sampled = sample_steps(recorded.task, recorded.last, 3)
    assert sampled.misfit == (since if since < 3 else None)
    if sampled.misfit is not None:
        assert sampled.found == pytest.approx(1.5 * sampled.recorded)


@pytest.mark.parametrize("estimator", ["task-vector", "coarse-replay", "replay"])
def test_no_number_is_exact_or_reliable_where_the_last_stage_has_another_loss(
    recorded: stagelens.Run, estimator: str
) -> None:
    changed(recorded, 1.5)
    result = trusted(recorded, attribute(recorded, "test", estimator))
    for stage in recorded.stages:
        trust = result.trust[stage.name]
        assert trust.trust in ("estimated", "refused"), stage
        assert not is_trustworthy(trust)
        assert trust.trust == "refused" or "step 0 of stage 'third' has a loss of" in trust.reason


def test_a_replay_that_ends_elsewhere_makes_estimates_unreliable(recorded: stagelens.Run) -> None:
    """The first steps fit, so that only the whole replay shows what is wrong."""
    result = attribute(recorded, "test", "task-vector")
    changed(recorded, 3.0, since=3)
    check = check_replay(recorded, recorded.stage("second"), lambda *_: None)
    assert check.misfit == 3 and check.as_recorded and check.relative > 0.1
    assert set(problems(recorded)) == {"second"}
    found = trusted(recorded, result).trust
    assert not is_trustworthy(found["first"]) and "from step 3 on" in found["first"].reason
    assert found["third"].trust == "exact"  # no estimate of it runs through the second stage


def test_what_a_replay_took_here_is_what_the_next_ones_are_predicted_by(
    recorded: stagelens.Run,
) -> None:
    before = paces(recorded)
    assert before.source == "the recorded times"
    began = time.perf_counter()
    check_replay(recorded, recorded.stage("second"), lambda *_: None)
    took = time.perf_counter() - began
    after = paces(recorded)
    assert 0 < (after.stages[1].seconds or 0.0) < took and after.busy >= 1
    assert [s.seconds for s in after.stages[::2]] == [s.seconds for s in before.stages[::2]]
    assert after.source == "replays on this machine and the recorded times"
    # Steps that were timed stand: a machine that was asked for them knows more.
    keep_stages(recorded, 0.1, {"second": TimedStage(seconds=7.0)})
    note_replay(recorded, "second", Load(1.0, 1.0), twice=False)
    assert paces(recorded).stages[1].seconds == 7.0
    assert paces(recorded).source == "steps timed here"


def test_a_deviation_where_it_was_recorded_is_not_laid_to_the_machine(
    recorded: stagelens.Run,
) -> None:
    changed(recorded, 1.01)
    reason = attribute(recorded, "test", "replay").trust["second"].reason
    assert "on a machine like the one that recorded it" in reason and "step 0" in reason
    assert "on this machine" not in reason


def test_steps_are_run_again_once(recorded: stagelens.Run) -> None:
    attribute(recorded, "test", "task-vector")
    assert step_check(recorded, recorded.stage("second")) is None  # no model runs through it
    known = step_check(recorded, recorded.last)
    assert known is not None and known.steps == 1
    attribute(recorded, "test", "replay")
    known = step_check(recorded, recorded.last)
    assert known is not None and known.steps == 2
    changed(recorded, 2.0)
    attribute(recorded, "test", "coarse-replay")
    assert step_check(recorded, recorded.last) == known


def config(name: str, value: Any) -> Callable[[Any], None]:
    return lambda file: file["task"]["config"].update({name: value})


def test_a_set_of_which_the_task_makes_other_inputs_is_not_measured(
    recorded: stagelens.Run,
) -> None:
    """The config was edited by someone who mended the checksum, or in a run that has none."""
    edit_and_seal(recorded.path / "run.json", config("mean", [0.5]))
    task = Changing(CLASSES, SHAPE, model=MODEL, mean=[0.5], std=[1.0])
    run = stagelens.open_run(recorded.path, task)
    with pytest.raises(RunError, match="makes other inputs of the examples of set 'test'"):
        attribute(run, "test", "task-vector")


def test_a_problem_that_another_task_made_is_forgotten_with_the_right_one(
    recorded: stagelens.Run,
) -> None:
    changed(recorded, 2.0)
    attribute(recorded, "test", "task-vector")
    assert set(problems(recorded)) == {"third"}
    changed(recorded, 1.0)
    result = trusted(recorded, attribute(recorded, "test", "task-vector"))
    assert problems(recorded) == {}
    assert result.trust["third"].trust == "exact"


def test_a_replay_that_ends_elsewhere_on_another_machine_proves_nothing(
    recorded: stagelens.Run,
) -> None:
    changed(recorded, 3.0, since=3)
    check = check_replay(recorded, recorded.stage("second"), lambda *_: None)
    assert check.problem
    assert not check.model_copy(update={"as_recorded": False}).problem


def test_attributing_again_does_not_forget_what_a_longer_look_found(
    recorded: stagelens.Run,
) -> None:
    """The first step, which is all that a task vector looks at, fits."""
    changed(recorded, 1.5, since=2)
    found = sample_steps(recorded.task, recorded.last, STEPS, everywhere=True)
    assert found.misfit == 2
    keep_step_check(recorded, StepCheck(run_digest=recorded.digest, stage="third", **asdict(found)))
    changed(recorded, 1.5, since=2)
    result = attribute(recorded, "test", "task-vector")
    assert set(problems(recorded)) == {"third"}
    assert not is_trustworthy(trusted(recorded, result).trust["third"])
