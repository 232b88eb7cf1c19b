"""The model of a stage, ready to be trained: whole, or a part of it in each process of the job."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from stagelens.contracts import Task
from stagelens.runs.run import Stage
from stagelens.runs.states import Weights, load_into

from .sharded_model import SharedModel, check_shardable, share_out
from .step import StepRules, prepare

Share = Literal["", "batches", "model"]
"""What the processes of a job share in a replay: nothing, every batch, or the model, of which each
holds a part."""


def stage_model(
    task: Task,
    stage: Stage,
    weights: Weights,
    rules: StepRules,
    device: torch.device,
    share: Share = "",
) -> tuple[nn.Module, SharedModel | None]:
    """The model of a stage, prepared, on a device; and how it is shared out, if it is.

    Raises:
        RunError: The weights belong to another architecture.
        Refused: It is to be shared out, and cannot be.
    """
    if share != "model":
        model = task.build_model(stage.facts.build_config)
        load_into(model, weights)
        model.to(device)
        prepare(model, rules)
        return model, None
    check_shardable(stage)
    model = task.build_empty(stage.facts.build_config)
    prepare(model, rules)
    share_out(model, stage, weights, device)
    return model, SharedModel(stage, model)
