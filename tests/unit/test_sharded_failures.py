"""What goes wrong in one process of a sharded training stops no other, and leaves a run."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

import stagelens
from stagelens.contracts import RecordingError
from stagelens.recording.sharding import check_sharded
from stagelens.recording.stage_states import StageStates
from tests.support import launched
from tests.support.parallel_loops import Stage, Training, joined, run_stages, said
from tests.support.sharded import sharded

WARN = {"on_problem": "warn"}
NAMES = ("refused", "lost", "odd", "whole")
TRAINING = Training(stages=tuple(Stage(n, i, 3, recorder=WARN) for i, n in enumerate(NAMES)))


def clipped(model: nn.Module, recorder: stagelens.Recorder, rank: int) -> None:
    """A loop that clips and does not say so."""
    task, optimizer = TRAINING.task(), torch.optim.SGD(model.parameters(), 0.1)
    with recorder.stage("clipped", model=model, optimizer=optimizer) as stage:
        for batch in TRAINING.batches(TRAINING.stages[0], 2, rank):
            loss = task.loss(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            optimizer.zero_grad()
            stage.step(batch, loss)


def failing(rank: int, count: int, port: int, folder: Path) -> None:
    """Process 1 gets into trouble in three stages of four, and the training goes on."""
    joined(rank, count, port, folder)
    model = sharded(TRAINING.fresh())
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    with pytest.raises(RecordingError, match=r"the model \(MixedPrecisionPolicy\(param_dtype"):
        check_sharded(sharded(TRAINING.fresh(), mp_policy=policy), count)
    own = MixedPrecisionPolicy(reduce_dtype=next(model.parameters()).dtype)  # casts nothing
    check_sharded(sharded(TRAINING.fresh(), mp_policy=own), count)
    with pytest.raises(RecordingError, match="2 of 3 processes"):
        check_sharded(model, 3)
    recorder = stagelens.Recorder(folder / "run", TRAINING.task())
    take = StageStates.take

    def refusing(states: Any, at: str, *more: Any, **options: Any) -> Any:
        if rank == 1 and "refused" in str(states._meetings._stage.place) and "start" in at:
            raise OSError("the disk is gone")
        if rank == 0 and "lost" in str(states._meetings._stage.place) and at == "step 3":
            raise OSError("the disk is full")
        return take(states, at, *more, **options)

    StageStates.take = refusing  # type: ignore[method-assign]

    def before_note(stage: str, step: int) -> None:
        if rank == 1 and stage == "odd" and step == 2:
            with torch.no_grad():  # changes its part of a weight by hand
                next(iter(model.parameters())).to_local().add_(1.0)  # type: ignore[attr-defined]

    with warnings.catch_warnings(record=True):
        run_stages(TRAINING, model, count, rank, recorder, before_note=before_note)
        clipped(model, recorder, rank)
    recorder.close()
    dist.barrier()
    dist.destroy_process_group()


def test_trouble_in_one_process_stops_none_and_is_told(tmp_path: Path) -> None:
    ended = launched.run(2, failing, tmp_path)
    assert ended == [0, 0], [said(tmp_path, rank) for rank in range(2)]
    run = stagelens.open_run(tmp_path / "run", TRAINING.task())
    assert [stage.name for stage in run.stages] == ["odd", "whole", "clipped"]
    problem = run.stage("odd").facts.problem or ""
    assert "process 1" in problem and "changed outside" in problem
    assert run.stage("whole").replayable
    assert "by clipping, which has to be declared" in (run.stage("clipped").facts.problem or "")
    told = " ".join([*run.file.notes, *run.problems])
    assert "process 1 does not record the stage" in told and "disk is full" in told


def dying(rank: int, count: int, port: int, folder: Path) -> None:
    """Process 1 is gone in the midst of the second stage."""
    joined(rank, count, port, folder)
    training = Training(stages=(Stage("first", 1, 3), Stage("second", 2, 6)))
    model = sharded(training.fresh())

    def before_note(stage: str, step: int) -> None:
        if rank == 1 and stage == "second" and step == 4:
            os._exit(9)

    recorder = stagelens.Recorder(folder / "run", training.task())
    run_stages(training, model, count, rank, recorder, before_note=before_note)


def test_a_process_that_dies_leaves_a_run_that_opens(tmp_path: Path) -> None:
    ended = launched.run(2, dying, tmp_path)
    assert ended[1] == 9 and ended[0] not in (0, None)
    assert "gloo" in said(tmp_path, 0)
    run = stagelens.open_run(tmp_path / "run", Training().task())
    assert [stage.name for stage in run.stages] == ["first"] and run.stages[0].replayable
    assert any("'second' was not finished" in told for told in run.problems)
    assert not list(run.path.rglob("*.gathered*"))
