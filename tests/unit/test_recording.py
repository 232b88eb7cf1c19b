"""What recording notes, and that training does not notice it."""

from __future__ import annotations

import copy
import gc
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stagelens
from stagelens.recording import step_writer
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import (
    BATCH_NORM,
    CLASSES,
    SHAPE,
    differing,
    make_batches,
    make_task,
    train,
    written,
)

DROPOUT = {"kind": "mlp", "hidden": [6], "dropout": 0.3}


def made(task: stagelens.Task) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = task.build_model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def replays_bit_for_bit(run: stagelens.Run) -> bool:
    return all(measure_deviation(run.task, stage).bitwise for stage in run.stages)


def test_the_ten_lines_of_the_interface_record_a_run_that_replays(tmp_path: Path) -> None:
    task = stagelens.tasks.ImageClassification(classes=CLASSES, image_shape=SHAPE)
    model, optimizer = made(task)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    loader = make_batches(7)
    images, labels = make_batches(1, seed=9)[0]
    group = ["odd", "even"] * 4

    recorder = stagelens.Recorder(tmp_path / "run", task=task, name="digits")
    with recorder.stage(
        "pretrain",
        model=model,
        optimizer=optimizer,
        clip_norm=None,
        description="clean digits",
        checkpoint_every=None,
    ) as stage:
        losses = []
        for batch in loader:
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            stage.step(batch, loss)
            losses.append(loss.item())
    recorder.add_set("test", images=images, labels=labels, columns={"group": group})

    run = stagelens.open_run(tmp_path / "run")
    assert run.name == "digits"
    assert [s.name for s in run.stages] == ["pretrain"]
    assert run.problems == []
    table = run.stages[0].table()
    assert table["loss"].tolist() == losses
    assert table["lr"].tolist() == pytest.approx([1e-2] * 3 + [5e-3] * 3 + [2.5e-3])
    assert run.stages[0].facts.description == "clean digits"
    assert run.evaluation_set().table()["group"].tolist() == group
    assert differing(run.last.end().model, model.state_dict()) == []
    assert replays_bit_for_bit(run)


def random_streams() -> list[Any]:
    return [
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        random.getstate(),
    ]


@pytest.mark.parametrize("config", [DROPOUT, BATCH_NORM], ids=["mlp", "batch-norm"])
@pytest.mark.parametrize("keep", ["all", "none", 2])
def test_training_and_random_streams_are_the_same_recorded_or_not(
    config: dict[str, Any], keep: str | int, tmp_path: Path
) -> None:
    task = make_task(config)
    batches = make_batches(9)
    plain, optimizer = made(task)
    train(task, plain, optimizer, batches)
    streams = random_streams()

    recorded, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage(
        "first",
        model=recorded,
        optimizer=optimizer,
        keep_batches=keep,
        checkpoint_every=4,
        flush_every=2,
    ) as stage:
        train(task, recorded, optimizer, batches, stage=stage)

    assert differing(plain.state_dict(), recorded.state_dict()) == []
    assert random_streams() == streams


def test_leaving_the_block_leaves_no_hook_behind(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)

    def hooks() -> int:
        own: list[Any] = [
            model._forward_pre_hooks,
            model._forward_hooks,
            optimizer._optimizer_step_pre_hooks,
            optimizer._optimizer_step_post_hooks,
            *(p._backward_hooks or {} for p in model.parameters()),
        ]
        return sum(map(len, own))

    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
        assert hooks() > 0
    assert hooks() == 0
    with (
        pytest.raises(ZeroDivisionError),
        recorder.stage("second", model=model, optimizer=optimizer),
    ):
        raise ZeroDivisionError
    assert hooks() == 0


def evaluate(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(make_batches(1, seed=7)[0][0])
    model.train()


def evaluate_under_averaged_weights(model: nn.Module) -> None:
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter))
    evaluate(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(own[name])


def copy_and_train_the_copy(model: nn.Module) -> None:
    copied = copy.deepcopy(model)
    copied(make_batches(1)[0][0]).sum().backward()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1.0)


