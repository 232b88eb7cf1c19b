"""Models that several processes train together: what wraps them, and what replay cannot have."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from stagelens.contracts import RecordingError
from stagelens.runs.shards import is_sharded, put_back
from stagelens.runs.states import Weights

from .sharding import check_sharded

Kind = Literal["ddp", "fsdp2"]
"""What keeps the models of all processes the same, or holds a part of one model in each."""

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
"""Modules whose passes in training mode do not read the buffers that they move."""


def unwrapped_model(model: nn.Module) -> tuple[nn.Module, Kind | None, bool]:
    """The model under what wraps it.

    Returns:
        The module whose parameters have the names that are recorded, what shares its training
        between processes, and whether it is compiled.
    """
    kind: Kind | None = None
    compiled = False
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            model, compiled = inner, True
        elif isinstance(model, DistributedDataParallel):
            model, kind = model.module, "ddp"
        elif is_sharded(model):
            put_back(model)  # the parameters that the optimiser updates
            return model, "fsdp2", compiled
        else:
            return model, kind, compiled


def statistics_of_norms(model: nn.Module) -> Weights:
    """The buffers of a model's norms, by name."""
    return {
        f"{prefix}.{name}".removeprefix("."): buffer
        for prefix, module in model.named_modules()
        if isinstance(module, NORMS)
        for name, buffer in module._buffers.items()
        if buffer is not None
    }


def check_shared(given: nn.Module, kind: Kind | None, count: int) -> None:
    """Refuse what several processes do that a replay of their micro-batches does not.

    Args:
        given: The model as the loop has it.
        kind: What shares its training.
        count: How many processes there are.

    Raises:
        RecordingError: Names what it is, and what to do.
    """
    if kind is None:
        raise RecordingError(
            f"{count} processes train, but the model is not wrapped in DistributedDataParallel, so "
            "it is not known how their gradients come together; pass the wrapped model, "
            "stage(..., model=ddp). Where each process trains a model of its own, record them "
            "in jobs of their own"
        )
    if kind == "fsdp2":
        check_sharded(unwrapped_model(given)[0], count)
    for module in given.modules():
        if isinstance(module, DistributedDataParallel):
            own = module.process_group.size()
            if own != count:
                raise RecordingError(
                    f"gradients are averaged over {own} of the {count} processes; record a "
                    "training in which all of them are"
                )
            if hooks := module._comm_hooks:
                name = getattr(hooks[0][0], "__name__", type(hooks[0][0]).__name__)
                raise RecordingError(
                    f"the communication hook {name} changes how gradients are averaged, which "
                    "replay does not; train without register_comm_hook"
                )
    for name, module in given.named_modules():
        if isinstance(module, nn.SyncBatchNorm) and module.training:
            raise RecordingError(
                f"SyncBatchNorm {name.removeprefix('module.')!r} normalises over the batches of "
                "all processes at once, and replay has them one after another; train with "
                "BatchNorm, or with a norm over each example"
            )
