"""What somebody else's training loop gives its model, and what it does with the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stagelens.contracts import RecordingError

from .hooks import PassiveHook


@dataclass(frozen=True)
class TrainingPass:
    """One forward pass with its backward.

    Attributes:
        inputs: The keyword arguments that the model was called with.
        loss: The model's own, ().
        divisor: What it was divided by before backward; read off the gradient that it received.
    """

    inputs: dict[str, Any]
    loss: Tensor
    divisor: float


class TrainingPasses:
    """Watches a model that computes its loss itself, as those of ``transformers`` do.

    Args:
        model: Called with keyword arguments; returns ``loss`` or a tuple that begins with it.
            Passes without gradients are ignored.
        tell: Called with a problem that shows within a pass.
    """

    def __init__(self, model: nn.Module, tell: Callable[[Exception], None]) -> None:
        self._tell = tell
        self._inputs: dict[str, Any] | None = None
        self._loss: Tensor | None = None
        self._factor = 0.0
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(
                PassiveHook(self._before), with_kwargs=True, prepend=True
            ),
            model.register_forward_hook(PassiveHook(self._after)),
        ]

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> TrainingPass:
        """The pass since the last time this was called.

        Raises:
            RecordingError: There was none, or another loss than the model's was used.
        """
        inputs, loss, factor = self._inputs, self._loss, self._factor
        self._inputs, self._loss, self._factor = None, None, 0.0
        if inputs is None or loss is None:
            raise RecordingError(
                "the model has not been called since the previous micro-batch, so what it was "
                "trained on is not known; let compute_loss call the model itself, once"
            )
        # No gradient reached the model's loss, so another one was backpropagated.
        if not factor or not math.isfinite(factor):
            raise RecordingError(
                "the loss that the Trainer backpropagates is not the model's own: compute_loss "
                "computes another one, which replay does not know; name it, objective=..., a "
                "function loss(model, inputs), or compute it in the model's forward, as its loss"
            )
        return TrainingPass(inputs, loss, divisor_of(factor))

    def drop(self) -> Tensor | float:
        """The loss of the pass that :meth:`take` would give, NaN if it is not known."""
        loss = self._loss
        self._inputs, self._loss, self._factor = None, None, 0.0
        return math.nan if loss is None else loss

    def _before(self, _model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        try:
            self._check_call(args)
        # Whatever it is, it must not reach the training loop.
        except Exception as error:
            self._tell(error)
        self._inputs = dict(kwargs)

    def _check_call(self, args: tuple[Any, ...]) -> None:
        if args:
            raise RecordingError(
                "the model was called with positional arguments, which have no name in a batch; "
                "let compute_loss call it by keywords, model(**inputs)"
            )
        if self._inputs is not None:
            raise RecordingError(
                "the model was called twice with gradients for one micro-batch; let compute_loss "
                "call it once, and run other passes under torch.no_grad()"
            )

    def _after(self, _model: nn.Module, _args: Any, outputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        try:
            self._see_loss(outputs)
        except Exception as error:
            self._tell(error)

    def _see_loss(self, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        # Models called with return_dict=False give a tuple that begins with the loss.
        if isinstance(outputs, tuple | list) and outputs:
            loss = outputs[0]
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            given = ", ".join(self._inputs or ())
            raise RecordingError(
                f"the model gave no loss (it was called with {given}), so the Trainer computes "
                "one by a compute_loss of its own, which replay does not know; name it, "
                "objective=..., a function loss(model, inputs), or let the model compute the loss, "
                "from the labels that it is given"
            )
        self._loss = loss.detach().clone()  # it may still be changed in place
        loss.register_hook(self._receive)

    def _receive(self, gradient: Tensor) -> None:
        try:
            self._factor += float(gradient)
        except Exception as error:
            self._tell(error)


def divisor_of(factor: float) -> float:
    """What a loss was divided by, from its gradient: without the rounding of a 1 / n in float32."""
    # float32 holds 1 / n to a relative 6e-8; 1e-6 leaves room for products of such factors.
    divisor = 1 / factor
    whole = round(divisor)
    return float(whole) if abs(divisor - whole) <= 1e-6 * abs(divisor) else divisor
