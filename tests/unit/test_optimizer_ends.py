"""An optimiser's state is stored where the next stage carries it on, or where that is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import stagelens
from stagelens.contracts import RecordingError
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.sizes import sizes
from tests.support.loops import (
    TWO_STAGES,
    Plan,
    differing_state,
    make_batches,
    make_task,
    record_plans,
    run_plans,
    sgd,
    train,
)

STRICT = {"on_problem": "raise"}
CARRIED = [Plan("first", sgd, recorder=STRICT), Plan("second", sgd, recorder=STRICT)]


def adamw(model: torch.nn.Module, _before: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_a_carried_state_is_stored_once_and_replayed_bit_for_bit(tmp_path: Path) -> None:
    task = make_task()
    run = record_plans(tmp_path / "run", task, CARRIED)
    assert [p.name for p in run.path.rglob("*.optimizer.safetensors")] == [
        "start.optimizer.safetensors"
    ]
    first, second = run.stages
    assert second.facts.boundary.optimizer == "carried"
    assert not differing_state(first.end(), second.start())  # nothing happened in between
    assert first.facts.end_optimizer is not None
    assert first.facts.end_optimizer.bytes == sum(
        tensor.nbytes for own in first.end().optimizer.values() for tensor in own.values()
    )
    assert all(measure_deviation(task, stage).bitwise for stage in run.stages)
    by_hand = run_plans(task, CARRIED, without="first")
    assert not differing_state(replay_without(run, first).state, by_hand)


def test_a_state_that_replay_does_not_reach_is_told_though_it_is_not_stored(
    tmp_path: Path,
) -> None:
    task = make_task()
    run = record_plans(tmp_path / "run", task, CARRIED)
    known = run.last.facts.end_optimizer
    assert known is not None and run.last.end().optimizer == {}
    name, digest = next(iter(known.digests.items()))
    changed = known.model_copy(update={"digests": {**known.digests, name: digest[::-1]}})
    run.last.facts = run.last.facts.model_copy(update={"end_optimizer": changed})
    assert not measure_deviation(task, run.last).bitwise


def test_a_new_optimiser_after_every_stage_leaves_no_state(tmp_path: Path) -> None:
    plans = [replace(plan, optimizer=adamw) for plan in CARRIED]
    run = record_plans(tmp_path / "run", make_task(), plans)
    assert list(run.path.rglob("*.optimizer.safetensors")) == []
    assert not any(each.what == "optimizer state there" for each in sizes(run))
    assert run.stages[1].facts.boundary.optimizer == "new"
    # What a replay needs in memory is still known.
    held = run.last.facts.end_optimizer
    assert held is not None
    weights = sum(file.bytes for file in run.last.facts.end.files)  # type: ignore[union-attr]
    assert run.last.facts.end_bytes == weights + held.bytes


def test_a_changed_state_is_refused_though_the_one_before_is_not_stored(tmp_path: Path) -> None:
    task = make_task()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    model = task.build_model()
    optimizer = sgd(model, None)
    with recorder.stage("first", model=model, optimizer=optimizer, **STRICT) as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
    next(iter(optimizer.state.values()))["momentum_buffer"].mul_(2)
    with (
        pytest.raises(RecordingError, match="is neither new nor the one from the end of"),
        recorder.stage("second", model=model, optimizer=optimizer, **STRICT),
    ):
        pass


@pytest.mark.parametrize("how", ["kept", "carried", "neither"])
def test_going_on_in_another_process_has_the_state_where_the_run_has_it(
    how: str, tmp_path: Path
) -> None:
    task = make_task()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    model = task.build_model()
    optimizer = sgd(model, None)
    first = recorder.stage(
        "first", model=model, optimizer=optimizer, keep_optimizer=how == "kept", **STRICT
    )
    with first as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
    before = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    if how == "carried":  # by a stage that was interrupted
        with (
            pytest.raises(KeyboardInterrupt),
            recorder.stage("second", model=model, optimizer=optimizer, **STRICT) as stage,
        ):
            train(task, model, optimizer, make_batches(1), stage=stage)
            raise KeyboardInterrupt
    recorder.close()

    again = stagelens.Recorder(tmp_path / "run", task, resume=True)
    model = task.build_model()
    optimizer = sgd(model, None)
    if how == "neither":
        with pytest.raises(RecordingError) as error:
            again.restore(model, optimizer)
        assert "the optimiser's state at the end of stage 'first' is not in the run" in str(
            error.value
        )
        assert "keep_optimizer=True" in str(error.value)
        again.restore(model)
        optimizer = sgd(model, None)
    else:
        again.restore(model, optimizer)
        after = [state["momentum_buffer"] for state in optimizer.state.values()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with again.stage("third", model=model, optimizer=optimizer, **STRICT) as stage:
        train(task, model, optimizer, make_batches(1), stage=stage)
    expected = "new" if how == "neither" else "carried"
    assert again.run().last.facts.boundary.optimizer == expected


def test_a_best_model_goes_without_the_state_beside_it(tmp_path: Path) -> None:
    task = make_task()
    recorder = stagelens.Recorder(tmp_path / "run", task)
    model = task.build_model()
    optimizer = sgd(model, None)
    with recorder.stage("first", model=model, optimizer=optimizer, **STRICT) as stage:
        train(task, model, optimizer, make_batches(2), stage=stage)
        best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        stage.keep_best("loss", 1.0)
        train(task, model, optimizer, make_batches(2, seed=1), stage=stage)
        model.load_state_dict(best)
        stage.back_to_best()
    run = recorder.run()
    assert list(run.path.rglob("*.optimizer.safetensors")) == []
    assert measure_deviation(task, run.last).bitwise


def test_what_was_stored_before_a_stage_that_carries_it_is_stored_once(tmp_path: Path) -> None:
    plans = [replace(plan, recorder={"keep_optimizer": True}) for plan in TWO_STAGES]
    run = record_plans(tmp_path / "run", make_task(), plans)
    first, second = run.stages
    assert first.facts.end is not None
    assert second.facts.start.optimizer == first.facts.end.optimizer
    assert [p.parent.name for p in run.path.rglob("*.optimizer.safetensors")] == [
        "00-first",
        "01-second",
    ]
