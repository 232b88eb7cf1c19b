"""Passes that fused or compiled code computed: accepted by name, measured, and never exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens import StageRecorderCallback
from stagelens.contracts import RecordingError
from stagelens.estimators.counterfactuals import counterfactuals
from stagelens.estimators.registry import make_estimator
from stagelens.replaying.reproduction import measure_deviation
from tests.support.loops import make_batches, make_task
from tests.support.small_trainings import arguments, made, trainer

TASK = make_task()


def fused(model: nn.Module, batch: Any, coarse: float) -> Tensor:
    """The task's loss by other code: what its logits are rounded to differs."""
    images, labels = batch
    logits = model(images)
    rounded = (logits / coarse).round() * coarse
    # Gradients pass through the rounding, as through a product in another precision.
    return nn.functional.cross_entropy(logits + (rounded - logits).detach(), labels)


def recorded(path: Path, coarse: float, kernels: tuple[str, ...]) -> stagelens.Run:
    torch.manual_seed(0)
    recorder, model = stagelens.Recorder(path, TASK), TASK.build_model()
    for name in ("one", "two"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with recorder.stage(
            name, model=model, optimizer=optimizer, kernels=kernels, on_problem="raise"
        ) as stage:
            for batch in make_batches(6):
                loss = fused(model, batch, coarse)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                stage.step(batch, loss)
    return stagelens.open_run(path, TASK)


def test_a_kernel_is_named_measured_and_never_exact(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", 2e-3, ("fused cross-entropy",))
    assert run.last.facts.kernels == ["fused cross-entropy"]
    deviation = measure_deviation(TASK, run.last)
    assert not deviation.bitwise and 0 < deviation.relative < 0.1 and deviation.misfit is None
    (found,) = counterfactuals(run, make_estimator("replay"), [run.stages[0]])
    assert found.trust.trust == "estimated" and found.repeated is not None
    assert "recorded with fused cross-entropy" in found.trust.reason
    assert found.trust.deviation == pytest.approx(deviation.relative)


def test_without_its_name_the_same_training_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="of the first step"):
        recorded(tmp_path / "run", 2e-3, ())


def test_a_name_does_not_excuse_another_loss(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="of the first step"):
        recorded(tmp_path / "run", 1.0, ("fused cross-entropy",))


def test_a_kernel_that_gives_the_same_bits_is_not_exact_either(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", 2.0**-60, ("fused cross-entropy",))
    (found,) = counterfactuals(run, make_estimator("replay"), [run.stages[0]])
    assert found.trust.trust == "estimated"


def test_a_compiled_model_is_recognised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recorder, model = stagelens.Recorder(tmp_path / "run", TASK), TASK.build_model()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with recorder.stage("one", model=compiled, optimizer=optimizer, on_problem="raise") as stage:
        for batch in make_batches(3):
            loss = TASK.loss(compiled, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            stage.step(batch, loss)
    run = stagelens.open_run(tmp_path / "run", TASK)
    assert run.last.facts.kernels == ["torch.compile"]
    assert run.last.facts.checked == [1, 2, 3]
    assert measure_deviation(TASK, run.last).relative < 1e-3


@pytest.mark.slow
def test_a_trainer_that_compiles_is_recorded(tmp_path: Path) -> None:
    model, tokenizer = made("bert")
    own = StageRecorderCallback(tmp_path / "run", "sft", on_problem="raise")
    args = arguments(tmp_path / "out", torch_compile=True, torch_compile_backend="eager")
    trainer("bert", model, tokenizer, args, callbacks=[own]).train()
    run = stagelens.open_run(tmp_path / "run")
    assert run.last.facts.kernels == ["torch.compile"] and run.last.steps == 6
    assert measure_deviation(run.task, run.last).relative < 1e-2
