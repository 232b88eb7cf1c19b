"""Weights that are packed into 4 bits, unpacked, or merged into, between two stages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from stagelens.contracts import Refused, no_progress
from stagelens.derivatives.trajectory import check_differentiable
from stagelens.estimators.replay import Replay
from stagelens.estimators.subtraction import subtract_stage
from stagelens.recording.boundary_packing import explain_packing
from stagelens.replaying.replay import cross_boundary, replay_without
from stagelens.replaying.reproduction import measure_deviation
from stagelens.runs.quantised import unpack
from stagelens.runs.run import Run
from stagelens.runs.states import model_tensors
from stagelens.tasks.adapters import adapter_config, is_adapted, with_adapter
from stagelens.tasks.quantising import quantise, quantised_config
from stagelens.wording.hand_overs import hand_over_lines
from tests.support.loops import (
    Plan,
    differing_state,
    make_task,
    record_plans,
    refused,
    run_plans,
)

pytest.importorskip("bitsandbytes")

Prepare = Callable[[Any], nn.Module]
PACKING = {"quant_type": "nf4", "compress_statistics": True, "compute_dtype": None}


class Net(nn.Sequential):
    """Linear layers, of which two are packed."""

    def __init__(self) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(20, 64),
            nn.Tanh(),
            nn.Linear(64, 32),
            nn.Tanh(),
            nn.Linear(32, 3),
        )


def build(config: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = Net()
    model = packed(model) if "quantised" in config else model
    return with_adapter(model, config["peft"]) if "peft" in config else model


def packed(model: nn.Module) -> nn.Module:
    weights = {name: model.get_parameter(f"{name}.weight").detach() for name in ("1", "3")}
    quantise(model, {"layers": list(weights), **PACKING})
    for name, weight in weights.items():
        layer: Any = model.get_submodule(name)
        kind = type(layer.weight)
        layer.weight = kind(weight, requires_grad=False, quant_type="nf4", module=layer).to("cpu")
    return model


def adapted(**settings: Any) -> Prepare:
    def prepare(model: nn.Module) -> nn.Module:
        config = LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["1", "3"], **settings})
        return get_peft_model(model.requires_grad_(False), config)

    return prepare


def packed_and_adapted(**settings: Any) -> Prepare:
    return lambda model: adapted(**settings)(packed(model))


def merged_in_4_bits(model: Any) -> nn.Module:
    return adapted()(model.merge_and_unload())


def with_layers(model: Any, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The model without adapters, with plain layers of these weights."""
    base = model.unload()
    for name, weight in weights.items():
        old = base.get_submodule(name)
        layer = nn.Linear(old.in_features, old.out_features)
        layer.weight.data, layer.bias.data = weight.clone(), old.bias.data
        setattr(base, name, layer)
    base.is_loaded_in_4bit = False
    return base.requires_grad_(True)


def unpacked(merging: bool) -> Prepare:
    def prepare(model: Any) -> nn.Module:
        tensors, weights = model_tensors(model), {}
        for name in ("1", "3"):
            path = f"base_model.model.{name}"
            weights[name] = unpack(f"{path}.base_layer.weight", tensors).detach()
            if merging:
                weights[name] += model.get_submodule(path).get_delta_weight("default").detach()
        return with_layers(model, weights)

    return prepare


def adamw(model: nn.Module, _before: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


TASK = make_task({}, make_model=build)
HISTORIES: dict[str, list[Prepare]] = {
    "packed": [lambda model: model, packed_and_adapted()],
    "packed from bfloat16": [
        lambda model: model,
        lambda model: packed_and_adapted()(model.bfloat16().float()),
    ],
    "packed, with dora": [lambda model: model, packed_and_adapted(use_dora=True)],
    "merged while packed": [lambda model: model, packed_and_adapted(), merged_in_4_bits],
    "unpacked": [packed_and_adapted(), unpacked(merging=False)],
    "unpacked and merged": [lambda model: model, packed_and_adapted(), unpacked(merging=True)],
}


def plans(changes: list[Prepare]) -> list[Plan]:
    """Stages, each with its ``build_config``, read off a model of its own."""
    model: Any = Net()
    found = []
    for number, change in enumerate(changes):
        model = change(copy.deepcopy(model))
        quantised = quantised_config(model)
        config: dict[str, Any] = {} if quantised is None else {"quantised": quantised}
        if is_adapted(model):
            config["peft"] = adapter_config(model)
        # A first stage is built as it is.
        own = change if number else lambda model: model
        found.append(Plan(f"stage{number}", adamw, own, 2, recorder={"build_config": config}))
    return found


@pytest.mark.parametrize("history", HISTORIES)
def test_replay_is_bit_for_bit_with_and_without_every_stage(history: str, tmp_path: Path) -> None:
    stages = plans(HISTORIES[history])
    run = record_plans(tmp_path / "run", TASK, stages)
    assert run.problems == []
    assert all(measure_deviation(TASK, stage).bitwise for stage in run.stages)
    for before, stage in zip(run.stages, run.stages[1:], strict=False):
        assert stage.facts.boundary.deviation == 0.0
        assert differing_state(cross_boundary(before.end(), stage), stage.start()) == []
        assert "4 bits" in " ".join(hand_over_lines(stage.facts, before.facts))
    for stage in run.stages:
        by_hand = run_plans(TASK, stages, without=stage.name)
        assert differing_state(replay_without(run, stage).state, by_hand) == [], stage.name


def merged_elsewhere(model: Any) -> nn.Module:
    """Merged into the weights that were packed, which are not in the run, as people load them."""
    torch.manual_seed(0)
    original = Net()
    weights = {}
    for name in ("1", "3"):
        delta = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        weights[name] = original.get_parameter(f"{name}.weight").detach() + delta.detach()
    return with_layers(model, weights)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Plan], Run]:
    stages = plans([packed_and_adapted(), merged_elsewhere])
    return stages, record_plans(tmp_path_factory.mktemp("runs") / "run", TASK, stages)


