"""Where steps of a stage are run again: where it is trained, or beside it on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stagelens.compute import memory
from stagelens.contracts import optimizer_rule

from .noted_step import NotedStep
from .stage_start import StageStart

SMALL_BYTES = 2**22
"""Larger models are copied after every step, without the optimiser's state: of one step gradients
are enough to hold, and a copy of the weights costs little beside its passes."""
COPIED_BYTES = 2**30
"""Larger models still are copied only before steps that it was planned to check, onto the second
model; and of the optimiser's state one part in four, which is compared."""
_SHARE = 0.05
"""Of what is free on an accelerator: the training's own peak comes later, and nobody knows it."""
_LONGEST = 120.0
"""Seconds that a training waits for the CPU."""
_SIDE = 384
"""Of the matrices whose product shows how fast it is: a good part of a second at the slowest."""


@dataclass(frozen=True)
class CheckPlace:
    """A device that has room for a second model.

    Attributes:
        device: The device.
        beside: Whether the training runs on another one. Only the first step is run again then, as
            far as the device can: rounding is another there, and random numbers are.
    """

    device: torch.device
    beside: bool = False

    def why_not(
        self, model: nn.Module, step: NotedStep, autocast: torch.dtype | None
    ) -> str | None:
        """Why a step cannot be run again there; None if it can.

        Args:
            model: The second model.
            step: The step.
            autocast: What its passes are cast to, if to anything.
        """
        if not self.beside:
            return None
        if any(one.rng for one in step.micro):
            return "it drew random numbers, which the CPU would draw otherwise"
        batches = step.batches or [[one.tensors, one.description] for one in step.micro]
        size = sum(parameter.numel() for parameter in model.parameters())
        dtypes = (parameter.dtype for parameter in model.parameters())
        own = next((d for d in dtypes if d.is_floating_point and d.itemsize > 1), torch.float32)
        work = 6 * size * _numbers_in(batches)  # forward and backward
        if work > _LONGEST * _speed(autocast or own):
            return "that would take long on the CPU"
        return None


def cannot_run(error: Exception) -> str:
    """Why the CPU runs no step again: what the step needs may be on the training's device only."""
    return f"the CPU cannot run it ({type(error).__name__}: {error})"


def place_for(start: StageStart) -> CheckPlace | str:
    """Where there is room to run steps of a stage again beside the training, or why nowhere.

    A second model, its gradients and its optimiser's state have to fit, with what the training
    itself is going to take for its own, and a copy of one step's gradients. An accelerator's memory
    belongs to the training: there, little of it may be taken.

    Args:
        start: Of the stage.
    """
    model = sum(tensor.nbytes for tensor in start.state.model.values())
    trained = sum(start.state.model[name].nbytes for name in start.trainable)
    there = sum(t.nbytes for own in start.state.optimizer.values() for t in own.values())
    # Most optimisers keep two numbers of each that they train; before the first step, none.
    state = there or 2 * trained
    needed = model + 3 * trained + state + (0 if there else state)
    cpu = start.device.type == "cpu"
    if not cpu and needed <= _SHARE * _free(start.device):
        return CheckPlace(start.device)
    if model > SMALL_BYTES and _by_tensor(start):
        # A second model, gradients of both, and updates part by part; of a smaller model two
        # copies besides, and one of all that the optimiser keeps.
        copies = 2 * model + state if model <= COPIED_BYTES else state // 4
        needed = model + 2 * trained + copies + state // 16
    elif not cpu:  # on the CPU there are copies besides, to compare with
        needed = 2 * (model + trained + state)
    free = memory.available()
    if needed <= free:
        return CheckPlace(torch.device("cpu"), beside=not cpu)
    return (
        f"that takes about {memory.amount(needed)} of memory beside the training, and "
        f"{memory.amount(free)} were free"
    )


def _by_tensor(start: StageStart) -> bool:
    each = start.optimizer.each() if start.optimizer is not None else []
    rules = [optimizer_rule(member.name) for member in each]
    return all(rule is not None and rule.formula for rule in rules) and bool(rules)


def _speed(dtype: torch.dtype) -> float:
    """Multiplications and additions in a second; many CPUs are slow with half precision."""
    matrix = torch.zeros(_SIDE, _SIDE, dtype=dtype)
    matrix @ matrix  # the first product takes longer
    began = time.perf_counter()
    matrix @ matrix
    return 2 * _SIDE**3 / (time.perf_counter() - began)


def _numbers_in(value: Any) -> int:
    """Of a text, as many as it has letters: a model may take it apart itself."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        value = [*value.values()]
    return sum(map(_numbers_in, value)) if isinstance(value, list | tuple) else 0


def _free(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    # What torch has reserved, but not given away, is free for it too.
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved
