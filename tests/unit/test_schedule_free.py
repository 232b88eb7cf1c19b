"""Optimisers with two sets of weights: which a stage ends with, and how a replay gets there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stagelens
from stagelens.replaying.replay import cross_boundary, replay_stage, replay_without
from stagelens.runs.run import Run
from stagelens.runs.states import TrainingState, capture
from tests.support.loops import Training, differing_state, make_batches, make_task, refused

schedulefree = pytest.importorskip("schedulefree")

Calls = tuple[str, ...]


def trained(
    path: Path | None, between: Callable[[Any, nn.Module], Any], end: Calls, without: str = ""
) -> TrainingState:
    """Two stages: the block of the first ends with these calls, and then something happens."""
    task = make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02, warmup_steps=2)
    recorder = None if path is None else stagelens.Recorder(path, task, name="run")
    for number, name in enumerate(("first", "second")):
        if number:
            optimizer = between(optimizer, model)
        stage = None
        if name == without:
            continue
        if recorder is not None:
            stage = recorder.stage(name, model=model, optimizer=optimizer, on_problem="raise")
            stage.__enter__()
        optimizer.train()
        for batch in make_batches(5, number):
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if stage is not None:
                stage.step(batch, loss)
        for call in end if not number else ("eval",):
            getattr(optimizer, call)()
        if stage is not None:
            stage.__exit__(None, None, None)
    return capture(model, optimizer, {id(p): n for n, p in model.named_parameters()})


def carried(optimizer: Any, _model: nn.Module) -> Any:
    return optimizer


def evaluated(optimizer: Any, _model: nn.Module) -> Any:
    optimizer.eval()
    optimizer.train()
    return optimizer


def saved(optimizer: Any, model: nn.Module) -> Any:
    optimizer.eval()
    return schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01)


def new(_optimizer: Any, model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def plain_sgd_has_no_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in ("train", "eval"):
        monkeypatch.setattr(torch.optim.SGD, call, lambda self: None, raising=False)


@pytest.mark.parametrize(
    ("end", "between", "calls"),
    [
        (("eval",), carried, []),
        (("eval", "train", "eval"), saved, []),
        ((), carried, []),
        ((), evaluated, ["eval", "train"]),
        ((), saved, ["eval"]),
        ((), new, []),
        (("eval",), new, []),
        (("eval",), evaluated, ["train"]),
    ],
)
def test_a_stage_ends_with_the_weights_that_stand_and_a_boundary_says_what_was_called(
    end: Calls, between: Callable[[Any, nn.Module], Any], calls: list[str], tmp_path: Path
) -> None:
    final = trained(tmp_path / "run", between, end)
    run = stagelens.open_run(tmp_path / "run", make_task())
    first, second = run.stages
    assert first.facts.end_calls == list(end)
    assert second.facts.boundary.calls == calls
    assert not differing_state(second.end(), final)
    for stage in run.stages:
        assert not differing_state(replay_stage(run.task, stage).state, stage.end())
    assert not differing_state(cross_boundary(first.end(), second), second.start())
    without = trained(None, between, end, without="first")
    assert not differing_state(replay_without(run, first).state, without)


def test_a_run_says_that_a_stage_ended_with_training_weights(tmp_path: Path) -> None:
    trained(tmp_path / "run", carried, ())
    run = stagelens.open_run(tmp_path / "run", make_task())
    (said,) = _said(run)
    assert "stage 'first' ended with the training weights of schedulefree.AdamWScheduleFree" in said


def test_nothing_is_said_where_it_ended_with_those_for_evaluation(tmp_path: Path) -> None:
    trained(tmp_path / "run", carried, ("eval",))
    assert not _said(stagelens.open_run(tmp_path / "run", make_task()))


def _said(run: Run) -> list[str]:
    return [problem for problem in run.problems if "training weights" in problem]


def _training(path: Path) -> tuple[Training, Any]:
    training = Training(path)
    optimizer: Any = schedulefree.AdamWScheduleFree(training.model.parameters(), lr=0.01)
    training.optimizer = optimizer
    return training, optimizer


def test_switching_in_the_midst_of_a_step_is_refused(tmp_path: Path) -> None:
    training, optimizer = _training(tmp_path / "run")
    optimizer.train()
    first, second, third = make_batches(3)
    with refused("in the midst of a step"), training.stage() as stage:
        training.step(first, stage)
        training.step(second, stage)
        training.loss(third)
        optimizer.eval()


def test_the_optimiser_is_left_as_it_was(tmp_path: Path) -> None:
    training, optimizer = _training(tmp_path / "run")
    before = set(optimizer.__dict__)
    with training.stage() as stage:
        assert set(optimizer.__dict__) == before | {"train", "eval"}
        optimizer.train()
        training.step(make_batches(1)[0], stage)
    assert set(optimizer.__dict__) == before
