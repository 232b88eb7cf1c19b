"""Several LoRA adapters in one model, added in turn, switched, taken off and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.run import Run
from stagelens.tasks.adapters import adapter_config
from tests.support.adapted import added, layers_task, lora, merged
from tests.support.loops import Plan, differing_state, record_plans, refused, run_plans

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")

Prepare = Callable[[Any], nn.Module]


def adamw(model: nn.Module, _before: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


def second(*active: str, **settings: Any) -> Prepare:
    """Another adapter beside the first; of those in use, only it is trained."""

    def prepare(model: Any) -> nn.Module:
        model.add_adapter("second", lora(**settings))
        model.base_model.set_adapter(list(active))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("second" in name)
        return model  # type: ignore[no-any-return]

    return prepare


def back_to_the_first(model: Any) -> nn.Module:
    model.set_adapter("default")
    return model  # type: ignore[no-any-return]


def without_the_first(model: Any) -> nn.Module:
    model.delete_adapter("default")
    return model  # type: ignore[no-any-return]


def reference(model: Any) -> nn.Module:
    """A frozen copy of the adapter, as trainers of preferences keep it."""
    model.add_adapter("ref", lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ref" in name:
                parameter.copy_(model.get_parameter(name.replace(".ref", ".default")))
    return back_to_the_first(model)


def merged_by_name(*names: str) -> Prepare:
    def prepare(model: Any) -> nn.Module:
        return model.merge_and_unload(adapter_names=list(names)).requires_grad_(True)  # type: ignore[no-any-return]

    return prepare


BOTH = [added(), second("default", "second", r=3)]
HISTORIES: dict[str, tuple[list[Prepare], list[list[str]]]] = {
    "one after the other": ([added(), second("second")], [["added"], ["added"]]),
    "both in use": ([added(), second("default", "second", r=3)], [["added"], ["added"]]),
    "back to the first": (
        [added(), second("second"), back_to_the_first],
        [["added"], ["added"], []],
    ),
    "the first taken off": (
        [added(), second("second"), without_the_first],
        [["added"], ["added"], ["removed"]],
    ),
    "the second merged": (
        [added(), second("second"), merged],
        [["added"], ["added"], ["merged"]],
    ),
    "both merged": ([*BOTH, merged], [["added"], ["added"], ["merged"]]),
    "one of both merged": (
        [*BOTH, merged_by_name("default")],
        [["added"], ["added"], ["merged"]],
    ),
    "both merged in another order": (
        [*BOTH, merged_by_name("second", "default")],
        [["added"], ["added"], ["merged"]],
    ),
    "a copy for reference": ([added(), reference], [["added"], ["added"]]),
    "a head of its own for each": (
        [added(modules_to_save=["head"]), second("second", modules_to_save=["head"])],
        [["added"], ["added"]],
    ),
}


def configs(changes: list[Prepare]) -> list[dict[str, Any]]:
    """The ``build_config`` of every stage, read off models of their own."""
    model: Any = layers_task().build_model()
    found = []
    for change in changes:
        model = change(model)
        found.append({"peft": adapter_config(model)} if hasattr(model, "peft_config") else {})
    return found


def record(path: Path, changes: list[Prepare]) -> tuple[Run, list[Plan]]:
    plans = [Plan("full", adamw, batches=3)] + [
        Plan(f"stage{n}", adamw, change, 3, recorder={"build_config": config})
        for n, (change, config) in enumerate(zip(changes, configs(changes), strict=True))
    ]
    return record_plans(path, layers_task(), plans), plans


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
def test_replay_is_bit_for_bit_with_and_without_every_stage(history: str, tmp_path: Path) -> None:
    (changes, operations), task = HISTORIES[history], layers_task()
    run, plans = record(tmp_path / "run", changes)
    assert run.problems == []
    assert [stage.facts.boundary.adapters for stage in run.stages[1:]] == operations
    assert all(measure_deviation(task, stage).bitwise for stage in run.stages)
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
    for stage in run.stages:
        by_hand = run_plans(task, plans, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


def combined(kind: str) -> Prepare:
    def prepare(model: Any) -> nn.Module:
        options = {"density": 0.7} if kind == "ties" else {}
        both = ["default", "second"]
        model.add_weighted_adapter(both, [0.7, 0.4], "mix", combination_type=kind, **options)
        model.set_adapter("mix")
        return model  # type: ignore[no-any-return]

    return prepare


@pytest.mark.parametrize("kind", ["cat", "linear", "svd", "ties"])
def test_an_adapter_that_is_computed_from_others_is_told(kind: str, tmp_path: Path) -> None:
    both = [added(), second("second"), combined(kind)]
    with refused("computed from those before it", "add_weighted_adapter", "adapter_names"):
        record(tmp_path / "run", both)


def test_an_adapter_from_elsewhere_has_its_own_values(tmp_path: Path) -> None:
    def loaded(model: Any) -> nn.Module:
        return second("second", init_lora_weights=False)(model)

    run, _ = record(tmp_path / "run", [added(), loaded])
    assert run.problems == []
    assert run.last.facts.boundary.adapters == ["added"]
