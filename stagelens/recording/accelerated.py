"""Loops of plain ``accelerate``: what ``Accelerator.prepare`` wraps around an optimiser."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def unwrapped(optimizer: Optimizers, accumulation: int) -> tuple[Optimizers, int]:
    """The optimisers that make the updates, and after how many micro-batches.

    Args:
        optimizer: As the loop has it, or them; what ``accelerate`` prepared skips the steps of
            micro-batches by itself, and its ``backward`` divides losses by their number.
        accumulation: As declared; 1 for what the optimiser knows.
    """
    # A prepared optimiser can exist only where accelerate has been imported.
    if "accelerate" not in sys.modules:
        return optimizer, accumulation
    from accelerate.optimizer import AcceleratedOptimizer

    given = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    prepared = [each for each in given if isinstance(each, AcceleratedOptimizer)]
    if not prepared:
        return optimizer, accumulation
    own = [each.optimizer if isinstance(each, AcceleratedOptimizer) else each for each in given]
    known = int(prepared[0].gradient_state.num_steps)
    return own if len(own) > 1 else own[0], accumulation if accumulation > 1 else known
