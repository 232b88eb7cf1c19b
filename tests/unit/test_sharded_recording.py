"""Trainings under ``fully_shard`` are recorded as one, and replayed by one process or several."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stagelens
from stagelens.compute import processes
from stagelens.effects.computing import attribute
from stagelens.effects.results import load_result
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run, open_run
from stagelens.runs.states import model_tensors
from tests.support import launched
from tests.support.loops import BATCH_NORM, Batch, differing_state
from tests.support.parallel_loops import (
    Stage,
    Training,
    end_of,
    farthest,
    plain,
    recording,
    recording_shared_out,
    run_stages,
    said,
)
from tests.support.stored_models import counterfactuals

TWO = Training(
    stages=(Stage("first", 1, 4), Stage("second", 2, 4, clip_norm=0.5)),
    seeds_apart=False,
    frozen=("1.bias",),
)
"""In two processes, with a frozen parameter; without dropout, so that a process alone can do it."""
FOUR = Training(
    stages=(
        Stage("first", 1, 4, accumulation=2, clip_norm=0.5, recorder={"checkpoint_every": 2}),
        Stage("second", 2, 4, clip_norm=1.0, recorder={"flush_every": 3}),
    ),
    model=BATCH_NORM,
)
"""In four processes, with BatchNorm, dropout, clipping and accumulation."""
CLOSE = 1e-6


def recorded(folder: Path, count: int, training: Training, work: Any, *names: str) -> Path:
    ended = launched.run(count, work, folder, training, *names)
    assert ended == [0] * count, [said(folder, rank) for rank in range(count)]
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return recorded(folder, 2, TWO, recording_shared_out, "run", "again")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("four"), 4, FOUR, recording_shared_out, "run")


def opened(folder: Path, training: Training, name: str = "run") -> Run:
    return stagelens.open_run(folder / name, training.task())


class OnBothBatches(Training):
    """The training of two processes in one, on their batches together."""

    def batches(self, stage: Stage, count: int, rank: int) -> list[Batch]:
        pairs = zip(TWO.batches(stage, 2, 0), TWO.batches(stage, 2, 1), strict=True)
        return [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in pairs]


def test_sharded_trains_as_data_parallel_and_as_one_process(two: Path, tmp_path: Path) -> None:
    own = opened(two, TWO).last.end().model
    alone = OnBothBatches(stages=TWO.stages, seeds_apart=False, frozen=TWO.frozen)
    model = alone.fresh()
    run_stages(alone, model, 1, 0)
    assert farthest(model_tensors(model), own) < CLOSE
    assert launched.run(2, plain, tmp_path, TWO, None) == [0, 0]
    assert farthest(end_of(tmp_path), own) < CLOSE
    assert farthest(model_tensors(model), end_of(tmp_path)) < CLOSE


def test_the_same_layout_gives_the_same_bits_and_says_how_it_was_trained(two: Path) -> None:
    run, again = (opened(two, TWO, name) for name in ("run", "again"))
    assert run.recording == again.recording
    for stage, other in zip(run.stages, again.stages, strict=True):
        assert differing_state(stage.end(), other.end()) == []
        facts = stage.facts
        assert facts.parallel is not None and facts.problem is None
        assert (facts.parallel.kind, facts.parallel.count) == ("fsdp2", 2)
        assert len(facts.parallel.modules) == 2 and facts.parallel.modules[0] == ""
        assert facts.checked == [] and "shared out" in (facts.unchecked or "")
        assert facts.trainable == ["1.weight", "3.weight", "3.bias"]
    assert len(run.problems) == 2 and all("shared out" in said for said in run.problems)
    assert not list(run.path.rglob("*.tmp"))


def test_a_replay_by_one_process_comes_to_the_recorded_end(two: Path, four: Path) -> None:
    for folder, training in ((two, TWO), (four, FOUR)):
        run = opened(folder, training)
        for stage in run.stages:
            found = measure_deviation(run.task, stage)
            assert found.largest < CLOSE
            assert found.misfit is None
    (checkpoint,) = {step for step, _ in run.stage("first").within()} - {4}
    assert checkpoint == 2


def replayed(
    rank: int, count: int, port: int, folder: Path, training: Training, share: str
) -> None:
    launched.as_launched(rank, count, port, folder)
    run = open_run(folder / "copy", training.task())
    with processes.joined():
        attribute(run, "test", "replay", settings={share: True})


@pytest.mark.slow
@pytest.mark.parametrize("which", ["two", "four"])
def test_as_many_processes_repeat_it_to_the_bit(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    training, count = (TWO, 2) if which == "two" else (FOUR, 4)
    folder = request.getfixturevalue(which)
    shutil.copytree(folder / "run", tmp_path / "copy")
    shutil.copytree(folder / "run", tmp_path / "run")
    recorded(tmp_path, count, training, replayed, "shard")
    whole = opened(tmp_path, training)
    alone = attribute(whole, "test", "replay")
    run = opened(tmp_path, training, "copy")
    found = load_result(run, "test", "effects", "replay")
    assert found is not None
    trust, other = found.trust["first"], alone.trust["first"]
    assert trust.trust == "exact", trust.reason
    assert f"shared out over {count} processes" in trust.reason
    assert other.trust == "estimated" and f"trained by {count} processes" in other.reason
    assert other.deviation is not None and 0 < other.deviation < CLOSE
    own, theirs = (dict(counterfactuals(each)) for each in (run, whole))
    (name,) = own.keys() & theirs.keys() if len(own) == 1 else own.keys()
    assert farthest(own[name], theirs[name]) < CLOSE


def test_as_many_processes_take_the_batches_of_data_parallel_training(tmp_path: Path) -> None:
    """With BatchNorm and dropout, for which batches cannot be split."""
    recorded(tmp_path, 2, FOUR, recording)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    alone = attribute(opened(tmp_path, FOUR), "test", "replay")
    recorded(tmp_path, 2, FOUR, replayed, "split_batches")
    found = load_result(opened(tmp_path, FOUR, "copy"), "test", "effects", "replay")
    assert found is not None
    trust = found.trust["first"]
    assert trust.deviation is not None and trust.deviation < CLOSE
    assert "batches split over 2 processes" in trust.reason and "trained by" not in trust.reason
    np.testing.assert_allclose(found.table["effect"], alone.table["effect"], atol=CLOSE)
