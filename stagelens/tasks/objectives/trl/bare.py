"""What the loss of a trainer of TRL needs around it, without a training: a process, a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.tasks.adapters import is_adapted


class OneProcess:
    """In place of an ``accelerate.Accelerator``: gathers from the only process that there is."""

    num_processes = 1
    is_main_process = True
    sync_gradients = True
    parallelism_config = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

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
        """Nothing: :func:`as_trained` casts within the model, as accelerate does."""
        return nullcontext()


@contextmanager
def as_trained(
    models: Sequence[nn.Module], heads: Mapping[str, Any] | None, dropout: bool
) -> Iterator[None]:
    """Models as TRL and accelerate prepare them, until the block is left.

    Nothing stays behind: a model that is copied later has its own forward method.

    Args:
        models: That take part in the loss.
        heads: Arguments of TRL's ``add_fused_lm_head``; None where it adds none.
        dropout: Whether dropout stays on where the model is in training mode.
    """
    with ExitStack() as after:
        for model in models:
            if not dropout:
                after.enter_context(_no_dropout(model))
            if heads is not None:
                from trl.trainer.utils import add_fused_lm_head

                base = base_of(model)
                after.enter_context(_own_forward(base))
                add_fused_lm_head(base, **heads)
            after.enter_context(_precision_inside(model))
        kind = next(models[0].parameters()).device.type
        if torch.is_autocast_enabled(kind):
            # Only the model casts; the loss is computed from its outputs in float32.
            after.enter_context(torch.autocast(kind, enabled=False))
        yield


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


@contextmanager
def _precision_inside(model: nn.Module) -> Iterator[None]:
    """Let a model cast within its forward pass, and return float32, as accelerate prepares it."""
    kind = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    from accelerate.utils import convert_outputs_to_fp32

    own, dtype = model.forward, torch.get_autocast_dtype(kind)

    def casting(*args: Any, **inputs: Any) -> Any:
        with torch.autocast(kind, dtype=dtype):
            return own(*args, **inputs)

    with _own_forward(model):
        model.forward = convert_outputs_to_fp32(casting)
        yield


def scalar(loss: Any) -> Tensor:
    """The loss that ``compute_loss`` returned."""
    found: Tensor = loss[0] if isinstance(loss, tuple) else loss
    return found
