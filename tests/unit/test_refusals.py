"""What the recorder refuses at the first step where it shows, and with which words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.loops import Training, make_batches, refused, train
from tests.support.own_objectives import focal

# At the first step where it shows


def clip(training: Training, norm: float) -> None:
    nn.utils.clip_grad_norm_(training.model.parameters(), norm)


def test_clipping_that_was_not_declared(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused("gradients of the first step are", "times", "clip_norm=None", "clip_norm=MAX_NORM"),
        training.stage() as stage,
    ):
        loss = training.loss(batch)
        loss.backward()
        clip(training, 0.1)
        training.update()
        stage.step(batch, loss)


def test_clipping_that_was_not_declared_and_becomes_active_at_the_fifth_step(
    training: Training,
) -> None:
    batches = [*make_batches(4), *make_batches(4, seed=1, scale=1e4)]
    with (
        refused("(update 5)", "clipping", "has to be declared with stage(..., clip_norm=MAX_NORM)"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(batches, 1):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            clip(training, 1e6 if number < 5 else 0.1)
            training.update()
            stage.step(batch, loss)
    assert training.updates == 4


@pytest.mark.parametrize("at", [1, 5])
def test_declared_clipping_that_is_not_done(at: int, training: Training) -> None:
    with (
        refused(f"at update {at}, above the declared clip_norm=0.1", "or no clip_norm"),
        training.stage(clip_norm=0.1) as stage,
    ):
        for number, batch in enumerate(make_batches(6), 1):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            if number < at:
                clip(training, 0.1)
            training.update()
            stage.step(batch, loss)
    assert training.updates == at - 1


def test_clipping_to_a_smaller_norm_than_declared(training: Training) -> None:
    with (
        refused("the gradients of the first step are 0.5 times", "clip_norm=0.1"),
        training.stage(clip_norm=0.1) as stage,
    ):
        for batch in make_batches(2):
            loss = training.loss(batch)
            loss.backward()
            clip(training, 0.05)
            training.update()
            stage.step(batch, loss)


def test_a_loss_that_is_not_the_tasks(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused(
            "the loss of the first step", "task.loss(model, batch)", "Train on the loss of the task"
        ),
        training.stage() as stage,
    ):
        loss = nn.functional.cross_entropy(training.model(batch[0]), batch[1], label_smoothing=0.1)
        loss.backward()
        training.update()
        stage.step(batch, loss)


def test_another_batch_than_the_loss_was_computed_from(training: Training) -> None:
    batch, other = make_batches(2)
    with refused("pass the batch that it was computed from"), training.stage() as stage:
        loss = training.loss(batch)
        loss.backward()
        training.update()
        stage.step(other, loss)


def test_another_loss_than_the_stages_own_is_told_by_its_name(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused("Train on the objective 'focal', or name what the loop minimises (objective="),
        training.stage(objective=focal) as stage,
    ):
        loss = training.loss(batch)
        loss.backward()
        training.update()
        stage.step(batch, loss)


def test_a_penalty_added_to_the_loss(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused(
            "gradients of the first step are not those of task.loss",
            "a penalty",
            "into the loss of the task, or into the optimiser's weight_decay",
        ),
        training.stage() as stage,
    ):
        loss = training.loss(batch)
        (loss + 0.01 * sum(p.abs().sum() for p in training.model.parameters())).backward()
        training.update()
        stage.step(batch, loss)


@pytest.mark.parametrize("at", [1, 3])
def test_something_added_to_the_gradients(at: int, training: Training) -> None:
    says = {1: "something was added to them", 3: "(update 3)"}[at]
    with refused(says), training.stage() as stage:
        for number, batch in enumerate(make_batches(4), 1):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            if number == at:
                for parameter in training.model.parameters():
                    assert parameter.grad is not None
                    parameter.grad += 0.01 * torch.ones_like(parameter)
            training.update()
            stage.step(batch, loss)
    assert training.updates == (1 if at == 1 else 2)


def test_a_loss_that_was_scaled(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused("gradients of the first step are 3 times", "backpropagate the loss of the task"),
        training.stage() as stage,
    ):
        loss = training.loss(batch)
        (3 * loss).backward()
        training.update()
        stage.step(batch, loss)


def test_accumulation_that_was_not_declared_though_every_batch_is_noted(
    training: Training,
) -> None:
    with (
        refused("2 batches were noted before update 1", "declare gradient accumulation"),
        training.stage() as stage,
    ):
        train(
            training.task,
            training.model,
            training.optimizer,
            make_batches(4),
            stage=stage,
            accumulation=2,
        )


def test_accumulation_that_was_not_declared_and_only_updates_are_noted(training: Training) -> None:
    with (
        refused("2 forward passes came before this update, but 1 batches", "accumulation=G"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(make_batches(4), 1):
            loss = training.loss(batch)
            (loss / 2).backward()
            if number % 2 == 0:
                training.update()
                training.optimizer.zero_grad()
                stage.step(batch, loss)


def test_a_forgotten_zero_grad(training: Training) -> None:
    with refused("(update 2)", "call optimizer.zero_grad()"), training.stage() as stage:
        for batch in make_batches(3):
            loss = training.loss(batch)
            loss.backward()
            training.update()
            stage.step(batch, loss)
    assert training.updates == 1


def test_gradients_left_over_from_before_the_stage(training: Training) -> None:
    training.loss(make_batches(1, seed=3)[0]).backward()
    training.model.load_state_dict(training.task.build_model().state_dict())
    batch = make_batches(1)[0]
    with refused("gradients of an update before"), training.stage() as stage:
        loss = training.loss(batch)
        loss.backward()
        training.update()
        stage.step(batch, loss)


def test_a_step_noted_before_the_update(training: Training) -> None:
    with (
        refused("2 batches were noted before update 1", "stage.step(batch, loss) after optimizer"),
        training.stage() as stage,
    ):
        for batch in make_batches(3):
            loss = training.loss(batch)
            training.optimizer.zero_grad()
            loss.backward()
            stage.step(batch, loss)
            training.update()
    assert training.updates == 1


def test_an_update_that_was_not_noted(training: Training) -> None:
    with (
        refused("called again before update 1 was noted", "after every optimizer.step()"),
        training.stage(),
    ):
        for batch in make_batches(2):
            training.loss(batch).backward()
            training.update()
    assert training.updates == 1


def test_a_last_update_that_was_not_noted(training: Training) -> None:
    batch, last = make_batches(2)
    with refused("the last optimizer.step() was not noted"), training.stage() as stage:
        training.step(batch, stage)
        training.optimizer.zero_grad()
        training.loss(last).backward()
        training.update()
    assert stage.steps_on_disk == 1  # what was noted before it is kept


def test_a_stage_without_a_step(training: Training) -> None:
    with refused("stage 'first' has no step", "call stage.step(batch, loss)"), training.stage():
        pass


def test_an_update_with_a_closure(training: Training) -> None:
    batch = make_batches(1)[0]

    def closure() -> Tensor:
        loss = training.loss(batch)
        loss.backward()
        return loss

    for call in (
        lambda: training.optimizer.step(closure),  # type: ignore[arg-type]
        lambda: training.optimizer.step(closure=closure),  # type: ignore[arg-type]
    ):
        with refused("called with a closure", "loss.backward() and then optimizer.step()"):
            stage = training.stage(f"stage {len(training.recorder.file.stages)}")
            with stage:
                call()
