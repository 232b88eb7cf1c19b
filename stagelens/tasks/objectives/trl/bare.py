"""What the loss of a trainer of TRL needs around it, without a training: a process, a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn

from stagelens.tasks.adapters import is_adapted


class OneProcess:
    """In place of an ``accelerate.Accelerator``: gathers from the only process that there is.

    Args:
        device: That it computes on.
        dtype: What autocast casts to; None for none.
        trained: How many processes trained. Losses read it; what other processes had is not here.
    """

    is_main_process = True
    sync_gradients = True
    parallelism_config = None

    def __init__(self, device: torch.device, dtype: torch.dtype | None, trained: int) -> None:
        self.device, self._dtype = device, dtype
        self.num_processes = trained

    def gather(self, values: Any) -> Any:
        """What all processes have."""
        return values

    def gather_for_metrics(self, values: Any, *_: Any, **__: Any) -> Any:
        """As :meth:`gather`."""
        return values

    def pad_across_processes(self, values: Any, *_: Any, **__: Any) -> Any:
        """Values of the same length in all processes."""
        return values

    def reduce(self, values: Any, *_: Any, **__: Any) -> Any:
        """The sum or mean over all processes."""
        return values

    def unwrap_model(self, model: nn.Module, *_: Any, **__: Any) -> nn.Module:
        """The model itself."""
        return model

    def autocast(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        """Around parts of a model, which are not cast by themselves."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)


@contextmanager
def as_trained(
    models: Sequence[nn.Module],
    add_head: Callable[[Any], None],
    dropout: bool,
    dtype: torch.dtype | None,
) -> Iterator[None]:
    """Models as TRL and accelerate prepare them, until the block is left.

    Nothing stays behind: a model that is copied later has its own forward method.

    Args:
        models: That take part in the loss.
        add_head: Changes the forward method of a model without adapters, as the trainer does.
        dropout: Whether dropout stays on where the model is in training mode.
        dtype: What autocast casts to; None for none.
    """
    with ExitStack() as after:
        for model in models:
            if not dropout:
                after.enter_context(_no_dropout(model))
            for each in {model, base := base_of(model)}:
                after.enter_context(_own_forward(each))
            vars(model).pop("forward", None)  # that of a replay, which only casts
            add_head(base)
            if dtype is not None:
                model.forward = _casting(model.forward, base.device.type, dtype)
        if dtype is not None:
            # Only the model casts; the loss is computed from its outputs in float32.
            device = next(models[0].parameters()).device
            after.enter_context(torch.autocast(device.type, enabled=False))
        yield


def add_fused_head(model: Any, **options: Any) -> None:
    """Add the head that computes log-probabilities without logits; before TRL 1.15 there is none.

    Args:
        model: A causal language model.
        options: Of TRL's ``add_fused_lm_head``.
    """
    from trl.trainer import utils

    if (add := getattr(utils, "add_fused_lm_head", None)) is not None:
        add(model, **options)


def base_of(model: nn.Module) -> Any:
    """A model without the adapters that are around it."""
    return model.get_base_model() if is_adapted(model) else model


@contextmanager
def _no_dropout(model: nn.Module) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """Undo what is done to a model's forward method within the block."""
    before = vars(model).get("forward")
    try:
        yield
    finally:
        if before is None:
            vars(model).pop("forward", None)
        else:
            model.forward = before


def _casting(own: Callable[..., Any], kind: str, dtype: torch.dtype) -> Callable[..., Any]:
    """A forward method that casts, and returns float32, as accelerate prepares it."""

    def casting(*args: Any, **inputs: Any) -> Any:
        with torch.autocast(kind, dtype=dtype):
            return own(*args, **inputs)

    forward: Callable[..., Any] = convert_outputs_to_fp32(casting)
    return forward


def autocast_of(model: nn.Module) -> torch.dtype | None:
    """What passes of a model are cast to, within it or around it; None where they are not."""
    within = getattr(vars(model).get("forward"), "autocast_dtype", None)
    kind = next(model.parameters()).device.type
    if within is not None or not torch.is_autocast_enabled(kind):
        return within
    return torch.get_autocast_dtype(kind)


def scalar(loss: Any) -> Tensor:
    """The loss that ``compute_loss`` returned."""
    found: Tensor = loss[0] if isinstance(loss, tuple) else loss
    return found
