"""Trainings in several stages in which LoRA adapters come and go, for tests to record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from stagelens.tasks import ImageClassification
from stagelens.tasks.adapters import plain_adapter, with_adapter
from tests.support.loops import Plan, make_task

Optimizer = Callable[[nn.Module, torch.optim.Optimizer | None], torch.optim.Optimizer]


class Layers(nn.Module):
    """Every kind of layer whose adapters merge bit for bit: a table, (in, out) and (out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2, 2)
        self.inner = Conv1D(8, 40)
        self.norm = nn.BatchNorm1d(8)
        self.outer = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.table((images > 0).long()).flatten(1) * images.flatten(1).repeat(1, 2)
        hidden = self.norm(torch.tanh(self.inner(hidden)))
        answers: Tensor = self.head(torch.tanh(self.outer(hidden)))
        return answers


LAYERS = ["table", "inner", "outer"]


def layers_task(dtype: torch.dtype = torch.float32) -> ImageClassification:
    """A task whose configurations are ``{}`` or ``{"peft": ...}``."""

    def make_model(config: Mapping[str, Any]) -> nn.Module:
        model = Layers().to(dtype)
        return with_adapter(model, config["peft"]) if "peft" in config else model

    return make_task({}, make_model=make_model)


def lora(**settings: Any) -> LoraConfig:
    """A configuration for :class:`Layers`."""
    return LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": LAYERS, **settings})


def added(**settings: Any) -> Callable[[nn.Module], nn.Module]:
    """Put an adapter on."""
    return lambda model: get_peft_model(model, lora(**settings))


def merged(model: nn.Module) -> nn.Module:
    """Merge the adapter, and train everything again."""
    assert isinstance(model, PeftModel)
    return model.merge_and_unload().requires_grad_(True)


def unloaded(model: nn.Module) -> nn.Module:
    """Throw the adapter away, and train everything again."""
    assert isinstance(model, PeftModel)
    return model.unload().requires_grad_(True)


def config_of(**settings: Any) -> dict[str, Any]:
    """The ``build_config`` of a model with the adapter."""
    return {"peft": plain_adapter(lora(**settings).to_dict())}


def adapting(
    name: str,
    optimizer: Optimizer,
    prepare: Callable[[nn.Module], nn.Module] | None = None,
    **settings: Any,
) -> Plan:
    """A stage on a model with an adapter, by default a new one."""
    return Plan(
        name,
        optimizer,
        prepare=prepare or added(**settings),
        recorder={"build_config": config_of(**settings)},
    )
