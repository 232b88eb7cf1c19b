"""A model sharded over processes by FSDP2, as its parts are saved."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from . import launched


def save_sharded(tensors: dict[str, Tensor], folder: Path, processes: int = 2) -> None:
    """Write a distributed checkpoint as accelerate does, each process its own parts."""
    folder.mkdir(parents=True)
    given = folder.with_suffix(".given.pt")
    torch.save(tensors, given)
    ended = launched.run(processes, _save_own, folder, given)
    assert ended == [0] * processes
    given.unlink()


def _save_own(rank: int, processes: int, port: int, folder: Path, given: Path) -> None:
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    module = fully_shard(_module_of(torch.load(given, weights_only=True)))
    # On a CPU some wrappers leave parameters whole without a word.
    assert all(isinstance(each, DTensor) for each in module.parameters())
    assert any(len(each.to_local()) < len(each) for each in module.parameters())
    optimizer = {"exp_avg": torch.zeros(4)}
    dcp.save({"model": module.state_dict()}, checkpoint_id=folder / "pytorch_model_fsdp_0")
    dcp.save({"optimizer": optimizer}, checkpoint_id=folder / "optimizer_0")
    dist.destroy_process_group()


def _module_of(tensors: dict[str, Tensor]) -> nn.Module:
    root, known = nn.Module(), {}
    for name, tensor in tensors.items():
        *path, own = name.split(".")
        at = root
        for part in path:
            if part not in dict(at.named_children()):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        # Tied weights are one parameter.
        parameter = known.setdefault(tensor.data_ptr(), nn.Parameter(tensor))
        at.register_parameter(own, parameter)
    return root