def test_weights_that_were_packed_outside_keep_what_packing_rounded(
    elsewhere: tuple[list[Plan], Run],
) -> None:
    stages, run = elsewhere
    assert run.problems == []
    first, second = run.stages
    boundary = second.facts.boundary
    assert boundary.unpacked == ["1.weight", "3.weight"]
    assert 0.01 < boundary.deviation < 0.2
    assert differing_state(cross_boundary(first.end(), second), second.start()) == []
    real = run_plans(TASK, stages, without="stage0").model
    found = replay_without(run, first).state.model
    for name, tensor in real.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(run.last.end().model[name], tensor, rtol=1e-3, atol=1e-3)


def test_the_trust_in_them_is_estimated(elsewhere: tuple[list[Plan], Run]) -> None:
    _, run = elsewhere
    first, second = (one.trust for one in Replay().counterfactuals(run, run.stages, no_progress))
    assert first.trust == "estimated"
    assert "in 4 bits in the run" in first.reason
    assert second.trust == "exact"


def test_other_weights_than_those_that_were_packed_are_told(
    elsewhere: tuple[list[Plan], Run],
) -> None:
    _, run = elsewhere
    first, second = run.stages
    before, start = dict(first.end().model), dict(second.start().model)
    term = second.facts.boundary.merged["1.weight"]
    source = "base_model.model.1.base_layer.weight"
    assert explain_packing("1.weight", source, term, before, start) is not None
    half = start | {"1.weight": start["1.weight"].bfloat16()}
    assert explain_packing("1.weight", source, term, before, half) is not None
    start["1.weight"] = start["1.weight"] + 0.05 * torch.randn_like(start["1.weight"])
    assert explain_packing("1.weight", source, term, before, start) is None


def test_trained_weights_that_were_packed_and_are_loaded_again_are_told(tmp_path: Path) -> None:
    """What packing rounded is larger than what a stage changes."""
    end: list[nn.Module] = []

    def kept(model: nn.Module) -> nn.Module:
        end.append(copy.deepcopy(model))
        return packed_and_adapted()(model)

    def again(model: Any) -> nn.Module:
        names = ("1", "3")
        return with_layers(model, {n: end[-1].get_parameter(f"{n}.weight").detach() for n in names})

    stages = plans([lambda model: model, kept, again])
    with refused("before stage 'stage1', and stage 'stage2' starts with what it was", "dequantize"):
        record_plans(tmp_path / "run", TASK, stages)


def test_changes_of_an_adapter_on_packed_weights_are_subtracted_where_it_was_merged(
    elsewhere: tuple[list[Plan], Run],
) -> None:
    _, run = elsewhere
    first, second = run.stages
    without = subtract_stage(second.start().model, first, [second])
    change = second.start().model["1.weight"] - without["1.weight"]
    end = first.end().model
    a, b = (end[f"base_model.model.1.lora_{f}.default.weight"] for f in "AB")
    torch.testing.assert_close(change, 3.0 * b @ a, rtol=1e-4, atol=1e-6)


def test_what_cannot_cross_packing_refuses_by_name(tmp_path: Path) -> None:
    run = record_plans(tmp_path / "run", TASK, plans(HISTORIES["packed"]))
    first, second = run.stages
    with pytest.raises(Refused, match="cannot be subtracted from packed weights"):
        subtract_stage(run.last.end().model, first, [second])
    with pytest.raises(Refused, match="has no derivative"):
        check_differentiable(run.stages)
