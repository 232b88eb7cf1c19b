"""A Trainer's training that is interrupted keeps what was noted, and can be gone on from."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from pathlib import Path, PurePath
from typing import Any

import pytest
from transformers import TrainerCallback

import stagelens
from stagelens import StageRecorderCallback
from stagelens.replaying.reproduction import measure_deviation
from tests.support import launched
from tests.support.loops import differing, refused
from tests.support.small_trainings import arguments, made, trainer


class StopAt(TrainerCallback):
    """Ends a training in its middle, in a way of its own."""

    def __init__(self, step: int, how: str = "exception") -> None:
        self.step, self.how = step, how

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            if self.how == "kill":
                # A kill may come while a part is being written, which is then lost: one is there.
                while not any(Path(args.output_dir).parent.glob("run/stages/*/steps-*.parquet")):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError


def train(path: Path, stage: str, *others: TrainerCallback, **options: Any) -> Any:
    """Train a new model, recorded; gives the Trainer, or the recording callback if it broke."""
    model, tokenizer = made("bert")
    callback = StageRecorderCallback(path / "run", stage, **options)
    args = arguments(path / "out")
    trained = trainer("bert", model, tokenizer, args, callbacks=[callback, *others])
    trained.train()
    return trained


def in_a_process(path: Path, how: str) -> None:
    train(path, "first", StopAt(4, how), flush_every=2 if how == "kill" else 1024)


def unfinished(path: Path) -> list[tuple[str, int]]:
    run = stagelens.open_run(path / "run")
    assert run.stages == []
    return [(stage.name, stage.steps) for stage in run.unfinished]


@pytest.mark.parametrize(("how", "exitcode"), [("exception", 1), ("kill", -9)])
def test_a_process_that_ends_in_mid_training_leaves_an_unfinished_stage(
    how: str, exitcode: int, tmp_path: Path
) -> None:
    assert launched.begin(in_a_process, tmp_path, how).wait() == exitcode
    # The newest part may still have been written when the kill came.
    assert unfinished(tmp_path) in [[("first", steps)] for steps in (4, 2)[: 1 + (how == "kill")]]


def test_the_next_training_in_the_process_sets_an_interrupted_one_aside(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as kept_alive:  # as a notebook keeps its last error
        train(tmp_path, "first", StopAt(3))
    trained = train(tmp_path, "second")
    assert kept_alive.traceback is not None
    run = stagelens.open_run(tmp_path / "run")
    assert [stage.name for stage in run.stages] == ["second"]
    assert "stage 'first' was interrupted and set aside" in run.problems[0]
    assert len(trained.model._forward_pre_hooks) == 0


def test_a_training_that_nobody_holds_any_more_lets_go_of_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, "first", StopAt(3))
    gc.collect()
    assert unfinished(tmp_path) == [("first", 3)]
    task = stagelens.open_run(tmp_path / "run").task
    stagelens.Recorder(tmp_path / "run", task, resume=True).close()


def test_finishing_leaves_no_hook_behind(tmp_path: Path) -> None:
    trained = train(tmp_path, "first")
    hooks = [
        found
        for module in trained.model.modules()
        for found in (*module._forward_pre_hooks, *module._forward_hooks)
    ]
    assert hooks == []


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def test_a_training_goes_on_from_a_checkpoint_in_a_stage_of_its_own(tmp_path: Path) -> None:
    whole, tokenizer = made("bert")
    trainer("bert", whole, tokenizer, arguments(tmp_path / "whole", **CHECKPOINTS)).train()
    args = arguments(tmp_path / "out", **CHECKPOINTS)
    with pytest.raises(ZeroDivisionError):
        model, _ = made("bert")
        callback = StageRecorderCallback(tmp_path / "run", "sft", checkpoint_every=2)
        callbacks = [callback, StopAt(5)]
        trainer("bert", model, tokenizer, args, callbacks=callbacks).train()

    model, _ = made("bert")
    callback = StageRecorderCallback(tmp_path / "run", "sft resumed")
    resumed = trainer("bert", model, tokenizer, args, callbacks=[callback])
    resumed.train(resume_from_checkpoint=True)
    run = stagelens.open_run(tmp_path / "run")
    assert [(s.name, s.steps) for s in run.stages] == [("sft", 4), ("sft resumed", 2)]
    assert run.stages[1].facts.boundary.optimizer == "carried"
    assert all(measure_deviation(run.task, stage).bitwise for stage in run.stages)
    ends = (dict(each.named_parameters()) for each in (model, whole))
    assert differing(*({n: p.detach() for n, p in end.items()} for end in ends)) == []


def test_a_checkpoint_of_a_training_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path / "out", **CHECKPOINTS)
    model, tokenizer = made("bert")
    trainer("bert", model, tokenizer, args).train()
    model, _ = made("bert")
    callback = StageRecorderCallback(tmp_path / "run", "sft", on_problem="raise")
    more = arguments(tmp_path / "out", **{**CHECKPOINTS, "max_steps": 8})
    with refused("goes on from step 6 (resume_from_checkpoint)", "holds no stage that ends there"):
        trainer("bert", model, tokenizer, more, callbacks=[callback]).train(
            resume_from_checkpoint=True
        )


def test_callbacks_go_quietly_while_the_interpreter_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = [train(tmp_path, name) for name in ("first", "second")]
    said: list[Any] = []
    with monkeypatch.context() as ending:
        ending.setattr(sys, "unraisablehook", said.append)
        ending.setitem(PurePath.__eq__.__globals__, "PurePath", None)  # as modules are emptied
        trained.clear()
        gc.collect()
    assert not said
