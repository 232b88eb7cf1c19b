"""What goes wrong in one of several processes: it is told, and never stops the training."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stagelens
from stagelens.contracts import RecordingError
from stagelens.recording import stage_together
from stagelens.recording.parallel_models import check_shared
from stagelens.runs.run import Run
from stagelens.runs.stage_parts import folder_of
from stagelens.runs.states import model_tensors
from tests.support import launched
from tests.support.loops import make_batches
from tests.support.parallel_loops import Stage, Training, end_of, farthest, joined, run_stages, said

WARNS = Training(stages=(Stage("first", 1, 6, recorder={"on_problem": "warn", "flush_every": 1}),))


def opened(folder: Path) -> Run:
    return stagelens.open_run(folder / "run", WARNS.task())


def on_disk(folder: Path, count: int) -> list[int]:
    """How many steps each process has written."""
    stage = folder / "run" / "stages" / "00-first"
    parts = [(stage / folder_of("", n).strip("/")).glob("steps-*.parquet") for n in range(count)]
    return [sum(pq.read_metadata(part).num_rows for part in own) for own in parts]


def killed_at_a_step(rank: int, count: int, port: int, folder: Path, victim: int) -> None:
    """A process is gone, as for want of memory, at an update that the other one notes."""
    joined(rank, count, port, folder)
    shared = DistributedDataParallel(WARNS.fresh())
    recorder = stagelens.Recorder(folder / "run", WARNS.task())

    def die(_stage: str, step: int) -> None:
        until = time.monotonic() + 20
        # A thread writes steps: what was noted may still be on its way.
        while min(on_disk(folder, count)) < step - 1 and time.monotonic() < until:
            time.sleep(0.01)
        if step == 5 and rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)

    run_stages(WARNS, shared, count, rank, recorder, before_note=die)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_leaves_a_run_up_to_where_all_had_come(
    victim: int, tmp_path: Path
) -> None:
    ended = launched.run(2, killed_at_a_step, tmp_path, victim)
    assert ended[victim] == -signal.SIGKILL
    assert ended[1 - victim] not in (0, None)  # gloo tells the other one
    run = opened(tmp_path)
    assert run.stages == []
    (stage,) = run.unfinished
    steps = min(on_disk(tmp_path, 2))
    assert stage.steps == steps
    assert steps == 4
    assert [len(step.batches or ()) for step in stage.read_steps()] == [2] * steps
    (problem,) = run.problems
    assert f"{steps} steps of all 2 processes" in problem


def one_cannot_record(rank: int, count: int, port: int, folder: Path, what: str) -> None:
    """Recording fails in process 1, or does not take place there."""
    stage_together.PATIENCE = 20.0
    joined(rank, count, port, folder)
    model, task = WARNS.fresh(), WARNS.task()
    shared: nn.Module = DistributedDataParallel(model)
    recorder = None
    if what != "only the main one" or rank == 0:
        recorder = stagelens.Recorder(folder / "run", task)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings: dict[str, Any] = {"on_problem": "warn", "flush_every": 2}
    given = model if what == "not wrapped" else shared
    stage = recorder and recorder.stage("first", model=given, optimizer=optimizer, **settings)
    if stage is not None:
        stage.__enter__()
    for number, batch in enumerate(make_batches(8, seed=rank), 1):
        images, labels = batch[0].double(), batch[1]
        loss = task.loss(shared, (images, labels))
        loss.backward()
        if what == "gradients":  # by all of them, and undeclared
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        noted: Any = (images, labels)
        if what == "a batch" and rank == 1 and number == 3:
            noted = (object(), labels)
        if what == "a disk" and rank == 1 and number == 1:
            for file in (folder / "run").rglob("process-00001"):
                file.rmdir()
                file.write_text("no folder any more")
        if stage is not None and not (what == "a step" and rank == 1 and number == 8):
            stage.step(noted, loss)
    if stage is not None:
        stage.__exit__(None, None, None)
    torch.save(dict(model_tensors(model)), folder / f"end-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("a batch", "process 1: the batch holds a object"),
        pytest.param("a disk", "process 1:", marks=pytest.mark.slow),
        pytest.param("a step", "process 1", marks=pytest.mark.slow),
        ("only the main one", "process 1 recorded nothing; make the recorder in every process"),
        ("not wrapped", "the model is not wrapped in DistributedDataParallel"),
        ("gradients", "at the first step has a norm of"),
    ],
)
def test_one_that_cannot_record_is_told_of_and_stops_nobody(
    what: str, told: str, tmp_path: Path
) -> None:
    ended = launched.run(2, one_cannot_record, tmp_path, what)
    assert ended == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    assert farthest(end_of(tmp_path, 0), end_of(tmp_path, 1)) == 0  # trained to the end, together
    run = opened(tmp_path)
    (stage,) = run.stages
    assert stage.facts.problem is not None
    assert told in stage.facts.problem
    assert not stage.replayable
    assert len(stage.table()) in (7, 8)


def main_is_refused(rank: int, count: int, port: int, folder: Path) -> None:
    """The folder is in use for something else."""
    joined(rank, count, port, folder)
    with pytest.raises(RecordingError, match="not empty and not a run"):
        stagelens.Recorder(folder / "other", WARNS.task())
    dist.destroy_process_group()


def test_what_refuses_the_main_process_refuses_all(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("something else")
    assert launched.run(2, main_is_refused, tmp_path) == [0, 0], said(tmp_path, 1)


def test_launched_processes_that_do_not_know_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RecordingError, match="is not initialised yet"):
        stagelens.Recorder(tmp_path / "run", WARNS.task())


def test_batch_norm_over_all_processes_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2))
    with pytest.raises(RecordingError, match="SyncBatchNorm '1'"):
        check_shared(model, "ddp", 2)
    check_shared(model.eval(), "ddp", 2)
