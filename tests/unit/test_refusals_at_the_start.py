"""What the recorder refuses before a stage begins, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.contracts import RunError
from tests.support.loops import BATCH_NORM, Training, make_batches, make_task, refused

# At the start


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: torch.optim.LBFGS(p), ("steps of torch.optim.LBFGS", "use another one")),
        (
            lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
            ("Adam with a tensor as lr", "pass a float"),
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
            ("SGD with maximize=True", "negate the loss instead"),
        ),
    ],
    ids=["LBFGS", "tensor-lr", "maximize"],
)
def test_an_optimizer_that_is_not_supported(
    make: Callable[[Any], Any], says: tuple[str, ...], training: Training
) -> None:
    with refused(*says), training.stage(optimizer=make(list(training.model.parameters()))):
        pass


def test_a_wrapped_optimizer(training: Training) -> None:
    class Accelerated(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    with (
        refused("wraps the optimiser SGD", "pass the inner one, optimizer.optimizer"),
        training.stage(optimizer=Accelerated(training.optimizer)),
    ):
        pass


def test_the_optimizer_of_another_model(training: Training) -> None:
    other = training.task.build_model()
    with (
        refused("not a parameter of the model", "from the parameters of the model that you pass"),
        training.stage(optimizer=torch.optim.SGD(other.parameters(), lr=0.1)),
    ):
        pass


def test_an_optimizer_with_nothing_to_train(training: Training) -> None:
    training.model.requires_grad_(False)
    with refused("no parameter that requires a gradient"), training.stage():
        pass


def test_another_architecture_than_the_task_builds(training: Training) -> None:
    wider = make_task({**BATCH_NORM, "hidden": 7}).build_model()
    optimizer = torch.optim.SGD(wider.parameters(), lr=0.1)
    with (
        refused("not the one that the task builds", "(7,", "(6,", "pass build_config"),
        training.stage(model=wider, optimizer=optimizer),
    ):
        pass


def test_a_name_that_is_taken(training: Training) -> None:
    with training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
    for name in ("first", "base"):
        with refused(f"the name '{name}' is taken", "choose another"):
            training.stage(name)


def test_a_name_that_cannot_stand_in_a_path(training: Training) -> None:
    with refused("'../first' is not a usable name", "letters, digits"):
        training.stage("../first")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"keep_batches": "some"}, ("keep_batches='some'", '"all", "none" or a number')),
        ({"keep_batches": 0}, ("keep_batches=0",)),
        ({"accumulation": 0}, ("accumulation=0", "at least 1")),
        ({"flush_every": 0.5}, ("flush_every=0.5", "whole number")),
        ({"checkpoint_every": 0}, ("checkpoint_every=0", "at least 1")),
        ({"clip_norm": 0.0}, ("clip_norm=0.0", "positive norm, or None")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_means_nothing(
    settings: dict[str, Any], says: tuple[str, ...], training: Training
) -> None:
    with refused(*says):
        training.stage(**settings)


def test_a_stage_inside_a_stage(training: Training) -> None:
    waiting = training.stage("waiting")
    with training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
        for second in (lambda: training.stage("second"), waiting.__enter__):
            with refused("stage 'first' is still being recorded", "leave its with block"):
                second()


def test_a_stage_that_is_entered_again(training: Training) -> None:
    stage = training.stage("first")
    with stage:
        training.step(make_batches(1)[0], stage)
    with refused("the name 'first' is taken"), stage:
        pass


def test_a_step_outside_the_block(training: Training) -> None:
    with training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
    with refused("stage 'first' is not being recorded", "inside its with block"):
        training.step(make_batches(1)[0], stage)


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with refused(str(tmp_path), "is not empty and not a run", "choose another folder"):
        stagelens.Recorder(tmp_path, make_task())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_holds_a_run(training: Training) -> None:
    training.recorder.close()
    with refused("already holds a run", "resume=True"):
        stagelens.Recorder(training.path, training.task)


def test_to_resume_with_another_task_or_name(training: Training) -> None:
    training.recorder.close()
    with refused("recorded with another task, which differs in ", "resume with the task"):
        stagelens.Recorder(training.path, make_task(), resume=True)
    with refused("holds run 'run', not 'other'"):
        stagelens.Recorder(training.path, training.task, name="other", resume=True)
    stagelens.Recorder(training.path, training.task, resume=True)  # the folder was let go


def test_a_run_name_that_cannot_stand_in_a_path(tmp_path: Path) -> None:
    with refused("the run's name: 'a/b' is not a usable name", "pass name="):
        stagelens.Recorder(tmp_path / "run", make_task(), name="a/b")


def test_a_model_that_changed_between_two_stages(training: Training) -> None:
    with training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
    with torch.no_grad():
        training.model[0].weight.mul_(1.01)
    with (
        refused("0.weight differs", "recorder.restore(model, optimizer)", "reinitialised=["),
        training.stage("second"),
    ):
        pass


def test_an_optimizer_that_was_used_between_two_stages(training: Training) -> None:
    with training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
    for state in training.optimizer.state.values():
        state["momentum_buffer"].zero_()
    with (
        refused("neither new nor the one from the end", "pass a new optimiser"),
        training.stage("next"),
    ):
        pass


def test_to_restore_into_another_kind_of_optimizer_or_that_of_another_model(
    training: Training,
) -> None:
    with refused("no finished stage", "start the first one again"):
        training.recorder.restore(training.model)
    with training.stage("first", keep_optimizer=True) as stage:
        training.step(make_batches(1)[0], stage)
    adam = torch.optim.AdamW(training.model.parameters())
    with refused("(momentum_buffer) is not that of AdamW", by=RunError):
        training.recorder.restore(training.model, adam)
    other = torch.optim.SGD(training.task.build_model().parameters(), lr=0.1, momentum=0.9)
    with refused("not a parameter of the model"):
        training.recorder.restore(training.model, other)
