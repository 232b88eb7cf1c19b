"""Trainings of several processes by accelerate and by ``transformers.Trainer`` are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import stagelens
from stagelens.replaying.replay import StageReplay
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from tests.support import launched
from tests.support.loops import BATCH_NORM
from tests.support.parallel_loops import Stage, Training, end_of, farthest, said
from tests.support.parallel_trainings import with_accelerate, with_trainer

ONE = Training(
    stages=(Stage("only", 1, updates=4, accumulation=2, clip_norm=0.5),), model=BATCH_NORM
)


def checked(run: Run, most: float) -> None:
    """A replay on one device has the recorded losses, and comes to the recorded end."""
    for stage in run.stages:
        assert stage.facts.problem is None
        assert stage.facts.processes == 2
        found = measure_deviation(run.task, stage)
        assert found.misfit is None
        assert found.relative < most


def test_a_loop_of_accelerate(tmp_path: Path) -> None:
    ended = launched.run(2, with_accelerate, tmp_path, ONE)
    assert ended == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    run = stagelens.open_run(tmp_path / "run", ONE.task())
    checked(run, 1e-6)
    (stage,) = run.stages
    assert stage.facts.accumulation == 2
    # Eight batches of four examples: two micro-batches of each process in an update.
    assert [len(step.batches or ()) for step in stage.read_steps()] == [4, 4]


@pytest.mark.parametrize(
    ("kind", "settings", "divisor"),
    [
        # Divided by the labels of all processes, times their number, then averaged over them.
        pytest.param("bert", {"label_smoothing_factor": 0.1}, 1, marks=pytest.mark.slow),
        ("gpt", {"gradient_accumulation_steps": 2}, 1),
        # Divided by a process's own tokens, and averaged over processes.
        pytest.param("gpt", {"average_tokens_across_devices": False}, 2, marks=pytest.mark.slow),
    ],
)
def test_two_trainings_of_the_trainer(
    kind: str, settings: dict[str, Any], divisor: float, tmp_path: Path
) -> None:
    ended = launched.run(2, with_trainer, tmp_path, kind, settings)
    assert ended == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)
    run = stagelens.open_run(tmp_path / "run")
    assert [stage.name for stage in run.stages] == ["first", "second"]
    checked(run, 1e-6)
    assert farthest(run.last.end().model, end_of(tmp_path)) == 0
    step = run.stages[0].read_steps()[0]
    replay = StageReplay(run.task, run.stages[0])
    assert {replay.rules.divisor(micro) for micro in step.batches or ()} == {divisor}
    assert all(micro.rng for micro in step.batches or ())  # dropout
