"""Adapters whose start depends on the weights beneath: DoRA, PiSSA, OLoRA, and rank-stable ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from stagelens.contracts import Refused, no_progress
from stagelens.derivatives.trajectory import check_differentiable
from stagelens.estimators.held_fixed import held_fixed
from stagelens.estimators.replay import Replay
from stagelens.estimators.subtraction import subtract_stage
from stagelens.recording.adapters import read_adapter
from stagelens.recording.boundary_starts import Starts
from stagelens.replaying.initial_values import drawn_values
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.wording.hand_overs import hand_over_lines
from tests.support.adapted import Layers, adapting, added, layers_task, lora, merged, unloaded
from tests.support.loops import Plan, differing, differing_state, record_plans, run_plans

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")


def adamw(model: nn.Module, _before: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


def history(off: Any = merged, **settings: Any) -> Any:
    """A task, and three stages: full, adapted, and full again."""
    plans = [
        Plan("full", adamw, batches=3),
        adapting("adapted", adamw, **settings),
        Plan("after", adamw, off, batches=3),
    ]
    return layers_task(), plans


INNER = {"target_modules": ["inner", "outer"]}
EXACT: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "dora with dropout": {"use_dora": True, "lora_dropout": 0.5, **INNER},
    "pissa": {"init_lora_weights": "pissa", **INNER},
    "pissa and dora": {"init_lora_weights": "pissa", "use_dora": True, **INNER},
    "olora": {"init_lora_weights": "olora", "target_modules": ["outer"]},
    "rank-stable": {"use_rslora": True},
    "rank-stable pissa": {"init_lora_weights": "pissa", "use_rslora": True, **INNER},
    "orthogonal": {"init_lora_weights": "orthogonal", **INNER},
}


@pytest.mark.parametrize("case", EXACT)
def test_replay_is_bit_for_bit_with_and_without_every_stage(case: str, tmp_path: Path) -> None:
    task, plans = history(**EXACT[case])
    run = record_plans(tmp_path / "run", task, plans)
    assert run.problems == []
    operations = [stage.facts.boundary.adapters for stage in run.stages]
    assert operations == [[], ["added"], ["merged"]]
    assert all(measure_deviation(task, stage).bitwise for stage in run.stages)
    assert [stage.facts.boundary.deviation for stage in run.stages] == [0.0, 0.0, 0.0]
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name
    assert held_fixed(run.stages) == []


def kinds(run: Run) -> set[str]:
    started = run.stages[1].facts.boundary.started
    return {start.kind for starts in started.values() for start in starts}


@pytest.mark.parametrize("off", [merged, unloaded])
def test_weights_cast_before_the_adapter_began_are_replayed(off: Any, tmp_path: Path) -> None:
    """As where they were saved in bfloat16."""
    settings = {"init_lora_weights": "pissa", "use_dora": True, **INNER}
    task, plans = history(off, **settings)

    def loaded(model: nn.Module) -> nn.Module:
        return added(**settings)(model.bfloat16().float())

    plans[1] = replace(plans[1], prepare=loaded)
    run = record_plans(tmp_path / "run", task, plans)
    assert run.problems == []
    assert kinds(run) == {"pissa"}
    casts = run.stages[1].facts.boundary.casts
    assert casts["base_model.model.outer.base_layer.weight"] == ["bfloat16", "float32"]
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


@pytest.mark.parametrize("init", ["pissa", "olora", "eva", True])
def test_starts_in_bfloat16_are_those_of_peft(init: Any) -> None:
    before = Layers().bfloat16()
    weight = before.outer.weight.detach().clone()
    config = lora(target_modules=["outer"], init_lora_weights=init, use_dora=True)
    model = get_peft_model(before, config)
    start = dict(model.state_dict())
    adapter = read_adapter(model)
    assert adapter is not None
    ((name, here),) = adapter.added(adapter.names).items()
    _, (found,), gap = Starts(start).explain(name, [weight], here)
    assert gap == 0.0
    # EVA's are computed from data, and so kept.
    assert found.kind == {True: "plain", "eva": "kept"}.get(init, init)


def far(run: Run, task: Any, plans: Any) -> tuple[float, float]:
    """How far replay and the final model are from the training without the first stage."""
    real = run_plans(task, plans, without="full").model
    found = replay_without(run, run.stages[0]).state.model
    final = run.last.end().model

    def gap(one: Any) -> float:
        return sum(float((one[n] - real[n]).square().sum()) for n in real) ** 0.5

    return gap(found), gap(final)


def test_random_first_values_are_kept_and_said_to_be(tmp_path: Path) -> None:
    """Those of ``pissa_niter_4`` begin with a random matrix, which is not in the run."""
    task, plans = history(init_lora_weights="pissa_niter_4", **INNER)
    run = record_plans(tmp_path / "run", task, plans)
    assert run.problems == []
    assert kinds(run) == {"kept"}
    assert all(measure_deviation(task, stage).bitwise for stage in run.stages)
    adapted = run.stages[1]
    assert differing_state(cross_boundary(run.stages[0].end(), adapted), adapted.start()) == []
    (said,) = held_fixed(run.stages[1:])
    assert "kept as recorded" in said
    assert "kept as recorded" in " ".join(hand_over_lines(adapted.facts, None))
    # What the model computes is that of the weights without the stage, as PiSSA begins.
    crossed = cross_boundary(run.stages[0].start(), adapted).model
    a, b, rest = (
        crossed[f"base_model.model.outer.{part}.weight"]
        for part in ("lora_A.default", "lora_B.default", "base_layer")
    )
    torch.testing.assert_close(rest + 3.0 * b @ a, run.stages[0].start().model["outer.weight"])
    replayed, final = far(run, task, plans)
    assert replayed < 0.5 * final


DRAWN: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "plain": ({}, {"lora_A"}, set()),
    "dora": ({"use_dora": True}, {"lora_A"}, set()),
    "pissa": ({"init_lora_weights": "pissa"}, set(), set()),
    "olora": ({"init_lora_weights": "olora"}, set(), set()),
    "random pissa": ({"init_lora_weights": "pissa_niter_4"}, set(), {"lora_A", "lora_B"}),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, set(), {"lora_A", "lora_B"}),
    "random": ({"init_lora_weights": False}, {"lora_A", "lora_B"}, set()),
}


@pytest.mark.parametrize("case", DRAWN)
def test_another_draw_draws_nothing_that_the_weights_beneath_settle(
    case: str, tmp_path: Path
) -> None:
    settings, drawn, kept = DRAWN[case]
    task, plans = history(target_modules=["outer"], **settings)
    run = record_plans(tmp_path / "run", task, plans)
    found = drawn_values(task, run.stages[1], 1)
    assert {name.split(".")[-3] for name in found.values} == drawn
    assert {name.split(".")[-3] for name in found.kept} == kept


def test_trust_in_kept_first_values_is_estimated(tmp_path: Path) -> None:
    task, plans = history(init_lora_weights="pissa_niter_4", **INNER)
    run = record_plans(tmp_path / "run", task, plans)
    full, adapted, _ = (one.trust for one in Replay().counterfactuals(run, run.stages, no_progress))
    assert full.trust == "estimated"
    assert "kept as recorded" in full.reason
    assert adapted.trust == "exact"


def test_a_machine_with_other_singular_vectors_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, plans = history(init_lora_weights="pissa", **INNER)
    run = record_plans(tmp_path / "run", task, plans)
    svd = torch.linalg.svd

    def negative(*args: Any, **options: Any) -> Any:
        left, values, right = svd(*args, **options)
        return -left, values, -right

    monkeypatch.setattr(torch.linalg, "svd", negative)
    with pytest.raises(Refused, match="computing them on this machine gives others"):
        replay_without(run, run.stages[0])


@pytest.mark.parametrize("case", ["dora", "pissa", "pissa and dora"])
def test_task_vectors_cross_the_start_and_the_merge(case: str, tmp_path: Path) -> None:
    """Where later stages leave the model alone, what is subtracted is all that the stage did."""
    task, plans = history(**EXACT[case])

    def still(model: nn.Module, _before: object) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)

    plans = [plans[0], *(replace(plan, optimizer=still, batches=1) for plan in plans[1:])]
    run = record_plans(tmp_path / "run", task, plans)
    full, *later = run.stages
    without = subtract_stage(run.last.end().model, full, later)
    for name in ("inner.weight", "outer.weight", "table.weight", "head.weight"):
        torch.testing.assert_close(without[name], full.start().model[name], rtol=1e-4, atol=1e-5)


def test_a_dora_stage_is_subtracted_whole(tmp_path: Path) -> None:
    task, plans = history(use_dora=True)
    run = record_plans(tmp_path / "run", task, plans[:2])
    adapted = run.stages[1]
    without = subtract_stage(run.last.end().model, adapted, [])
    assert differing(without, adapted.start().model) == [
        "base_model.model.norm.num_batches_tracked"
    ]


@pytest.mark.parametrize(("case", "words"), [("dora", "DoRA"), ("pissa", "pissa")])
def test_derivatives_refuse_by_name(case: str, words: str, tmp_path: Path) -> None:
    task, plans = history(**EXACT[case])
    run = record_plans(tmp_path / "run", task, plans)
    with pytest.raises(Refused, match=words):
        check_differentiable(run.stages)
