"""Loops that change in place what they have given to a step, or what its optimiser reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import stagelens
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import make_batches, make_task

STEPS = 6


def record(
    path: Path, act: Callable[[int, torch.optim.Optimizer, Tensor], None]
) -> tuple[stagelens.Run, list[float]]:
    """A stage, and its losses; ``act`` is called after each of its steps."""
    task = make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder, losses = stagelens.Recorder(path, task), []
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        for number, batch in enumerate(make_batches(STEPS), 1):
            loss = task.loss(model, batch)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            stage.step(batch, loss)
            act(number, optimizer, loss.detach())
    recorder.close()
    return stagelens.open_run(path, task), losses


def test_a_loss_that_others_are_added_to_is_recorded_as_it_was(tmp_path: Path) -> None:
    total: list[Tensor] = []

    def add(_number: int, _optimizer: Any, loss: Tensor) -> None:
        if total:
            total[0] += loss
        else:
            total.append(loss)

    run, losses = record(tmp_path / "run", add)
    assert [step.loss for step in run.last.read_steps()] == losses
    assert measure_deviation(run.task, run.last).bitwise


def smaller_rate(number: int, optimizer: torch.optim.Optimizer, _loss: Tensor) -> None:
    group = optimizer.param_groups[0]
    if number == 1:
        group["lr"] = torch.tensor(1e-2)
    group["lr"] *= 0.5


def other_betas(number: int, optimizer: torch.optim.Optimizer, _loss: Tensor) -> None:
    group = optimizer.param_groups[0]
    if number == 1:
        group["betas"] = [0.9, 0.999]
    group["betas"][0] -= 0.05


@pytest.mark.parametrize("change", [smaller_rate, other_betas])
def test_hyperparameters_that_can_be_changed_in_place_are_read_at_every_step(
    change: Any, tmp_path: Path
) -> None:
    run, _ = record(tmp_path / "run", change)
    assert run.problems == []
    assert measure_deviation(run.task, run.last).relative < 1e-6  # a tensor is recorded as a float
