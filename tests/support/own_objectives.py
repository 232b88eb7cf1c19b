"""Losses that tests train on, as users write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stagelens import Objective, Task
from stagelens.contracts import REFERENCE


def focal(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Focal loss of images and labels."""
    images, labels = batch
    losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


def summed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A ``compute_loss_func``: the sum over labels, divided by the items of the whole update."""
    loss = nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


class Preferred(Objective):
    """DPO on the classes of an image: the label is preferred to the class after it."""

    name = "preferred"

    def __init__(self, beta: float = 2.0) -> None:
        self.beta = beta

    @property
    def settings(self) -> dict[str, Any]:
        return {"beta": self.beta}

    @property
    def references(self) -> tuple[str, ...]:
        return (REFERENCE,)

    def loss(
        self,
        task: Task | None,
        model: nn.Module,
        batch: Any,
        references: Mapping[str, nn.Module],
    ) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            before = _margins(references[REFERENCE](images), labels)
        margins = _margins(model(images), labels) - before
        return -nn.functional.logsigmoid(self.beta * margins).mean()


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    scores = logits.log_softmax(1)
    rejected = (labels + 1) % logits.shape[1]
    rows = torch.arange(len(labels))
    return scores[rows, labels] - scores[rows, rejected]
