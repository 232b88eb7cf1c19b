"""Where memory is short no step is run again beside the training, and the run says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import stagelens
from stagelens.compute import memory
from stagelens.recording import checked_steps, no_checks
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import make_batches, make_task, train


def record(path: Path) -> stagelens.Run:
    task = make_task()
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    recorder = stagelens.Recorder(path, task)
    with recorder.stage("first", model=model, optimizer=optimizer) as stage:
        train(task, model, optimizer, make_batches(5), stage=stage)
    recorder.close()
    return stagelens.open_run(path, task)


def run_out(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("where", "name", "instead", "says"),
    [
        (memory, "available", lambda: 1000, "1,000 bytes were free"),
        (no_checks, "CheckedSteps", run_out, "memory ran out when that was prepared"),
        (checked_steps.CheckedSteps, "_check", run_out, "memory ran out when one was"),
    ],
)
def test_no_step_is_run_again_where_memory_is_short(
    where: Any, name: str, instead: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, name, instead)
    run = record(tmp_path / "run")
    monkeypatch.undo()
    assert run.last.facts.checked == [] and says in str(run.last.facts.unchecked)
    (problem,) = run.problems
    assert "no step of stage 'first' was run again while it was recorded" in problem
    assert run.last.replayable and measure_deviation(run.task, run.last).bitwise


def test_what_a_check_takes_is_a_few_times_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(p.nbytes for p in make_task().build_model().parameters())
    for free, checked in ((7 * size, False), (9 * size, True)):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        run = record(tmp_path / str(free))
        assert bool(run.last.facts.checked) == checked
        assert (run.last.facts.unchecked is None) == checked
