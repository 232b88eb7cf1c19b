"""The run digest covers the recorded training, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import stagelens
from stagelens.effects.computing import attribute
from tests.support.loops import Plan, make_batches, make_task, run_plans


def sgd(model: nn.Module, before: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    return before or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


PLANS = [
    Plan("first", sgd, recorder={"flush_every": 4}),
    Plan("second", sgd, recorder={"checkpoint_every": 3}),
]


def record(path: Path, plans: list[Plan] | None = None, **options: Any) -> stagelens.Run:
    task = make_task()
    recorder = stagelens.Recorder(path, task, **options)
    run_plans(task, plans or PLANS, recorder=recorder)
    images, labels = make_batches(1, seed=5)[0]
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return stagelens.open_run(path)


def test_the_same_training_recorded_twice_has_the_same_digest(tmp_path: Path) -> None:
    digests = [record(tmp_path / name, name="run").digest for name in ("one", "two")]
    assert digests[0] == digests[1]


def test_the_digest_does_not_depend_on_when_it_was_written_or_what_it_is_called(
    tmp_path: Path,
) -> None:
    usual = record(tmp_path / "run").digest
    settings = {"flush_every": 1, "description": "another", "checkpoint_every": 5}
    plans = [Plan(plan.name, plan.optimizer, recorder=settings) for plan in PLANS]
    assert record(tmp_path / "other", plans, name="other").digest == usual


def test_sets_and_results_do_not_change_the_digest(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    before = run.digest
    recorder = stagelens.Recorder(run.path, run.task, resume=True)
    recorder.add_set("another", images=make_batches(1)[0][0])
    attribute(run, "test", "replay")
    assert stagelens.open_run(run.path).digest == before


@pytest.mark.parametrize(
    "other",
    [
        [Plan("first", sgd, batches=5), PLANS[1]],
        [Plan("first", sgd, recorder={"keep_batches": "none"}), PLANS[1]],
        [Plan("first", sgd, loop={"clip_norm": 1e9}), PLANS[1]],
        [Plan("First", sgd), PLANS[1]],
        PLANS[::-1],
        PLANS[:1],
    ],
    ids=["fewer steps", "other batches kept", "clipping", "name", "order", "fewer stages"],
)
def test_another_training_has_another_digest(other: list[Plan], tmp_path: Path) -> None:
    assert record(tmp_path / "a").digest != record(tmp_path / "b", other).digest
