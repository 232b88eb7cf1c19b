"""Derivatives of stages with an objective: of its loss, and through its reference models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import stagelens
from stagelens.contracts import Refused
from stagelens.derivatives.adjoint import sweep
from stagelens.derivatives.forward_mode import final_tangents
from stagelens.derivatives.trajectory import DerivativeOptions, LinearStage, check_differentiable
from stagelens.replaying.replay import StageReplay, same_arithmetic
from stagelens.runs.objective_facts import ObjectiveFacts, ReferenceFacts
from tests.support.objective_runs import TASK, recorded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> stagelens.Run:
    return recorded(tmp_path_factory.mktemp("objectives") / "run")


def slope(last: LinearStage) -> dict[str, Tensor]:
    """Of the sum of all weights."""
    return {name: torch.ones_like(tensor) for name, tensor in last.layout.values.items()}


def test_derivatives_follow_a_reference_that_is_the_start_of_its_stage(run: stagelens.Run) -> None:
    options = DerivativeOptions("float64")
    tangents = final_tangents(run, run.stages, "scale", options)
    steps = sweep(run, slope, options)
    for stage in run.stages:
        forward = sum(float(each.sum()) for each in tangents[stage.name].values.values())
        backward = sum(one.contribution for one in steps if one.stage == stage.name)
        assert backward == pytest.approx(forward, rel=1e-8)


@pytest.mark.parametrize(
    "reference",
    [ReferenceFacts(kind="end", stage="sft"), ReferenceFacts(sync_every=2)],
    ids=lambda reference: reference.said,
)
def test_derivatives_stop_where_another_reference_moves(
    run: stagelens.Run, reference: ReferenceFacts
) -> None:
    last = copy.copy(run.last)
    objective = ObjectiveFacts(name="preferred", references={"reference": reference})
    last.facts = run.last.facts.model_copy(update={"objective": objective})
    with pytest.raises(Refused, match=f"computed from {reference.said}"):
        check_differentiable([last], moved=run.stages[:-1])


def test_contributions_within_the_last_stage_are_of_its_loss(run: stagelens.Run) -> None:
    last = next(iter(sweep(run, slope, since="dpo")))
    with same_arithmetic(run.last):
        replay = StageReplay(TASK, run.last)
        states = [replay.state() for _ in replay.run()]
    before, end = states[-2].model, states[-1].model
    # Nothing follows the last step, so its contribution is what it changed.
    assert last.contribution == pytest.approx(
        sum(float((end[name] - tensor).sum()) for name, tensor in before.items()), rel=1e-3
    )
