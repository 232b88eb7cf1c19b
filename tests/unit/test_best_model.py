"""A stage whose loop goes back to its best model ends there."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import stagelens
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import Training, differing, make_batches, refused, train

BEST, STEPS = 4, 7


def trained_back_to_best(training: Training, *, keep_at: tuple[int, ...] = (2, BEST)) -> None:
    """Seven steps, of which the loop keeps the best so far, and loads it behind the last."""
    best = {}
    with training.stage("first", checkpoint_every=3, flush_every=2) as stage:
        for number, batch in enumerate(make_batches(STEPS), 1):
            training.step(batch, stage)
            if number in keep_at:
                stage.keep_best("accuracy", number / 10)
                best = copy.deepcopy(training.model.state_dict())
        training.model.load_state_dict(best)
        stage.back_to_best()


def test_the_stage_ends_at_its_best_step_and_replays_to_it(training: Training) -> None:
    trained_back_to_best(training)
    run = training.recorder.run()
    assert run.problems == []
    facts = run.last.facts
    assert (run.last.steps, [c.step for c in facts.checkpoints]) == (BEST, [3, BEST])
    assert facts.best_model is not None
    assert facts.best_model.model_dump() == {"trained": STEPS, "metric": "accuracy", "value": 0.4}
    assert differing(run.last.end().model, training.model.state_dict()) == []
    assert measure_deviation(run.task, run.last).bitwise


def test_what_lies_behind_the_best_step_is_taken_out_of_the_folder(training: Training) -> None:
    trained_back_to_best(training)
    facts = training.recorder.run().last.facts
    folder = (training.path / facts.start.model.path).parent
    named = {Path(file.path).name for file in facts.files()} | {"stage.json"}
    assert {path.name for path in folder.iterdir()} == named


def test_the_next_stage_starts_from_the_best_model(training: Training) -> None:
    trained_back_to_best(training)
    training.optimizer = torch.optim.SGD(training.model.parameters(), lr=0.1)
    with training.stage("second") as stage:
        for batch in make_batches(3, seed=1):
            training.step(batch, stage)
    run = training.recorder.run()
    assert run.stages[1].facts.start.model == run.stages[0].facts.end.model  # type: ignore[union-attr]
    base = Training(training.path.with_name("base"))  # never trained in a first stage
    optimizer = torch.optim.SGD(base.model.parameters(), lr=0.1)
    for record in run.stages[1].read_steps():
        (micro,) = record.batches or ()
        torch.set_rng_state(micro.rng["cpu"])
        train(base.task, base.model, optimizer, [micro.batch])
    without = replay_without(run, run.stages[0]).state
    assert differing(without.model, base.model.state_dict()) == []


def test_a_killed_stage_goes_on_from_its_best_model(training: Training) -> None:
    with pytest.raises(KeyboardInterrupt), training.stage("first") as stage:
        for number, batch in enumerate(make_batches(3), 1):
            training.step(batch, stage)
            if number == 2:
                stage.keep_best("accuracy", 0.5)
        raise KeyboardInterrupt
    training.recorder.close()
    resumed = stagelens.Recorder(training.path, training.task, resume=True)
    assert [(s.name, s.steps) for s in resumed.run().stages] == [("first", 2)]


def test_another_model_than_the_best_is_refused(training: Training) -> None:
    says = "0.weight is not as it was at step 2"
    with refused(says, "load all weights"), training.stage("first") as stage:
        for number, batch in enumerate(make_batches(3), 1):
            training.step(batch, stage)
            if number == 2:
                stage.keep_best("accuracy", 0.5)
        stage.back_to_best()


def test_going_back_to_what_was_not_kept_is_refused(training: Training) -> None:
    with refused("no best model was kept", "stage.keep_best"), training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
        stage.back_to_best()


def test_weights_that_are_not_the_optimisers_cannot_be_kept(training: Training) -> None:
    with refused("was changed outside optimizer.step()"), training.stage("first") as stage:
        training.step(make_batches(1)[0], stage)
        training.model[0].weight.data.mul_(1.01)
        stage.keep_best("accuracy", 0.5)
