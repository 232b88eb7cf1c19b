"""LoRA: what cannot be named cannot be replayed, and is refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from torch import nn

import stagelens
from stagelens.contracts import TaskError
from stagelens.recording.adapters import read_adapter
from stagelens.tasks.adapters import adapter_config, plain_adapter, with_adapter
from tests.support.adapted import Layers, adapting, added, layers_task, lora, merged, unloaded
from tests.support.loops import Plan, record_plans, refused

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")


def adamw(model: nn.Module, _before: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


FULL = Plan("full", adamw)


def adapter(**settings: Any) -> PeftModel:
    return get_peft_model(Layers(), lora(**settings))


def of(config: PeftConfig) -> PeftModel:
    return get_peft_model(Layers(), config)


def in_place() -> nn.Module:
    model = adapter()
    model.merge_adapter()
    return model


def disabled() -> nn.Module:
    model = adapter()
    model.base_model.disable_adapter_layers()
    return model


def variant() -> nn.Module:
    """Its configuration says nothing of it: ``init_lora_weights`` chooses it."""
    return adapter(init_lora_weights="mica", target_modules=["outer"])


def attention() -> nn.Module:
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    return get_peft_model(model, LoraConfig(target_modules=["0"]))


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "a bias of its own": (
        lambda: adapter(lora_bias=True, target_modules=["outer"]),
        ("lora_bias",),
    ),
    "tokens": (
        lambda: adapter(trainable_token_indices={"table": [0]}, target_modules=["outer"]),
        ("trainable_token_indices",),
    ),
    "another tuner": (
        lambda: of(IA3Config(target_modules=["outer"], feedforward_modules=[])),
        ("of kind IA3", "use peft.LoraConfig"),
    ),
    "a variant of LoRA": (
        variant,
        ("is a MiCALinearVariant", "variant of LoRA", "use a plain peft.LoraConfig"),
    ),
    "a special layer": (attention, ("0 is a peft.tuners.lora.layer.MultiheadAttention",)),
    "merged in place": (in_place, ("merged in place or disabled", "unmerge_adapter()")),
    "disabled": (disabled, ("merged in place or disabled", "enable_adapter_layers()")),
    "adapters without a PeftModel": (
        lambda: inject_adapter_in_model(lora(), Layers()),
        ("carries an adapter, but the model is no PeftModel", "get_peft_model(model, config)"),
    ),
    "a PeftModel inside of another model": (
        lambda: nn.Sequential(adapter()),
        ("carries an adapter, but the model is no PeftModel",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_cannot_be_replayed_are_refused_by_name(case: str) -> None:
    model, words = REFUSED[case]
    with refused(*words):
        read_adapter(model())


def test_a_model_without_adapters_has_none() -> None:
    assert read_adapter(Layers()) is None


def history(path: Path, *plans: Plan) -> stagelens.Run:
    return record_plans(path / "run", layers_task(), [FULL, *plans])


def test_initial_values_that_rewrite_the_base_unexplained_are_refused(tmp_path: Path) -> None:
    """As LoftQ's do, which leave the rounded weight and not the one less the adapter."""

    def loftq(model: nn.Module) -> nn.Module:
        model = get_peft_model(model, lora(target_modules=["outer"]))
        weight = model.get_parameter("base_model.model.outer.base_layer.weight")
        with torch.no_grad():
            weight.copy_((weight * 8).round() / 8)
        return model

    with refused("adapter was added before stage 'lora'", "outer", "init_lora_weights=True"):
        history(tmp_path, adapting("lora", adamw, loftq, target_modules=["outer"]))


def spoiled(change: Callable[[nn.Module], nn.Module], name: str) -> Callable[[Any], nn.Module]:
    """Afterwards a parameter is changed by hand."""

    def prepare(model: nn.Module) -> nn.Module:
        model = change(model)
        with torch.no_grad():
            model.get_parameter(name).mul_(1.001)
        return model

    return prepare


@pytest.mark.parametrize(("how", "taken_off"), [("merged", merged), ("removed", unloaded)])
@pytest.mark.parametrize("name", ["outer.weight", "head.weight"])
def test_a_weight_changed_by_hand_when_the_adapter_came_off_is_refused(
    tmp_path: Path, how: str, taken_off: Callable[[nn.Module], nn.Module], name: str
) -> None:
    after = Plan("after", adamw, prepare=spoiled(taken_off, name))
    with refused(f"adapter was {how} before stage 'after'", f"but {name} is 1.0e-03"):
        history(tmp_path, adapting("lora", adamw), after)


def test_an_adapter_changed_by_hand_is_refused(tmp_path: Path) -> None:
    factor = "base_model.model.outer.lora_B.default.weight"
    more = adapting("more", adamw, spoiled(lambda model: model, factor))
    with refused(factor, "differs from its value at the end of the previous stage"):
        history(tmp_path, adapting("lora", adamw), more)


def test_a_model_that_the_task_does_not_build_with_its_adapter_is_refused(tmp_path: Path) -> None:
    with refused("not the one that the task builds", "base_layer", "pass build_config"):
        history(tmp_path, Plan("lora", adamw, prepare=added()))


# Configurations


def test_a_configuration_is_plain_json_and_makes_the_same_adapter_again() -> None:
    settings = {"r": 3, "lora_alpha": 5, "use_rslora": True, "rank_pattern": {"inner": 1}}
    model = get_peft_model(Layers(), lora(**settings), adapter_name="own")
    config = json.loads(json.dumps(adapter_config(model)))
    assert config["target_modules"] == ["inner", "outer", "table"]
    assert config["peft_type"] == "LORA"
    again = with_adapter(Layers(), config)
    assert read_adapter(again) == read_adapter(model)
    assert adapter_config(again) == config


def test_what_peft_saves_beside_an_adapter_is_a_configuration(tmp_path: Path) -> None:
    model = adapter()
    model.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert plain_adapter(saved) == adapter_config(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, ("of kind IA3",)),
        ({"megatron_config": {}, "megatron_core": "own_code"}, ("megatron_core='own_code'",)),
        ({"alora_invocation_tokens": [1]}, ("alora_invocation_tokens=[1]",)),
        ({"target_modules": ["nothing"]}, ("does not fit the model",)),
    ],
)
def test_a_configuration_that_is_no_plain_lora_is_refused(
    config: dict[str, Any], words: tuple[str, ...]
) -> None:
    with refused(*words, by=TaskError):
        with_adapter(Layers(), config)
