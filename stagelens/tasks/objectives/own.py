"""Losses of the user's own: functions, which no run folder keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal

from stagelens.contracts import Objective, Task, TaskError

if TYPE_CHECKING:
    import torch
    from torch import nn

Called = Literal["loss(model, batch)", "compute_loss_func"]
"""How a function is called: with model and batch, or as the Trainer calls ``compute_loss_func``,
with the model's outputs, the labels and ``num_items_in_batch``."""


class OwnLoss(Objective):
    """A function of the user's, given when the stage is recorded and again when it is replayed.

    Args:
        function: Its name, for people.
        called: How it is called.
        compute: The function itself; None where it was not given.
    """

    name = "own"

    def __init__(
        self,
        function: str,
        called: Called = "loss(model, batch)",
        compute: Callable[..., torch.Tensor] | None = None,
    ) -> None:
        self.function, self.called, self.compute = function, called, compute

    @property
    def settings(self) -> dict[str, Any]:
        return {"function": self.function, "called": self.called}

    @classmethod
    def of(cls, compute: Callable[..., Any], called: Called = "loss(model, batch)") -> OwnLoss:
        """The objective of a function."""
        name = getattr(compute, "__name__", None) or type(compute).__name__
        return cls(name, called, _apart(compute))

    @classmethod
    def of_trainer(cls, trainer: Any) -> Objective | None:
        function = getattr(trainer, "compute_loss_func", None)
        return None if function is None else cls.of(function, "compute_loss_func")

    def loss(
        self, task: Task, model: nn.Module, batch: Any, references: Mapping[str, nn.Module]
    ) -> torch.Tensor:
        if self.compute is None:
            raise TaskError(f"the loss {self.function!r} was not given")
        if self.called == "loss(model, batch)":
            return self.compute(model, batch)
        inputs = dict(batch)
        items, labels = inputs.pop("num_items_in_batch", None), inputs.pop("labels", None)
        return self.compute(model(**inputs), labels, num_items_in_batch=items)


def _apart(compute: Callable[..., Any]) -> Callable[..., Any]:
    """An object that is called, with attributes of its own: some losses count their calls."""
    if isinstance(compute, FunctionType | MethodType):
        return compute
    try:
        return copy.copy(compute)
    except Exception:  # not every object can be copied
        return compute