def save_whole(model: nn.Module) -> None:
    file = io.BytesIO()
    torch.save(model, file)
    assert b"stagelens" not in file.getvalue()  # so it can be loaded anywhere
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert differing(loaded.state_dict(), model.state_dict()) == []
    loaded(make_batches(1)[0][0]).sum().backward()


def average(model: nn.Module) -> None:
    torch.optim.swa_utils.AveragedModel(model).update_parameters(model)


BETWEEN = [evaluate, evaluate_under_averaged_weights, copy_and_train_the_copy, save_whole, average]


@pytest.mark.parametrize("between", BETWEEN)
def test_what_loops_do_between_steps_does_not_disturb(
    between: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    task = make_task(BATCH_NORM)
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        for batch in make_batches(5):
            between(model)
            loss = task.loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            between(model)
            optimizer.step()
            between(model)
            stage.step(batch, loss)
    assert replays_bit_for_bit(recorder.run())


def test_the_loss_may_be_given_as_a_number_and_divided_by_the_accumulation(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer, accumulation=3) as stage:
        for number, batch in enumerate(make_batches(6), 1):
            loss = task.loss(model, batch) / 3
            loss.backward()
            if number % 3 == 0:
                optimizer.step()
                optimizer.zero_grad()
            stage.step(batch, loss.item())
    assert recorder.run().last.steps == 2
    assert replays_bit_for_bit(recorder.run())


@pytest.mark.parametrize("keep", ["all", "none"])
def test_every_micro_batch_may_have_a_divisor_of_its_own(keep: str, tmp_path: Path) -> None:
    divisors = [(2.0, 2.0), (1.0,), (4.0, 0.5, 3.0)]
    task = make_task(DROPOUT)
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    losses = []
    with recorder.stage("first", model=model, optimizer=optimizer, keep_batches=keep) as stage:
        for number, own in enumerate(divisors):
            losses.append(0.0)
            for last, (batch, divisor) in enumerate(
                zip(make_batches(len(own), seed=number), own, strict=True), 1 - len(own)
            ):
                loss = task.loss(model, batch)
                (loss / divisor).backward()
                losses[-1] += loss.item() / divisor
                if last == 0:
                    optimizer.step()
                    optimizer.zero_grad()
                stage.step(batch, loss, divisor)
    run = recorder.run()
    assert [step.divisors for step in run.last.read_steps()] == divisors
    assert run.last.table()["loss"].tolist() == pytest.approx(losses)
    assert keep == "none" or replays_bit_for_bit(run)


@pytest.mark.parametrize(("keep", "kept"), [("all", [0, 1, 2, 3, 4]), (2, [0, 2, 4]), ("none", [])])
def test_batches_are_kept_as_asked(keep: str | int, kept: list[int], tmp_path: Path) -> None:
    task = make_task(DROPOUT)
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer, keep_batches=keep) as stage:
        train(task, model, optimizer, make_batches(5), stage=stage)
    steps = list(recorder.run().last.read_steps())
    assert [step.step for step in steps] == [0, 1, 2, 3, 4]
    assert [step.step for step in steps if step.batches is not None] == kept
    assert recorder.run().last.replayable == (keep == "all")


def test_random_states_are_kept_only_where_numbers_were_drawn(tmp_path: Path) -> None:
    for config, drew in ((DROPOUT, True), ({"kind": "mlp", "hidden": [6]}, False)):
        task = make_task(config)
        model, optimizer = made(task)
        recorder = stagelens.Recorder(tmp_path / str(drew), task)
        with recorder.stage("first", model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, make_batches(3), stage=stage)
        steps = list(recorder.run().last.read_steps())
        assert [bool(step.batches and step.batches[0].rng) for step in steps] == [drew] * 3


