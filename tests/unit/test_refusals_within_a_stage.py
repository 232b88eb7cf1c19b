"""What the recorder refuses because it changed within a stage, and with which words."""

from __future__ import annotations

import copy
import random
from collections import namedtuple
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import (
    BATCH_NORM,
    CLASSES,
    SHAPE,
    Training,
    make_batches,
    make_task,
    refused,
)


def edit_data(model: nn.Module) -> None:
    model[0].weight.data.clamp_(-0.1, 0.1)  # type: ignore[index, union-attr, operator]


def replace_data(model: nn.Module) -> None:
    model[-1].bias.data = model[-1].bias.data + 1e-3  # type: ignore[index]


def swap_in_an_average(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.99)


def edit_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 0.01  # type: ignore[index]


@pytest.mark.parametrize("when", ["before the forward pass", "after the update", "at the end"])
@pytest.mark.parametrize("change", [edit_data, replace_data, swap_in_an_average, edit_in_place])
def test_parameters_changed_outside_the_optimizer(
    change: Callable[[nn.Module], None], when: str, training: Training
) -> None:
    with (
        refused("was changed outside optimizer.step(), after update 2", "between stages"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(make_batches(2 if when == "at the end" else 5), 1):
            if when == "before the forward pass" and number == 3:
                change(training.model)
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            training.update()
            if when == "after the update" and number == 2:
                change(training.model)
            stage.step(batch, loss)
        if when == "at the end":
            change(training.model)
    assert training.updates == 2


def test_a_frozen_parameter_that_was_changed(training: Training) -> None:
    training.model[0].requires_grad_(False)
    with refused("0.weight was changed outside optimizer.step()"), training.stage() as stage:
        for batch in make_batches(2):
            training.step(batch, stage)
            training.model[0].weight.data.mul_(1.01)


def test_a_parameter_that_was_changed_during_the_first_step(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused("the first update is not the optimiser's own", "largest difference in 0.weight"),
        training.stage() as stage,
    ):
        loss = training.loss(batch)
        loss.backward()
        training.update()
        training.model[0].weight.data.mul_(1.01)
        stage.step(batch, loss)


# Settings are looked at before every update.


def test_optimizer_state_that_was_loaded_within_the_stage(training: Training) -> None:
    with (
        refused("the optimiser's state was replaced within the stage", "between stages"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(make_batches(4)):
            training.step(batch, stage)
            if number == 1:
                loaded = copy.deepcopy(training.optimizer.state_dict())
                training.optimizer.load_state_dict(loaded)
    assert training.updates == 2


def test_parameters_added_to_the_optimizer_within_the_stage(training: Training) -> None:
    *body, head = training.model
    training.optimizer = torch.optim.SGD([p for m in body for p in m.parameters()], lr=0.1)
    with refused("parameter groups changed", "between stages"), training.stage() as stage:
        for number, batch in enumerate(make_batches(4)):
            training.step(batch, stage)
            if number == 1:
                training.optimizer.add_param_group({"params": list(head.parameters())})
    assert training.updates == 2


def test_a_parameter_frozen_within_the_stage(training: Training) -> None:
    with refused("0.weight was frozen", "requires_grad between stages"), training.stage() as stage:
        for number, batch in enumerate(make_batches(4)):
            training.step(batch, stage)
            if number == 1:
                training.model[0].weight.requires_grad_(False)
    assert training.updates == 2


def test_statistics_changed_by_an_evaluation_in_training_mode(training: Training) -> None:
    batches = make_batches(3)
    with (
        refused("1.running_mean was changed between two steps", "model.eval()"),
        training.stage() as stage,
    ):
        for batch in batches:
            training.step(batch, stage)
            with torch.no_grad():
                training.model(make_batches(1, seed=9)[0][0])
    assert training.updates == 1


def test_a_mode_that_changes_within_the_stage(training: Training) -> None:
    with (
        refused("changed between training and evaluation mode", "call model.train() afterwards"),
        training.stage() as stage,
    ):
        for batch in make_batches(2):
            training.step(batch, stage)
            training.model.eval()
    assert training.updates == 1


def test_another_forward_pass_that_draws_random_numbers(training: Training) -> None:
    with (
        refused("2 forward passes of the model came before update 2", "under torch.no_grad()"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(make_batches(2)):
            if number:
                training.model(make_batches(1, seed=9)[0][0])
            training.step(batch, stage)


@pytest.mark.parametrize("extra", [0, 1])
def test_another_forward_pass_that_moves_running_statistics(extra: int, tmp_path: Path) -> None:
    """Without dropout no random number shows it, but every later evaluation would."""
    training = Training(tmp_path / "run", make_task({**BATCH_NORM, "dropout": 0.0}))
    says = ("2 forward passes of the model came before update 2", "moved its buffers")
    with refused(*says) if extra else nullcontext(), training.stage() as stage:
        for number, batch in enumerate(make_batches(2)):
            for other in make_batches(extra, seed=9) if number else []:
                training.model(other[0])
            training.step(batch, stage)


def test_another_forward_pass_that_changes_nothing(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", make_task({"kind": "mlp", "hidden": [6]}))
    with training.stage() as stage:
        for number, batch in enumerate(make_batches(3)):
            for other in make_batches(number, seed=9):  # none before the first update
                training.model(other[0])
            training.step(batch, stage)
    run = stagelens.open_run(tmp_path / "run", training.task)
    assert measure_deviation(run.task, run.last).bitwise


def test_a_model_that_is_not_called_itself(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused("0 forward passes of the model", "call the model itself"),
        training.stage() as stage,
    ):
        loss = nn.functional.cross_entropy(training.model.forward(batch[0]), batch[1])
        loss.backward()
        training.update()
        stage.step(batch, loss)


def test_a_precision_that_changes_within_the_stage(training: Training) -> None:
    first, second = make_batches(2)
    with (
        refused("run in bf16, but the stage's first ran in float32", "or record two stages"),
        training.stage() as stage,
    ):
        training.step(first, stage)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            training.loss(second)


class Noisy(nn.Sequential):
    """Adds noise that torch's generator does not know of."""

    def __init__(self, noise: Callable[[], float]) -> None:
        super().__init__(nn.Flatten(), nn.Linear(20, len(CLASSES)))
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + 5 * self.noise() * torch.arange(len(CLASSES))


@pytest.mark.parametrize(
    "noise",
    [np.random.default_rng(0).standard_normal, random.Random(0).random],
    ids=["numpy", "random"],
)
def test_random_numbers_that_are_not_torchs(noise: Callable[[], float], tmp_path: Path) -> None:
    training = Training(tmp_path / "run", make_task(make_model=lambda _: Noisy(noise)))
    with (
        refused("the loss of the first step", "randomness outside torch's own generator"),
        training.stage() as stage,
    ):
        training.step(make_batches(1)[0], stage)


Pair = namedtuple("Pair", ["images", "labels"])


class Named(stagelens.tasks.ImageClassification):
    """Reads its batches by attribute."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, (batch.images, batch.labels))


def test_a_batch_that_does_not_come_back_as_it_was(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", Named(CLASSES, SHAPE))
    with (
        refused("cannot be recomputed", "AttributeError", "plain tuples"),
        training.stage() as stage,
    ):
        training.step(Pair(*make_batches(1)[0]), stage)


@pytest.mark.parametrize(
    ("thing", "name"),
    [(np.zeros(3), "ndarray"), ({1: 2}, "dict"), (torch.eye(2).to_sparse(), "Tensor")],
)
def test_a_batch_of_a_type_that_cannot_be_kept(thing: Any, name: str, training: Training) -> None:
    images, labels = make_batches(1)[0]
    with (
        refused(f"the batch holds a {name}", "tensors, numbers and strings", 'keep_batches="none"'),
        training.stage() as stage,
    ):
        loss = training.loss((images, labels))
        loss.backward()
        training.update()
        stage.step((images, labels, thing), loss)


class Third(stagelens.tasks.ImageClassification):
    """Takes batches with a third part, which it does not use."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().loss(model, batch[:2])


def test_a_batch_of_any_type_is_taken_where_batches_are_not_kept(tmp_path: Path) -> None:
    training = Training(tmp_path / "run", Third(CLASSES, SHAPE))
    with training.stage(keep_batches="none") as stage:
        for images, labels in make_batches(3):
            training.step((images, labels, np.zeros(3)), stage)  # type: ignore[arg-type]
    assert training.recorder.run().last.steps == 3
