"""Gradients that no optimiser updates, where clipping counts them: cleared as in the loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stagelens
from stagelens.contracts import RecordingWarning
from stagelens.replaying.ensemble import Ensemble
from stagelens.replaying.replay import replay_without
from stagelens.replaying.reproduction import measure_deviation, sample_steps
from stagelens.runs.identity import stage_identity
from tests.support.loops import differing, make_batches, make_task

TASK = make_task({"kind": "mlp", "hidden": [6], "dropout": 0.2})
STEPS, MICRO = 6, 2

Clear = Callable[[nn.Module, torch.optim.Optimizer], None]
CLEARS: dict[str, Clear] = {
    "model": lambda model, _: model.zero_grad(),
    "model to zeros": lambda model, _: model.zero_grad(set_to_none=False),
    "optimizer": lambda _, optimizer: optimizer.zero_grad(),
}


def trained(
    clears: Callable[[int], str],
    path: Path | None = None,
    late: bool = False,
    without: str | None = None,
) -> dict[str, Tensor]:
    """Two stages that train the head alone, and clip over the whole model."""
    torch.manual_seed(0)
    model: Any = TASK.build_model()
    recorder = stagelens.Recorder(path, TASK) if path is not None else None
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(10 + number)
        model.zero_grad()
        optimizer = torch.optim.Adam(model[-1].parameters(), lr=0.05)
        if name == without:
            continue
        stage = None
        if recorder is not None:
            stage = recorder.stage(
                name, model=model, optimizer=optimizer, clip_norm=0.1, accumulation=MICRO
            )
            stage.__enter__()
        for micro, batch in enumerate(make_batches(STEPS * MICRO, number)):
            step, first = micro // MICRO, micro % MICRO == 0
            if first and not late:
                CLEARS[clears(step)](model, optimizer)
            loss = TASK.loss(model, batch)
            if first and late:
                CLEARS[clears(step)](model, optimizer)
            (loss / MICRO).backward()
            if not first:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
            if stage is not None:
                stage.step(batch, loss)
        if stage is not None:
            stage.__exit__(None, None, None)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("clear", CLEARS)
def test_it_is_replayed_bit_for_bit(clear: str, late: bool, tmp_path: Path) -> None:
    end = trained(lambda _: clear, tmp_path / "run", late)
    run = stagelens.open_run(tmp_path / "run")
    assert run.problems == []
    assert [s.facts.zeroed for s in run.stages] == [clear.split()[0]] * 2
    assert all(measure_deviation(TASK, stage).bitwise for stage in run.stages)
    assert differing(run.last.end().model, end) == []
    by_hand = trained(lambda _: clear, late=late, without="one")
    assert differing(replay_without(run, run.stage("one")).state.model, by_hand) == []


def test_the_two_are_different_trainings(tmp_path: Path) -> None:
    ends = [trained(lambda _, clear=clear: clear) for clear in ("model", "optimizer")]  # type: ignore[misc]
    assert differing(*ends) != []
    trained(lambda _: "model", tmp_path / "run")
    stage = stagelens.open_run(tmp_path / "run").last
    assert len(stage.facts.checked) > 2  # each step stands for itself, and is run again
    other = stage.facts.model_copy(update={"zeroed": "optimizer"})
    assert stage_identity(other) != stage_identity(stage.facts)
    assert sample_steps(TASK, stage, STEPS).misfit is None


def test_an_ensemble_clears_them_too(tmp_path: Path) -> None:
    trained(lambda _: "model", tmp_path / "run")
    stage = stagelens.open_run(tmp_path / "run").last
    ensemble = Ensemble(TASK, stage, [stage.start(), stage.start()])
    for record in stage.read_steps():
        ensemble.step(record)
    for one in ensemble.states():
        for name, tensor in stage.end().model.items():
            torch.testing.assert_close(one.model[name], tensor, rtol=1e-4, atol=1e-6)


def test_cleared_at_some_steps_only_is_told(tmp_path: Path) -> None:
    with pytest.warns(RecordingWarning, match="cleared after some updates and not after others"):
        trained(lambda step: "optimizer" if step == 4 else "model", tmp_path / "run")


def test_one_from_before_the_stage_is_told(tmp_path: Path) -> None:
    model: Any = TASK.build_model()
    TASK.loss(model, make_batches(1)[0]).backward()
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=0.05)
    stage = stagelens.Recorder(tmp_path / "run", TASK).stage(
        "one", model=model, optimizer=optimizer, clip_norm=0.1
    )
    with pytest.warns(RecordingWarning, match=r"from before the stage.*model.zero_grad\(\)"), stage:
        batch = make_batches(1)[0]
        optimizer.zero_grad()
        loss = TASK.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        stage.step(batch, loss)
