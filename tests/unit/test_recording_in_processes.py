"""A training of several processes is recorded as one, and replayed on one device."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import stagelens
from stagelens.contracts import RunError
from stagelens.derivatives.curvature import StageLoss
from stagelens.effects.computing import attribute
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.replaying.replay import StageReplay, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.files import read_json
from stagelens.runs.run import Run
from stagelens.runs.schema import StageFile
from stagelens.runs.states import model_tensors
from tests.support import launched
from tests.support.loops import BATCH_NORM, Batch
from tests.support.parallel_loops import (
    Stage,
    Training,
    end_of,
    farthest,
    plain,
    recording,
    run_stages,
)

TWO = Training(seeds_apart=False)
"""In two processes; without dropout, so that a process alone may train on what both saw."""
FOUR = Training(
    stages=(
        Stage("first", 1, 4, accumulation=2, clip_norm=0.5, recorder={"checkpoint_every": 2}),
        Stage("second", 2, 4, clip_norm=1.0, recorder={"flush_every": 3}, by_rows=True),
    ),
    model=BATCH_NORM,
)
"""In four processes, with BatchNorm, dropout, clipping and accumulation."""
CLOSE = 1e-6


def recorded(folder: Path, count: int, training: Training) -> Run:
    assert launched.run(count, recording, folder, training) == [0] * count
    return stagelens.open_run(folder / "run", training.task())


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    recorded(folder, 2, TWO)
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    recorded(folder, 4, FOUR)
    return folder


def opened(folder: Path, training: Training) -> Run:
    """The run of ``two``, or of ``four`` with the data set of the stage that is kept as rows."""
    data = {stage.name: training.data(stage, 4) for stage in training.stages if stage.by_rows}
    return stagelens.open_run(folder / "run", training.task(), datasets=data)


class OnBothBatches(Training):
    """The training of two processes in one, on their batches together."""

    def batches(self, stage: Stage, count: int, rank: int) -> list[Batch]:
        pairs = zip(TWO.batches(stage, 2, 0), TWO.batches(stage, 2, 1), strict=True)
        return [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in pairs]


def test_two_processes_train_as_one_does_on_what_both_saw(two: Path) -> None:
    alone = OnBothBatches(seeds_apart=False)
    model = alone.fresh()
    run_stages(alone, model, 1, 0)
    assert farthest(model_tensors(model), end_of(two)) < CLOSE
    assert farthest(end_of(two, 1), end_of(two)) == 0


def test_what_is_on_disk(two: Path) -> None:
    run = opened(two, TWO)
    first = run.stage("first")
    facts = read_json(two / "run" / "stages" / "00-first" / "stage.json", StageFile)
    assert facts.parallel is not None
    assert (facts.parallel.kind, facts.parallel.count, facts.steps) == ("ddp", 2, 5)
    steps = first.read_steps()
    own = [TWO.batches(TWO.stages[0], 2, rank) for rank in (0, 1)]
    for number, step in enumerate(steps):
        assert step.batches is not None
        assert [micro.process for micro in step.batches] == [0, 1]
        for rank, micro in enumerate(step.batches):
            assert all(map(torch.equal, micro.batch, own[rank][number]))
    assert first.table()["loss"].tolist() == pytest.approx([step.loss for step in steps], abs=1e-12)
    assert run.problems == []


def test_a_replay_on_one_device_comes_to_the_recorded_end(two: Path, four: Path) -> None:
    for folder, training in ((two, TWO), (four, FOUR)):
        run = opened(folder, training)
        for stage in run.stages:
            found = measure_deviation(run.task, stage)
            assert found.largest < CLOSE
            assert found.misfit is None
        assert farthest(run.last.end().model, end_of(folder)) == 0


def test_the_same_layout_gives_the_same_bits(two: Path, tmp_path: Path) -> None:
    again = recorded(tmp_path, 2, TWO)
    assert farthest(end_of(tmp_path), end_of(two)) == 0
    assert again.recording == opened(two, TWO).recording


@pytest.mark.parametrize("which", ["two", pytest.param("four", marks=pytest.mark.slow)])
def test_without_a_stage_as_trained_without_it(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    training, count = {"two": (TWO, 2), "four": (FOUR, 4)}[which]
    folder = request.getfixturevalue(which)
    run = opened(folder, training)
    assert launched.run(count, plain, tmp_path, training, "first") == [0] * count
    without = replay_without(run, run.stage("first")).state.model
    assert farthest(without, end_of(tmp_path)) < CLOSE
    assert farthest(without, run.last.end().model) > 100 * CLOSE


def test_statistics_of_norms_are_the_main_process_s(four: Path) -> None:
    names = [name for name in end_of(four) if name.endswith("running_mean")]
    assert names
    assert any(not torch.equal(end_of(four)[name], end_of(four, 1)[name]) for name in names)


def test_steps_are_checked_while_they_are_recorded(four: Path) -> None:
    for stage in opened(four, FOUR).stages:
        assert 1 in stage.facts.checked


def test_checkpoints_are_those_of_all(four: Path) -> None:
    first = opened(four, FOUR).stage("first")
    assert [step for step, _ in first.within()] == [2]
    for parts in first.facts.parts_of_each:
        assert [part.first_step for part in parts] == [0, 2]


def test_the_effect_says_by_how_many_processes_and_how_far_off(four: Path) -> None:
    trust = attribute(opened(four, FOUR), "test", "replay", ["first"]).trust["first"]
    assert "trained by 4 processes" in trust.reason
    assert trust.trust == "estimated"
    assert trust.deviation is not None
    assert trust.deviation < CLOSE


def test_cheap_steps_and_derivatives_follow_from_the_micro_batches(four: Path) -> None:
    run = opened(four, FOUR)
    stage = run.stage("first")
    coarse = CoarseModel(run.task, stage, stage.start())
    for step in coarse_steps(stage.read_steps(), merge=1, thin=1):
        coarse.step(step)
    assert farthest(model_tensors(coarse.model), stage.end().model) < CLOSE

    loss = StageLoss(run.task, stage, frozenset(stage.facts.trainable), torch.float64)
    replay = StageReplay(run.task, stage)
    step = stage.read_steps()[0]
    replay.rules.clip_norm = None
    replay.backward(step)
    own = loss.gradient(stage.start().model, step)
    for name, parameter in replay.model.named_parameters():
        assert parameter.grad is not None
        assert float((parameter.grad - own.gradient[name]).abs().max()) < CLOSE
    # Those of the main process's two micro-batches, by two norms.
    assert len(own.statistics) == 4


def test_each_process_keeps_its_batches_as_rows_of_one_data_set(four: Path) -> None:
    told, stage = opened(four, FOUR).stages[1], FOUR.stages[1]
    assert told.facts.rows is not None
    for part in chain.from_iterable(told.facts.parts_of_each):
        assert part.batches is not None
        stacks = {name.split()[0] for name in load_file(four / "run" / part.batches.path)}
        assert {"0.rows", "0.sha256"} <= stacks and "0.0" not in stacks
    with pytest.raises(RunError, match="kept as rows of a data set that was not given"):
        stagelens.open_run(four / "run", FOUR.task()).stages[1].read_steps()[0]
    read = [micro for step in told.read_steps() for micro in step.batches or ()]
    assert [micro.process for micro in read] == [0, 1, 2, 3] * stage.updates
    for number, own in enumerate(FOUR.batches(stage, 4, 2)):
        assert all(map(torch.equal, read[4 * number + 2].batch, own))
