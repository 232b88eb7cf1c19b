"""Models whose steps are checked while they are recorded, and which must not be stopped by it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.effects.computing import attribute
from stagelens.estimators.reproduction import problems
from stagelens.replaying.reproduction import measure_deviation
from stagelens.tasks import ImageClassification
from tests.support.loops import CLASSES, SHAPE, make_batches, train


class SharedMask(nn.Module):
    """One tensor, with minus infinity in it, as a buffer of two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(20, 6))
        self.head = nn.Linear(6, len(CLASSES))
        mask = torch.zeros(6)
        mask[0] = -torch.inf
        self.body.register_buffer("mask", mask)
        self.head.register_buffer("mask", mask)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body[1](self.body[0](images)) + self.body.mask
        return self.head(torch.tanh(hidden))


class Growing(nn.Module):
    """A buffer that gets longer with every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(20, len(CLASSES)))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen = torch.cat([self.seen, torch.zeros(1)])
        return self.net(images)


class Sparse(nn.Module):
    """An embedding with sparse gradients, of the sign of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Embedding(2, 4, sparse=True)
        self.head = nn.Linear(80, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.values((images > 0).long()).flatten(1))


def record(path: Path, make: Callable[[], nn.Module], stages: int = 2) -> stagelens.Run:
    task = ImageClassification(CLASSES, SHAPE, model={}, make_model=lambda _config: make())
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recorder = stagelens.Recorder(path, task)
    for name in ("first", "second")[:stages]:
        with recorder.stage(name, model=model, optimizer=optimizer) as stage:
            train(task, model, optimizer, make_batches(12), stage=stage)
    images, labels = make_batches(1, seed=5, size=30)[0]
    recorder.add_set("test", images=images, labels=labels)
    recorder.close()
    return stagelens.open_run(path, task)


@pytest.mark.parametrize("make", [SharedMask, Sparse])
def test_no_problem_is_told_of_a_recording_that_replays(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", stagelens.contracts.RecordingWarning)
        run = record(tmp_path / "run", make)
    assert run.problems == []
    found = measure_deviation(run.task, run.last)
    assert found.bitwise and found.relative == 0
    result = attribute(run, "test", "task-vector")
    assert result.table["effect"].notna().all()
    assert problems(run) == {}


def test_a_buffer_that_changes_its_shape_costs_the_replay_and_not_the_training(
    tmp_path: Path,
) -> None:
    with pytest.warns(stagelens.contracts.RecordingWarning):
        run = record(tmp_path / "run", Growing, stages=1)
    assert run.last.finished and run.last.updates == 12
    assert run.last.facts.problem is not None
