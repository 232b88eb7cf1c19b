"""An optimiser's state at a stage's end: on disk only where a later stage carries it on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .boundary_facts import Boundary
from .gathering import each_whole
from .optimizer_facts import EndOptimizer
from .states import OptimizerState


def end_optimizer(states: Mapping[str, Mapping[str, Tensor]]) -> EndOptimizer:
    """What is kept of an optimiser's state where the state itself is not.

    Of sharded tensors a whole one is gathered at a time, by all processes together.

    Args:
        states: Parameter name to what the optimiser keeps for it.
    """
    digests, size = {}, 0
    for name, own in states.items():
        keys, hasher = sorted(own), hashlib.sha256()
        for key, tensor in zip(keys, each_whole({key: own[key] for key in keys}), strict=True):
            hasher.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
            size += tensor.nbytes
        digests[name] = hasher.hexdigest()[:32]
    return EndOptimizer(digests=digests, bytes=size)


def carried_from(state: OptimizerState, boundary: Boundary) -> OptimizerState:
    """The part of an optimiser's state before a boundary that was carried over it, bit for bit.

    Args:
        state: At the start of the stage after it.
        boundary: Says what was carried, and under which names.
    """
    return {boundary.source(name): state[name] for name in boundary.carried if name in state}
