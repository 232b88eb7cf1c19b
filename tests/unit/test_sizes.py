"""What a run weighs, and models without a stage that go when they take too much room."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

import stagelens
from stagelens.contracts import StageLensError
from stagelens.effects.computing import attribute
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.counterfactual_cache import LIMIT, is_cached
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.replay import Replay
from stagelens.runs.sets.writer import write_set
from stagelens.runs.sizes import MODELS, sizes
from stagelens.runs.streaming import MappedTensors
from tests.support.loops import SHAPE, make_batches, make_task, train


@pytest.fixture
def run(tmp_path: Path) -> stagelens.Run:
    """Four stages, of which three have a model without them to store."""
    task = make_task()
    model = task.build_model()
    with closing(stagelens.Recorder(tmp_path / "run", task, name="weighed")) as recorder:
        for number in range(4):
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            with recorder.stage(f"stage {number}", model=model, optimizer=optimizer) as stage:
                train(task, model, optimizer, make_batches(3, seed=number), stage=stage)
    write_set(tmp_path / "run", task, "test", images=torch.rand(3, *SHAPE), labels=["a", "b", "c"])
    return stagelens.open_run(tmp_path / "run")


def test_every_byte_of_a_run_is_counted_once(run: stagelens.Run) -> None:
    before = sizes(run)
    assert MODELS not in {each.what for each in before}
    attribute(run, "test", "replay")
    found = sizes(run)
    on_disk = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    assert sum(each.bytes for each in found) == on_disk
    weights = [each for each in found if each.what == "weights at its start and end"]
    # The end of a stage is the start of the next one.
    first, *later = (each.bytes for each in weights)
    assert later == [first // 2] * 3
    assert {each.what for each in found if each.can_go} == {MODELS, "tables and maps"}


def test_models_that_were_not_used_for_longest_go_and_are_computed_again(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = attribute(run, "test", "replay")
    stages = run.stages[:3]
    assert all(is_cached(run, stage, "replay") for stage in stages)
    folder = run.path / "results" / "counterfactuals"
    size = sum(path.stat().st_size for path in folder.iterdir())
    known = {one.stage: one.weights for one in counterfactuals(run, Replay(), stages)}
    for path in folder.glob("*"):
        path.unlink()
    monkeypatch.setenv(LIMIT, f"{1.1 * size * 2 / 3 / 1e6:.6f}MB")  # room for two of three
    made = list(counterfactuals(run, Replay(), stages))
    assert [is_cached(run, stage, "replay") for stage in stages] == [False, True, True]
    # What was handed out stays readable, and what is asked for again comes back.
    for one in (*made, *counterfactuals(run, Replay(), stages)):
        weights = known[one.stage]
        assert one.weights is not None and weights is not None
        assert all(torch.equal(one.weights[name], weights[name]) for name in weights)
    assert not is_cached(run, stages[1], "replay")  # read longer ago than the last one
    again = attribute(run, "test", "replay")
    assert again.table.equals(result.table)


def test_the_twin_that_stands_for_the_recording_is_stored_once(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute(run, "test", "coarse-replay")
    folder = run.path / "results" / "counterfactuals"
    twins = [path for path in folder.iterdir() if ".factual." in path.name]
    assert len(twins) == 3 and len({path.stat().st_ino for path in twins}) == 1
    models = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    assert len(models) == 9 and len({path.stat().st_ino for path in models}) == 7
    taken = next(each.bytes for each in sizes(run) if each.what == MODELS)
    whole = sum(path.stat().st_size for path in folder.iterdir())
    assert whole - taken == 2 * twins[0].stat().st_size
    every = [path.stat() for path in run.path.rglob("*") if path.is_file()]
    on_disk = {stat.st_ino: stat.st_size for stat in every}
    assert sum(each.bytes for each in sizes(run)) == sum(on_disk.values())
    # The last entry that has it keeps it; with room for about two of three, one goes.
    monkeypatch.setenv(LIMIT, f"{(taken - 100) / 1e6:.6f}MB")
    stages = run.stages[:3]
    (folder / f"{twins[0].name.partition('.')[0]}.json").unlink()
    list(counterfactuals(run, CoarseReplay(0.25), stages))
    left = [path for path in folder.iterdir() if ".factual." in path.name]
    assert 1 <= len(left) <= 2 and len({path.stat().st_ino for path in left}) == 1
    for path in left:
        assert MappedTensors(path)


def test_a_limit_that_is_no_amount_is_told(
    run: stagelens.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(StageLensError, match="RESULTS_SIZE is 'much', which is not an amount"):
        attribute(run, "test", "replay")
