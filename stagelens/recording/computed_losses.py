"""What a Trainer's ``compute_loss`` is given, and what becomes of the loss that it returns."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from stagelens.contracts import MICRO_BATCHES, RecordingError

from .training_passes import TrainingPass, divisor_of


class ComputedLosses:
    """Watches ``compute_loss`` of a Trainer, whatever loss it computes.

    The method is wrapped for as long as this is open. It is called as before, with the same
    arguments; what fails in here is told, and never reaches the training.

    Args:
        trainer: A ``transformers.Trainer``.
        tell: Called with a problem.
        micro_batches: Whether the loss depends on how many micro-batches there are in a step, which
            its inputs then say where it is not the Trainer's setting.
    """

    def __init__(
        self, trainer: Any, tell: Callable[[Exception], None], micro_batches: bool = False
    ) -> None:
        self._tell, self._micro_batches = tell, micro_batches
        self._inputs: dict[str, Any] | None = None
        self._loss: Tensor | None = None
        self._factor = 0.0
        self._scale = 1
        self._versions: list[tuple[Tensor, int]] = []
        # Weak, so that a Trainer that is given up goes at once, and the stage with it.
        self._trainer = weakref.ref(trainer)
        self._before_us = trainer.__dict__.get("compute_loss")
        self._watching = True
        trainer.compute_loss = watched = _watched(trainer, self)
        self._ours = weakref.ref(watched)

    def close(self) -> None:
        """Put the Trainer's own method back; where it was wrapped since, only stop watching."""
        self._watching = False
        self.drop()
        trainer, ours = self._trainer(), self._ours()
        if trainer is None or ours is None or trainer.__dict__.get("compute_loss") is not ours:
            return
        if self._before_us is None:
            del trainer.compute_loss
        else:
            trainer.compute_loss = self._before_us

    def take(self) -> TrainingPass:
        """The loss since the last time this was called.

        Raises:
            RecordingError: There was none, it was not backpropagated, or its inputs were changed.
        """
        inputs, loss, factor, versions = self._inputs, self._loss, self._factor, self._versions
        self.drop()
        if inputs is None or loss is None:
            raise RecordingError(
                "compute_loss has not been called since the previous micro-batch, so what the "
                "model was trained on is not known; let the Trainer's training_step call it, once"
            )
        if not factor or not math.isfinite(factor):
            raise RecordingError(
                "the loss that compute_loss returned is not what was backpropagated; let the "
                "Trainer's training_step do that"
            )
        if any(tensor._version != version for tensor, version in versions):
            raise RecordingError(
                "compute_loss changes its inputs in place, so what it was given is not known any "
                "more; let it work on copies"
            )
        return TrainingPass(inputs, loss / self._scale, divisor_of(factor * self._scale))

    def drop(self) -> Tensor | float:
        """The loss of what :meth:`take` would give, NaN if it is not known."""
        loss = self._loss
        self._inputs, self._loss, self._factor, self._versions = None, None, 0.0, []
        return math.nan if loss is None else loss

    def before(self, inputs: Any, items: Any) -> None:
        """Called before the loss is computed."""
        if not torch.is_grad_enabled():  # an evaluation
            return
        if self._inputs is not None:
            raise RecordingError(
                "compute_loss was called twice for one micro-batch; let the Trainer's "
                "training_step call it once"
            )
        if not isinstance(inputs, Mapping):
            raise RecordingError(
                f"compute_loss was given {type(inputs).__name__} instead of a dictionary, whose "
                "entries have names; let the data collator make dictionaries"
            )
        # Its own dictionaries and lists: compute_loss may take entries out of them.
        self._inputs = {str(name): _apart(value) for name, value in inputs.items()}
        if items is not None:
            self._inputs["num_items_in_batch"] = items
        trainer = self._trainer()
        self._scale = 1 if trainer is None else _scale_of(trainer, items)
        if self._micro_batches and trainer is not None:
            # The last step of an epoch may have fewer.
            count = trainer.current_gradient_accumulation_steps
            if count != trainer.args.gradient_accumulation_steps:
                self._inputs[MICRO_BATCHES] = torch.tensor(count)
        self._versions = [(t, t._version) for t in self._inputs.values() if isinstance(t, Tensor)]

    def after(self, returned: Any) -> None:
        """Called with what ``compute_loss`` returned."""
        if not torch.is_grad_enabled() or self._inputs is None:
            return
        loss = returned[0] if isinstance(returned, tuple) else returned
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise RecordingError(
                "compute_loss returned no loss with a gradient, which is all that a training is "
                "recorded from; let it return one number"
            )
        self._loss = loss.detach().clone().reshape(())  # it may still be changed in place
        loss.register_hook(self._receive)

    def guarded(self, see: Callable[..., None], *given: Any) -> None:
        """Look, and tell what goes wrong."""
        if not self._watching:
            return
        try:
            see(*given)
        except Exception as error:
            self._inputs = self._loss = None
            self._tell(error)

    def _receive(self, gradient: Tensor) -> None:
        self._factor += float(gradient)


def _scale_of(trainer: Any, items: Any) -> int:
    """What the Trainer's own ``compute_loss`` multiplies a loss by, of several processes.

    Such a loss is divided by the tokens of all of them, and their gradients are averaged.
    """
    from transformers import Trainer

    if items is None or type(trainer).compute_loss is not Trainer.compute_loss:
        return 1
    args = trainer.args
    asks = getattr(trainer, "model_accepts_loss_kwargs", False) or trainer.compute_loss_func
    if args.world_size == 1 or not (args.average_tokens_across_devices and asks):
        return 1
    return int(trainer.accelerator.num_processes // getattr(trainer, "get_tp_size", lambda: 1)())


def _watched(trainer: Any, losses: ComputedLosses) -> Callable[..., Any]:
    own = trainer.compute_loss
    function = getattr(own, "__func__", None)
    held = None if function is not None else own
    reference = weakref.ref(trainer)

    @wraps(own)
    def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # After the inputs, a Trainer passes what else it has by keyword.
        losses.guarded(losses.before, inputs, kwargs.get("num_items_in_batch"))
        if held is not None:
            returned = held(model, inputs, *args, **kwargs)
        else:
            assert function is not None
            returned = function(reference(), model, inputs, *args, **kwargs)
        losses.guarded(losses.after, returned)
        return returned

    compute_loss.__dict__.pop("__wrapped__", None)  # it holds the Trainer
    return compute_loss


def _apart(value: Any) -> Any:
    """The same tensors in containers of their own."""
    if isinstance(value, Mapping):
        return {str(key): _apart(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (
            type(value)(_apart(item) for item in value) if type(value) in (list, tuple) else value
        )
    return value


def trainer_that_calls(callback: Any) -> Any:
    """The ``transformers.Trainer`` whose training called a callback; None if there is none.

    A callback is not given its Trainer, which is among the callers.
    """
    from transformers import Trainer

    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        # Of no other frame: reading a frame's locals keeps them alive as long as it runs.
        if frame.f_code.co_varnames[:1] != ("self",) or "train" not in frame.f_code.co_name:
            continue
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer) and callback in found.callback_handler.callbacks:
            return found
    return None
