"""The model's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stagelens.contracts import Objective, Task

if TYPE_CHECKING:
    import torch
    from torch import nn


class ModelLoss(Objective):
    """The task's loss, which for models of ``transformers`` is what they compute themselves."""

    name = "model"

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> torch.Tensor:
        return task.loss(model, batch)
