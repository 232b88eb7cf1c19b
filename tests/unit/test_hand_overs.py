"""What people do between two stages is found out, checked, and replayed: casts and vocabularies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stagelens.estimators.replay import Replay
from stagelens.estimators.subtraction import subtract_stage
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from tests.support.adapted import adapting, layers_task, merged
from tests.support.loops import (
    Plan,
    differing_state,
    make_batches,
    make_task,
    record_plans,
    refused,
    run_plans,
)

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")

Prepare = Callable[[nn.Module], nn.Module]


def sgd(model: nn.Module, _before: object) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


def half_batches(count: int, seed: int) -> list[Any]:
    return [(images.bfloat16(), labels) for images, labels in make_batches(count, seed)]


def check_against_training(run: Run, task: Any, plans: list[Plan]) -> None:
    """Every boundary is crossed bit for bit, and so is the whole training without each stage."""
    for stage in run.stages:
        assert measure_deviation(task, stage).bitwise
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name
    (found,) = Replay().counterfactuals(run, run.stages[:1], lambda *_: None)
    assert found.trust.trust == "exact"


# Casts

HALF: dict[str, Any] = {"data": half_batches}
CASTS: dict[str, tuple[Prepare, dict[str, Any], list[str]]] = {
    "saved in bfloat16, loaded in float32": (
        lambda model: model.bfloat16().float(),
        {},
        ["bfloat16", "float32"],
    ),
    "saved in float16, loaded in float32": (
        lambda model: model.half().float(),
        {},
        ["float16", "float32"],
    ),
    "loaded in bfloat16": (lambda model: model.bfloat16(), HALF, ["bfloat16"]),
}


@pytest.mark.parametrize("how", CASTS)
def test_a_cast_between_two_stages_is_replayed(how: str, tmp_path: Path) -> None:
    prepare, data, casts = CASTS[how]
    task, plans = make_task(), [Plan("first", sgd), Plan("second", sgd, prepare=prepare, **data)]
    run = record_plans(tmp_path / "run", task, plans)
    found = run.last.facts.boundary.casts
    assert found == dict.fromkeys(run.last.start().model, casts)
    check_against_training(run, task, plans)


def test_a_stage_in_bfloat16_may_be_followed_by_one_in_float32(tmp_path: Path) -> None:
    task = make_task()
    plans = [
        Plan("first", sgd, prepare=lambda model: model.bfloat16(), **HALF),
        Plan("second", sgd, prepare=lambda model: model.float()),
    ]
    run = record_plans(tmp_path / "run", task, plans)
    assert set(map(tuple, run.last.facts.boundary.casts.values())) == {("float32",)}
    check_against_training(run, task, plans)


def norm_kept(model: nn.Module) -> nn.Module:
    """Cast as transformers does it for models that keep some layers in float32."""
    for name, parameter in model.named_parameters():
        if not name.startswith("norm"):
            parameter.data = parameter.data.bfloat16().float()
    return model


def test_a_cast_may_leave_out_some_layers(tmp_path: Path) -> None:
    task = layers_task()
    plans = [Plan("first", sgd), Plan("second", sgd, prepare=norm_kept)]
    run = record_plans(tmp_path / "run", task, plans)
    casts = run.last.facts.boundary.casts
    assert {"table.weight", "head.bias"} <= casts.keys()
    assert not {"norm.weight", "norm.bias", "norm.running_mean"} & casts.keys()
    check_against_training(run, task, plans)


def test_values_that_a_cast_leaves_as_they_are_were_cast_like_the_others(tmp_path: Path) -> None:
    """A bias that is still 0 could be cast or not; without the stage before it may be neither."""
    task = make_task()

    def frozen(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_().requires_grad_(False)
        return model

    plans = [
        Plan("first", sgd, prepare=frozen),
        Plan("second", sgd, prepare=lambda model: model.bfloat16().float()),
    ]
    run = record_plans(tmp_path / "run", task, plans)
    assert run.last.facts.boundary.casts.keys() == run.last.start().model.keys()


MERGES: dict[str, Prepare] = {
    "merged, then saved in bfloat16": lambda model: merged(model).bfloat16().float(),
    "loaded in bfloat16, merged there": lambda model: merged(model.bfloat16()).float(),
    "the adapter in float32 on a base in bfloat16": lambda model: merged(half_base(model)).float(),
}


def half_base(model: nn.Module) -> nn.Module:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "lora_" not in name and tensor.is_floating_point():
            tensor.data = tensor.data.bfloat16()
    return model


@pytest.mark.parametrize("how", MERGES)
def test_an_adapter_that_is_merged_in_bfloat16_is_replayed(how: str, tmp_path: Path) -> None:
    plans = [
        Plan("full", sgd),
        adapting("lora", sgd),
        Plan("after", sgd, prepare=MERGES[how]),
    ]
    run = record_plans(tmp_path / "run", layers_task(), plans)
    assert run.last.facts.boundary.adapters == ["merged"]
    check_against_training(run, layers_task(), plans)


def test_the_task_vector_goes_through_casts(tmp_path: Path) -> None:
    prepare = CASTS["loaded in bfloat16"][0]
    plans = [Plan("first", sgd), Plan("second", sgd, prepare=prepare, **HALF)]
    run = record_plans(tmp_path / "run", make_task(), plans)
    first, final = run.stages[0], run.last.end().model
    without = subtract_stage(final, first, run.stages[1:])
    start, end = first.start().model, first.end().model
    for name, tensor in final.items():
        expected = tensor.float() - (end[name] - start[name])
        assert torch.equal(without[name], expected.bfloat16())


def test_a_change_that_no_cast_explains_is_told(tmp_path: Path) -> None:
    def scaled(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            next(model.parameters()).mul_(1.001)
        return model.bfloat16().float()

    plans = [Plan("first", sgd), Plan("second", sgd, prepare=scaled)]
    with refused("1.weight differs from its value at the end of the previous stage"):
        record_plans(tmp_path / "run", make_task(), plans)
