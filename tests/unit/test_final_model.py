"""A model that changes after the recording of its last stage is told."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

import stagelens
from stagelens import StageRecorderCallback
from stagelens.contracts import RecordingWarning
from stagelens.recording.final_model import check_all
from tests.support.loops import Training, make_batches, refused
from tests.support.small_trainings import arguments, made, trainer

SAYS = "is not as stage 'first', the last of run, left it: 0.weight was changed"


def trained(training: Training) -> Training:
    with training.stage() as stage:
        for batch in make_batches(2):
            training.step(batch, stage)
    return training


@torch.no_grad()
def average(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.99)


@contextmanager
def nothing_said() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RecordingWarning)
        yield


def test_weights_that_are_swapped_after_the_last_block(training: Training) -> None:
    with nothing_said():
        trained(training).recorder.add_set("one", images=torch.zeros(2, 1, 4, 5))
    average(training.model)
    with pytest.warns(RecordingWarning, match=SAYS):
        training.recorder.add_set("two", images=torch.zeros(2, 1, 4, 5))
    with nothing_said():  # once is enough
        training.recorder.close()


def test_the_model_is_compared_when_the_recorder_is_closed(training: Training) -> None:
    average(trained(training).model)
    with pytest.warns(RecordingWarning, match=SAYS):
        training.recorder.close()


def test_the_model_is_compared_at_the_end_of_the_process(training: Training) -> None:
    model = trained(training).model
    del training.recorder
    average(model)
    with pytest.warns(RecordingWarning, match=SAYS):
        check_all()
    with nothing_said():
        check_all()


def test_weights_that_are_swapped_between_stages(training: Training) -> None:
    average(trained(training).model)
    with (
        refused("differs from its value at the end of the previous stage", "'second' does not"),
        training.stage("second"),
    ):
        pass


def test_a_model_that_is_used_trained_on_cast_or_gone_is_not_told(training: Training) -> None:
    with nothing_said():
        trained(training)
        training.model.eval()
        training.model(make_batches(1)[0][0])
        training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
        with training.stage("second") as stage:
            training.model.train()
            for batch in make_batches(2):
                training.step(batch, stage)
        training.model.to(torch.bfloat16)
        training.recorder.add_set("test", images=torch.zeros(2, 1, 4, 5))
        del training.model, training.optimizer, stage
        gc.collect()
        training.recorder.close()


class Averaging(TrainerCallback):
    """Replaces the weights where the training ends."""

    def on_train_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        average(model)


def test_a_callback_that_averages_weights_after_the_recording(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    callbacks = [StageRecorderCallback(tmp_path / "run", "sft"), Averaging()]
    args = arguments(tmp_path / "out", max_steps=2)
    done = trainer("bert", model, tokenizer, args, callbacks=callbacks)
    with nothing_said():
        done.train()
    with pytest.warns(RecordingWarning, match="is not as stage 'sft', the last of run, left it"):
        done.evaluate()
    assert stagelens.open_run(tmp_path / "run").problems == []


def test_a_head_that_is_new_in_the_next_stage_is_not_told(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    with nothing_said():
        for stage, new in (("first", []), ("second", ["classifier"])):
            callback = StageRecorderCallback(tmp_path / "run", stage, reinitialised=new)
            args = arguments(tmp_path / "out", max_steps=2)
            if new:
                torch.nn.init.normal_(model.classifier.weight)
            trainer("bert", model, tokenizer, args, callbacks=[callback]).train()
            del callback
            gc.collect()
    average(model)
    with pytest.warns(RecordingWarning, match="is not as stage 'second'"):
        check_all()
