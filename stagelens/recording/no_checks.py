"""Stages whose steps are not run again while they are recorded, as memory is short."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from stagelens.compute import memory
from stagelens.replaying.training_loss import TrainingLoss
from stagelens.runs.optimizer_set import AnyOptimizer

from .checked_steps import CheckedSteps
from .stage_start import StageStart


class NoChecks:
    """Stands in for :class:`~.checked_steps.CheckedSteps`, and runs nothing again.

    Args:
        why: Why not.

    Attributes:
        done: Always empty.
        planned: Always False.
        why: As given.
    """

    def __init__(self, why: str) -> None:
        self.done: list[int] = []
        self.planned = False
        self.why = why

    def before_pass(self) -> None:
        """Nothing is held."""

    def before_update(self, *_: Any) -> None:
        """Hold nothing."""

    def noted(self, *_: Any) -> None:
        """Take no step."""

    def check(self, *_: Any) -> None:
        """Check nothing."""

    def close(self) -> None:
        """There is nothing to let go of."""


def checks_for(
    stage: str,
    loss: TrainingLoss,
    model: nn.Module,
    optimizer: AnyOptimizer,
    names: dict[int, str],
    start: StageStart,
    keeps: Callable[[int], bool],
) -> CheckedSteps | NoChecks:
    """The steps of a stage that are run again; none where there is no room for it.

    Args:
        stage: This and the others as :class:`~.checked_steps.CheckedSteps` takes them.
        loss: Of the stage.
        model: The model that is trained.
        optimizer: Its optimiser.
        names: ``id(parameter)`` to name.
        start: The stage's start.
        keeps: Whether the batches of a step are kept.
    """
    if (why := no_room(start)) is None:
        try:
            return CheckedSteps(stage, loss, model, optimizer, names, start, keeps)
        except (RuntimeError, MemoryError) as error:
            if not memory.ran_out(error):
                raise
            why = "memory ran out when that was prepared"
    return NoChecks(why)


def no_room(start: StageStart) -> str | None:
    """Why steps of a stage cannot be run again beside the training; None if there is room.

    A second model, its gradients and its optimiser's state have to fit, with what the training
    itself is going to take for its own, and a copy of one step's gradients.

    Args:
        start: Of the stage.
    """
    model = sum(tensor.nbytes for tensor in start.state.model.values())
    trained = sum(start.state.model[name].nbytes for name in start.trainable)
    there = sum(t.nbytes for own in start.state.optimizer.values() for t in own.values())
    # Most optimisers keep two numbers of each that they train; before the first step, none.
    state = there or 2 * trained
    needed = model + 3 * trained + state + (0 if there else state)
    free = _free(start.device)
    if needed <= free:
        return None
    return (
        f"that takes about {memory.amount(needed)} of memory beside the training, and "
        f"{memory.amount(free)} were free"
    )


def _free(device: torch.device) -> int:
    if device.type != "cuda":
        return memory.available()
    # What torch has reserved, but not given away, is free for it too.
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserved
