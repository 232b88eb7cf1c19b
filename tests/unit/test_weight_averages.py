"""A stage that ends with an average of its weights is replayed with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from transformers import TrainerCallback

import stagelens
from stagelens.contracts import RecordingWarning, Refused
from stagelens.estimators.registry import make_estimator
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.boundary_facts import WeightAverage
from stagelens.runs.run import Run
from stagelens.runs.states import model_tensors
from stagelens.wording.hand_overs import end_lines
from tests.support.loops import BATCH_NORM, differing, make_batches, make_task, refused
from tests.support.small_trainings import arguments, made, trainer

STEPS = 6
Make = Callable[[Any], AveragedModel]
KINDS: dict[str, tuple[Make, WeightAverage]] = {
    "ema": (
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8)),
        WeightAverage(kind="ema", decay=0.8),
    ),
    "ema by parameter": (
        lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(0.7), use_buffers=True),
        WeightAverage(kind="ema-by-parameter", decay=0.7, buffers=True),
    ),
    "mean of every second step from the third": (
        AveragedModel,
        WeightAverage(kind="mean", first=3, every=2),
    ),
}


def trained(
    make: Make, rule: WeightAverage, path: Path | None = None, without: str | None = None
) -> dict[str, Tensor]:
    """Two stages, each averaged; the second goes on from the first one's average."""
    task = make_task(BATCH_NORM)
    torch.manual_seed(0)
    model = task.build_model()
    recorder = None if path is None else stagelens.Recorder(path, task)
    for number, name in enumerate(("first", "second")):
        torch.manual_seed(100 + number)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if name == without:
            continue
        averaged = make(model)
        stage = None if recorder is None else recorder.stage(name, model=model, optimizer=optimizer)
        if stage is not None:
            stage.__enter__()
        for step, batch in enumerate(make_batches(STEPS, number), 1):
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if rule.takes(step):
                averaged.update_parameters(model)
            if stage is not None:
                stage.step(batch, loss)
        if stage is not None:
            stage.ends_with(averaged, first=rule.first, every=rule.every)
        model.load_state_dict(averaged.module.state_dict())
        if stage is not None:
            stage.__exit__(None, None, None)
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_the_stages_end_and_replayed_bit_for_bit(kind: str, tmp_path: Path) -> None:
    make, rule = KINDS[kind]
    end = trained(make, rule, tmp_path / "run")
    run = stagelens.open_run(tmp_path / "run")
    assert run.problems == []
    assert [stage.facts.average for stage in run.stages] == [rule, rule]
    assert differing(run.last.end().model, end) == []
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    by_hand = trained(make, rule, without="first")
    assert differing(replay_without(run, run.stages[0]).state.model, by_hand) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("average") / "run"
    trained(*KINDS["ema"], path)
    return stagelens.open_run(path)


def test_pages_say_that_it_is_averaged_anew(run: Run) -> None:
    (line,) = end_lines(run.last.facts)
    assert line == (
        "ended with a moving average (0.8) of its weights; without an earlier stage they are "
        "averaged anew"
    )


@pytest.mark.parametrize("estimator", ["coarse-replay", "unrolled-jump"])
def test_estimators_that_know_no_average_are_refused(run: Run, estimator: str) -> None:
    with pytest.raises(Refused, match="no average of weights"):
        list(make_estimator(estimator).counterfactuals(run, run.stages[:1], lambda *_: None))


def ended(averaged: AveragedModel, tmp_path: Path, updates: int) -> None:
    task = make_task()
    model = averaged.module
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer, on_problem="raise") as stage:
        for number, batch in enumerate(make_batches(4)):
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
            if number < updates:
                averaged.n_averaged += 1
        stage.ends_with(averaged)


def continued(path: Path, after: str, warns: str) -> stagelens.Run:
    """A stage that ends with an average, and then does something else."""
    task = make_task()
    model = task.build_model()
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = stagelens.Recorder(path, task)
    with (
        pytest.warns(RecordingWarning, match=warns),
        recorder.stage("first", model=model, optimizer=optimizer) as stage,
    ):
        for number, batch in enumerate(make_batches(4)):
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
            averaged.update_parameters(model)
            if after == "steps" and number == 2:
                stage.ends_with(averaged)
            if after == "best" and number == 3:
                stage.keep_best("loss", 0.1)
                stage.ends_with(averaged)
                stage.back_to_best()
    recorder.close()
    return stagelens.open_run(path)


