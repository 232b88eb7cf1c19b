"""Trainings whose parameters are shared out over processes by ``fully_shard``, and their like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from . import launched


@contextmanager
def joined(rank: int, count: int, port: int, folder: Path) -> Iterator[None]:
    """A process group of torch's own, as a training script makes it."""
    launched.as_launched(rank, count, port, folder)
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def sharded(model: nn.Module, *inner: str, **options: Any) -> nn.Module:
    """``fully_shard`` of some submodules and of the model, which does shard."""
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    for name in inner:
        fully_shard(model.get_submodule(name), mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    for name, parameter in model.named_parameters():
        # accelerate makes plain data parallelism of it on a CPU, without a word.
        assert isinstance(parameter, DTensor), name
        assert parameter.placements == (Shard(0),), name
    return model
