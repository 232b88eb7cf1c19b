"""Gradient scalers, second optimisers and modules that cannot be watched are refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stagelens
from tests.support.loops import (
    CLASSES,
    Training,
    make_batches,
    make_task,
    refused,
)


def scaler(**settings: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, **settings)


@pytest.mark.parametrize("unscaled", [False, True])
def test_an_update_by_a_gradient_scaler(unscaled: bool, training: Training) -> None:
    scaling, batch = scaler(), make_batches(1)[0]
    with refused("called by a GradScaler", "bfloat16 or float32"), training.stage() as stage:
        loss = training.loss(batch)
        scaling.scale(loss).backward()
        if unscaled:
            scaling.unscale_(training.optimizer)
        scaling.step(training.optimizer)
        stage.step(batch, loss)


def test_an_update_with_gradients_that_stay_scaled(training: Training) -> None:
    scaling, batch = scaler(), make_batches(1)[0]
    with (
        refused("are 1024 times those of", "a power of two, as a GradScaler multiplies"),
        training.stage() as stage,
    ):
        loss = training.loss(batch)
        scaling.scale(loss).backward()
        training.update()
        stage.step(batch, loss)


def test_an_update_that_a_scaler_skips(training: Training) -> None:
    scaling = scaler()
    with refused("2 batches were noted", "Where a GradScaler skips"), training.stage() as stage:
        for batch in make_batches(2):
            loss = training.loss(batch)
            scaling.scale(loss).backward()
            training.model[0].weight.grad.fill_(torch.inf)
            scaling.step(training.optimizer)
            scaling.update()
            stage.step(batch, loss)
    assert training.optimizer.state == {}


def test_a_scaler_that_is_switched_off_is_not_in_the_way(training: Training) -> None:
    scaling = scaler(enabled=False)
    with training.stage() as stage:
        for batch in make_batches(3):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            scaling.scale(loss).backward()
            scaling.step(training.optimizer)
            scaling.update()
            stage.step(batch, loss)
    assert training.recorder.run().last.steps == 3


def test_a_second_optimiser(training: Training) -> None:
    *body, head = training.model
    training.optimizer = torch.optim.SGD([p for m in body for p in m.parameters()], lr=0.1)
    other = torch.optim.AdamW(head.parameters(), lr=0.1)
    with (
        refused("Another optimiser (AdamW) updates the model too", "optimizer=[one, other]"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(make_batches(4)):
            training.step(batch, stage)
            if number == 1:
                other.step()
                other.zero_grad()


def test_another_models_optimiser_is_not_in_the_way(training: Training) -> None:
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with training.stage() as stage:
        for batch in make_batches(3):
            other(torch.ones(2)).sum().backward()
            optimizer.step()
            training.step(batch, stage)
    assert training.recorder.run().last.facts.checked[-1] == 3


def test_a_gradient_that_is_hardly_another_is_not_said_to_be_1_times_as_large(
    training: Training,
) -> None:
    batch = make_batches(1)[0]
    with (
        refused("are not those of task.loss", "largest deviation in 0.weight: 0.00"),
        training.stage() as stage,
    ):
        loss = training.loss(batch)
        loss.backward()
        training.model[0].weight.grad[0, 0, 0, 0] *= 1.01
        training.update()
        stage.step(batch, loss)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(len(CLASSES)))


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, len(CLASSES)))


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would have it exported
        return torch.jit.script(plain())  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize(
    ("make", "build", "says"),
    [
        (lazy, plain, "the model has a parameter that is not initialised yet, 1.weight"),
        (plain, lazy, "the model that task.build_model makes has a parameter that is not init"),
        (scripted, plain, "the model is a TorchScript module"),
    ],
)
def test_modules_that_cannot_be_watched(
    make: Callable[[], nn.Module], build: Callable[[], nn.Module], says: str, tmp_path: Path
) -> None:
    task = make_task(make_model=lambda _: build())
    model = make()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strictly = {"on_problem": "raise"}
    with refused(says), recorder.stage("first", model=model, optimizer=optimizer, **strictly):
        pass
