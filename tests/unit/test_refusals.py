"""What the recorder refuses: when, and with which words."""

from __future__ import annotations

import copy
import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import RecordingError, RunError, StageLensError
from stagelens.recording.stage_recorder import StageRecorder
from tests.loops import CLASSES, SHAPE, Batch, make_batches, make_task, train

BATCH_NORM = {"kind": "cnn", "channels": [4, 4], "hidden": 6, "dropout": 0.3, "batch_norm": True}


class Training:
    """A small training into a new folder; each test spoils it in one way."""

    def __init__(self, path: Path, task: stagelens.Task | None = None) -> None:
        self.path = path
        self.task = task or make_task(BATCH_NORM)
        torch.manual_seed(0)
        self.model = self.task.build_model()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.05, momentum=0.9
        )
        self.recorder = stagelens.Recorder(path, self.task)
        self.updates = 0

    def stage(self, name: str = "first", **settings: Any) -> StageRecorder:
        return self.recorder.stage(
            name, **{"model": self.model, "optimizer": self.optimizer, **settings}
        )

    def loss(self, batch: Batch) -> Tensor:
        return self.task.loss(self.model, batch)

    def update(self) -> None:
        self.optimizer.step()
        self.updates += 1

    def step(self, batch: Batch, stage: StageRecorder) -> None:
        """One step as it should be."""
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.update()
        stage.step(batch, loss)


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path / "run")


@contextmanager
def refused(*says: str, by: type[StageLensError] = RecordingError) -> Iterator[None]:
    """The block is refused, in these words."""
    with pytest.raises(by) as error:
        yield
    message = " ".join(str(error.value).split())
    assert [words for words in says if words not in message] == [], message


# At the start


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: torch.optim.RMSprop(p), ("RMSprop is not supported", "use torch.optim.SGD")),
        (
            lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
            ("Adam with a tensor as lr", "pass a float"),
        ),
        (
            lambda p: torch.optim.AdamW(p, amsgrad=True),
            ("AdamW with amsgrad=True", "use amsgrad=False"),
        ),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
            ("SGD with maximize=True", "negate the loss instead"),
        ),
    ],
    ids=["RMSprop", "tensor-lr", "amsgrad", "maximize"],
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
        refused("no parameter of the model", "from the parameters of the model that you pass"),
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
    with refused(str(tmp_path), "is not empty and no run", "choose another folder"):
        stagelens.Recorder(tmp_path, make_task())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_holds_a_run(training: Training) -> None:
    training.recorder.close()
    with refused("already holds a run", "resume=True"):
        stagelens.Recorder(training.path, training.task)


def test_to_resume_with_another_task_or_name(training: Training) -> None:
    training.recorder.close()
    with refused("recorded with another task", "resume with the task"):
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
    with refused("neither new nor that of the end", "pass a new optimiser"), training.stage("next"):
        pass


def test_to_restore_into_another_kind_of_optimizer_or_that_of_another_model(
    training: Training,
) -> None:
    with refused("no finished stage", "begin the first again"):
        training.recorder.restore(training.model)
    with training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
    adam = torch.optim.AdamW(training.model.parameters())
    with refused("(momentum_buffer) is not that of AdamW", by=RunError):
        training.recorder.restore(training.model, adam)
    other = torch.optim.SGD(training.task.build_model().parameters(), lr=0.1, momentum=0.9)
    with refused("no parameter of the model"):
        training.recorder.restore(training.model, other)


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


def test_a_penalty_added_to_the_loss(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused(
            "gradients of the first step are not those of task.loss",
            "a penalty",
            "into the task's loss, or into the optimiser's weight_decay",
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


# Settings stay changed once they are, and are looked at every 16 updates and at the stage's end.


@pytest.mark.parametrize("steps", [4, 40])
def test_optimizer_state_that_was_loaded_within_the_stage(steps: int, training: Training) -> None:
    with (
        refused("the optimiser's state was replaced within the stage", "between stages"),
        training.stage() as stage,
    ):
        for number, batch in enumerate(make_batches(steps)):
            training.step(batch, stage)
            if number == 1:
                loaded = copy.deepcopy(training.optimizer.state_dict())
                training.optimizer.load_state_dict(loaded)
    assert training.updates == min(steps, 16)


@pytest.mark.parametrize("steps", [4, 40])
def test_parameters_added_to_the_optimizer_within_the_stage(steps: int, training: Training) -> None:
    *body, head = training.model
    training.optimizer = torch.optim.SGD([p for m in body for p in m.parameters()], lr=0.1)
    with refused("parameter groups changed", "between stages"), training.stage() as stage:
        for number, batch in enumerate(make_batches(steps)):
            training.step(batch, stage)
            if number == 1:
                training.optimizer.add_param_group({"params": list(head.parameters())})
    assert training.updates == min(steps, 16)


@pytest.mark.parametrize("steps", [4, 40])
def test_a_parameter_frozen_within_the_stage(steps: int, training: Training) -> None:
    with refused("0.weight was frozen", "requires_grad between stages"), training.stage() as stage:
        for number, batch in enumerate(make_batches(steps)):
            training.step(batch, stage)
            if number == 1:
                training.model[0].weight.requires_grad_(False)
    assert training.updates == min(steps, 16)


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


def test_mixed_precision(training: Training) -> None:
    batch = make_batches(1)[0]
    with (
        refused("mixed precision (autocast)", "train in float32"),
        training.stage(),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        training.loss(batch)


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
        refused("cannot be computed again", "AttributeError", "plain tuples"),
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
