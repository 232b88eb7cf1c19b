"""LoRA: derivatives, the reverse sweep and coarse replay go over boundaries with adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stagelens.analyses.contributions.first_order import contributions
from stagelens.derivatives.forward_mode import Reading, final_tangents
from stagelens.derivatives.trajectory import DerivativeOptions
from stagelens.estimators import coarse_twins
from stagelens.estimators.coarse_replay import CoarseReplay
from stagelens.estimators.coarse_twins import Plan
from stagelens.replaying.replay import replay_without
from stagelens.runs.run import Run
from stagelens.tasks.adapters import with_adapter
from tests.support.adapted import merged, unloaded
from tests.support.central_differences import central_difference
from tests.support.small_runs import Phase, record
from tests.unit.test_adjoint import linearised, some_examples

PEFT: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["qkv", "down", "head"]}
WHOLE_HEAD: dict[str, Any] = {**PEFT, "target_modules": ["qkv"], "modules_to_save": ["head"]}


def adamw(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.02, eps=1e-4, weight_decay=0.1)


def momentum(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def adapted(config: dict[str, Any]) -> Phase:
    def change(model: nn.Module) -> nn.Module:
        return with_adapter(model, config)

    return Phase("lora", adamw, peft=config, change=change)


def again(model: nn.Module) -> nn.Module:
    return with_adapter(merged(model), PEFT)


FULL = Phase("full", adamw)
HISTORIES = {
    "merged": [FULL, adapted(PEFT), Phase("after", momentum, change=merged)],
    "kept": [FULL, adapted(WHOLE_HEAD), Phase("more", None, peft=WHOLE_HEAD)],
    "merged twice": [
        FULL,
        adapted(PEFT),
        Phase("again", momentum, peft=PEFT, change=again),
        Phase("after", adamw, 3, change=merged),
    ],
    "whole head": [FULL, adapted(WHOLE_HEAD), Phase("after", adamw, change=merged)],
    "thrown away": [FULL, adapted(WHOLE_HEAD), Phase("after", momentum, change=unloaded)],
}


@pytest.fixture(scope="module", params=HISTORIES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("adapters") / "run"
    return record(path, "encoder", HISTORIES[request.param])


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["jump", "scale"])
def test_derivatives_equal_central_differences_of_the_replay(run: Run, reading: Reading) -> None:
    tangents = final_tangents(run, run.stages, reading)
    for stage in run.stages:
        truth = central_difference(run, stage, reading)
        own = tangents[stage.name].values
        largest = max(float(tensor.abs().max()) for tensor in truth.values())
        for name, tensor in truth.items():
            found = own.get(name, torch.zeros_like(tensor))
            assert float((found - tensor).abs().max()) < 2e-6 * max(largest, 1e-3), (
                stage.name,
                name,
            )


def test_steps_sum_to_the_linearised_scale_effect_of_their_stage(run: Run) -> None:
    options = DerivativeOptions("float64")
    steps = contributions(run, "margin", some_examples(), options=options).steps
    sums = steps.groupby("stage")["contribution"].sum()
    truth = linearised(run)
    scale = max(map(abs, truth.values()))
    for stage, effect in truth.items():
        assert abs(sums[stage] - effect) < 1e-9 * scale, stage


def test_coarse_replay_without_merging_and_thinning_is_replay(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coarse_twins, "choose_plan", lambda *_: Plan(1, 1))
    for found in CoarseReplay(1.0).counterfactuals(run, run.stages[:2], lambda *_: None):
        truth = replay_without(run, run.stage(found.stage)).state.model
        assert found.weights is not None
        assert found.weights.keys() == truth.keys()
        for name, tensor in truth.items():
            torch.testing.assert_close(found.weights[name], tensor, rtol=1e-9, atol=1e-9)