@pytest.mark.parametrize(
    ("after", "says"),
    [
        ("steps", r"steps were made after stage.ends_with\(averaged\) was called at step 3"),
        ("best", "goes back to its best model as well; end it with one of them"),
    ],
)
def test_an_average_that_is_not_how_the_stage_ended_is_told(
    after: str, says: str, tmp_path: Path
) -> None:
    run = continued(tmp_path / "run", after, f"'first' cannot be replayed: .*{says}")
    assert not run.last.replayable and run.last.facts.average is None
    assert len(run.problems) == 1


def test_an_average_made_by_hand_is_told_what_to_do(tmp_path: Path) -> None:
    task = make_task()
    model = task.build_model()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with pytest.warns(RecordingWarning) as seen:
        for name in ("within", "between"):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            shadow = [parameter.detach().clone() for parameter in model.parameters()]
            with recorder.stage(name, model=model, optimizer=optimizer) as stage:
                for batch in make_batches(3):
                    loss = task.loss(model, batch)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    stage.step(batch, loss)
                    for held, own in zip(shadow, model.parameters(), strict=True):
                        held.lerp_(own.detach(), 0.5)
                if name == "within":
                    load(model, shadow)
            load(model, shadow)
        with recorder.stage("after", model=model, optimizer=optimizer) as stage:
            pass
    first, second, *_ = [str(each.message) for each in seen]
    assert "'within' cannot be replayed" in first and "'after' cannot be replayed" in second
    assert all("call stage.ends_with(averaged) before it is loaded" in s for s in (first, second))


def load(model: Any, weights: list[Tensor]) -> None:
    with torch.no_grad():
        for own, held in zip(model.parameters(), weights, strict=True):
            own.copy_(held)


def test_another_number_of_updates_than_declared_is_told(tmp_path: Path) -> None:
    averaged = AveragedModel(make_task().build_model())
    with refused("the average took in 3 states of the model, and 4 of 4 steps are declared"):
        ended(averaged, tmp_path, 3)


def test_an_average_of_ones_own_is_told(tmp_path: Path) -> None:
    averaged = AveragedModel(make_task().build_model(), avg_fn=lambda one, other, _: one + other)
    with refused("a function that replay does not know", "get_ema_multi_avg_fn(decay)"):
        ended(averaged, tmp_path, 4)


class Averaging(TrainerCallback):
    """Keeps an average, and loads it when the training ends, as such callbacks do."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.averaged = AveragedModel(kwargs["model"], multi_avg_fn=get_ema_multi_avg_fn(0.8))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.averaged.update_parameters(kwargs["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].load_state_dict(self.averaged.module.state_dict())


def by_trainer(folder: Path, path: Path | None = None, without: int = -1) -> dict[str, Tensor]:
    model, tokenizer = made("gpt")
    for number in range(2):
        averaging = Averaging()
        callbacks: list[TrainerCallback] = [averaging]
        if path is not None:
            recording = stagelens.StageRecorderCallback(
                path, f"stage{number}", averaged=partial(getattr, averaging, "averaged")
            )
            callbacks = [recording, averaging]
        args = arguments(folder / str(number), seed=number, max_steps=3)
        training = trainer("gpt", model, tokenizer, args, seed=number, callbacks=callbacks)
        if number != without:
            training.train()
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


def test_a_callback_of_the_trainer_that_averages_is_replayed(tmp_path: Path) -> None:
    end = by_trainer(tmp_path, tmp_path / "run")
    run = stagelens.open_run(tmp_path / "run")
    assert run.problems == []
    assert differing(run.last.end().model, end) == []
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    by_hand = by_trainer(tmp_path / "by hand", without=0)
    assert differing(replay_without(run, run.stages[0]).state.model, by_hand) == []
