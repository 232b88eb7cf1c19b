"""Parameters that are shared out over processes, as ``fully_shard`` of torch does.

Each process holds a part of every parameter, of its gradient and of the optimiser's state for it,
as a ``DTensor``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_shared_out(tensor: Any) -> bool:
    """Whether this process holds a part of a tensor."""
    # Not imported for models of one process: nothing can be one before it is.
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def own_part(tensor: Any) -> Any:
    """What this process holds of a tensor, in the same memory; anything else as it is."""
    if not is_shared_out(tensor):
        return tensor
    with torch.no_grad():  # with gradients it would be another tensor
        return tensor.to_local()


def shared_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a tensor that all have, shared out as a parameter of its shape is."""
    if not is_shared_out(parameter) or whole.shape != parameter.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    own: Any = parameter
    # Nothing is sent: the values are those that this process reads.
    return distribute_tensor(whole, own.device_mesh, own.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    """Whether any of a module's parameters is shared out over processes, as a rule or now."""
    return any(map(is_shared_out, model.parameters())) or any(True for _ in sharding_modules(model))


def put_back(model: nn.Module) -> None:
    """Let a sharded module's parameters be its parts again.

    After a forward pass without a backward one, as of an evaluation, whole ones stand in for those
    of its outermost group, in the precision of the pass.
    """
    for _, module in sharding_modules(model):
        module.reshard()


def sharding_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The modules that ``fully_shard`` was called with, by name, outermost first."""
    distributed = sys.modules.get("torch.distributed.fsdp")
    if distributed is not None:
        for name, module in model.named_modules():
            if isinstance(module, distributed.FSDPModule):
                yield name, module
