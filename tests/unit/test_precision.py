"""Runs whose forward passes cast: recorded as such, replayed alike, and said in their trust."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType

import pytest
import torch

import stagelens
from stagelens.effects.computing import attribute
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.replaying.coarse import CoarseModel
from stagelens.replaying.coarse_plan import coarse_steps
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from tests.support.loops import Training, make_batches, make_task

BF16 = torch.bfloat16


def around_the_call(training: Training) -> None:
    task = training.task
    own = task.loss
    task.loss = lambda model, batch: torch.autocast("cpu", BF16)(own)(model, batch)  # type: ignore[method-assign]


def within_the_call(training: Training) -> None:
    """As accelerate does: hooks on the model itself run outside, and its outputs are float32."""
    forward = torch.autocast("cpu", BF16)(type(training.model).forward)
    training.model.forward = MethodType(lambda *given: forward(*given).float(), training.model)


def record(path: Path, cast: Callable[[Training], None] | None) -> Run:
    training = Training(path, make_task({"kind": "mlp", "hidden": [16], "dropout": 0.2}))
    for number, name in enumerate(("first", "second")):
        if cast is not None:
            cast(training)
        with training.stage(name) as stage:
            for batch in make_batches(6, seed=number):
                training.step(batch, stage)
    images, labels = make_batches(1, seed=9)[0]
    training.recorder.add_set("test", images=images, labels=labels)
    training.recorder.close()
    return stagelens.open_run(path)


@pytest.mark.parametrize("cast", [around_the_call, within_the_call])
def test_mixed_precision_is_recorded_and_replayed_bit_for_bit(
    cast: Callable[[Training], None], tmp_path: Path
) -> None:
    run = record(tmp_path / "run", cast)
    assert [stage.facts.precision for stage in run.stages] == ["bf16", "bf16"]
    assert [measure_deviation(run.task, stage).bitwise for stage in run.stages] == [True, True]
    full = record(tmp_path / "full", None)
    assert [stage.facts.precision for stage in full.stages] == ["float32", "float32"]
    assert full.last.end().model.keys() == run.last.end().model.keys()
    assert any(
        not torch.equal(tensor, full.last.end().model[name])
        for name, tensor in run.last.end().model.items()
    )


def test_trust_names_mixed_precision(tmp_path: Path) -> None:
    run = record(tmp_path / "run", within_the_call)
    trust = attribute(run, "test", "replay").trust["first"]
    assert (trust.trust, trust.deviation) == ("exact", 0.0)
    assert trust.reason == (
        "Replay repeats the recording bit for bit (recorded in bfloat16 mixed precision)."
    )


def test_a_coarse_step_runs_under_the_same_autocast(tmp_path: Path) -> None:
    stage = (run := record(tmp_path / "run", around_the_call)).stages[1]
    coarse = CoarseModel(run.task, stage, stage.start())
    for step in coarse_steps(stage.read_steps(), merge=1, thin=1):
        coarse.step(step)
    for name, tensor in coarse.snapshot().model.items():
        torch.testing.assert_close(tensor, stage.end().model[name], rtol=0, atol=1e-6)


def test_derivatives_of_casting_are_refused(tmp_path: Path) -> None:
    run = record(tmp_path / "run", around_the_call)
    (found, _) = counterfactuals(run, make_estimator("unrolled-jump"), run.stages)
    assert found.weights is None
    assert "stage 'first' was trained in bf16 mixed precision" in found.trust.reason
    assert "use coarse-replay or replay" in found.trust.reason