def test_checkpoints_hold_the_training_state_at_their_step(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    twin, twin_optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer, checkpoint_every=2) as stage:
        train(task, model, optimizer, make_batches(5), stage=stage)
    facts = recorder.run().last.facts
    assert [checkpoint.step for checkpoint in facts.checkpoints] == [2, 4]
    train(task, twin, twin_optimizer, make_batches(5)[:2])
    kept = recorder.run().last._state(facts.checkpoints[0].state)
    assert differing(kept.model, twin.state_dict()) == []
    assert {name: float(state["step"]) for name, state in kept.optimizer.items()} == {
        name: 2.0 for name, _ in twin.named_parameters()
    }


def test_an_optimizer_can_be_copied_and_saved_in_mid_stage(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(1), stage=stage)
        copied = copy.deepcopy(optimizer)
        torch.save(optimizer.state_dict(), io.BytesIO())
        train(task, model, optimizer, make_batches(1, seed=1), stage=stage)
    assert copied.state_dict()["state"][0]["step"] == 1
    assert replays_bit_for_bit(recorder.run())


@pytest.mark.parametrize("limit", ["_FLUSH_SECONDS", "_FLUSH_BYTES"])
def test_long_and_large_steps_are_written_at_once(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_writer, limit, 0)
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        for number, batch in enumerate(make_batches(3), 1):
            train(task, model, optimizer, [batch], stage=stage)
            assert written(stage, number)
    assert replays_bit_for_bit(recorder.run())


def test_steps_on_disk_counts_finished_flushes(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with recorder.stage("first", model=model, optimizer=optimizer, flush_every=2) as stage:
        for batch, steps in zip(make_batches(5), (0, 2, 2, 4, 4), strict=True):
            train(task, model, optimizer, [batch], stage=stage)
            assert written(stage, steps)
    assert stage.steps_on_disk == 5


def test_a_recorder_that_is_no_longer_used_lets_go_of_the_folder(tmp_path: Path) -> None:
    task = make_task()
    gc.disable()  # it must not take a collection
    try:
        for resume in (False, True):
            recorder = stagelens.Recorder(tmp_path / "run", task, resume=resume)
            model, optimizer = made(task)
            if resume:
                recorder.restore(model, optimizer)
            given = {"model": model, "optimizer": optimizer, "keep_optimizer": True}
            with recorder.stage(str(resume), **given) as stage:
                train(task, model, optimizer, make_batches(1), stage=stage)
            del recorder, stage, given
    finally:
        gc.enable()


def test_an_exception_in_the_block_keeps_what_was_noted(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    with (
        pytest.raises(KeyboardInterrupt),
        recorder.stage("first", model=model, optimizer=optimizer) as stage,
    ):
        train(task, model, optimizer, make_batches(3), stage=stage)
        raise KeyboardInterrupt
    run = recorder.run()
    assert run.stages == []
    assert [(s.name, s.steps) for s in run.unfinished] == [("first", 3)]
    assert "stage 'first' was not finished: 3 steps were saved" in run.problems[0]


def test_the_second_stage_does_not_write_an_unchanged_model_again(tmp_path: Path) -> None:
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task)
    for name in ("first", "second"):
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, make_batches(2), stage=stage)
    first, second = recorder.run().stages
    assert first.facts.end is not None
    assert second.facts.start.model == first.facts.end.model
    assert second.facts.boundary.optimizer == "carried"


def test_a_stage_is_begun_without_opening_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    model, optimizer = made(task)
    recorder = stagelens.Recorder(tmp_path / "run", task=task)
    opened = []
    monkeypatch.setattr("stagelens.recording.recorder.open_run", opened.append)
    for name in ("first", "second", "third"):
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, make_batches(2), stage=stage)
    recorder.close()
    monkeypatch.undo()
    assert opened == []  # it takes the longer the more stages there are
    run = stagelens.open_run(tmp_path / "run")
    assert [own.name for own in run.stages] == ["first", "second", "third"]
    assert run.stages[2].facts.start.model == run.stages[1].facts.end.model
    assert replays_bit_for_bit(run)

    going_on = stagelens.Recorder(tmp_path / "run", task=task, resume=True)
    assert (going_on.last.name, going_on.last.index) == ("third", 2)
    going_on.close()
