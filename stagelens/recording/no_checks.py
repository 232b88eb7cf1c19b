"""Stages whose steps are not run again while they are recorded, as there is no place for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from stagelens.compute import memory
from stagelens.replaying.training_loss import TrainingLoss
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.shards import is_sharded

from .check_place import cannot_run, place_for
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


Checks = CheckedSteps | NoChecks


def checks_for(
    stage: str,
    loss: TrainingLoss,
    model: nn.Module,
    optimizer: AnyOptimizer,
    names: dict[int, str],
    start: StageStart,
    keeps: Callable[[int], bool],
    shared: bool,
) -> Checks:
    """The steps of a stage that are run again; none where there is no place for it.

    Args:
        stage: This and the others as :class:`~.checked_steps.CheckedSteps` takes them.
        loss: Of the stage.
        model: The model that is trained.
        optimizer: Its optimiser.
        names: ``id(parameter)`` to name.
        start: The stage's start.
        keeps: Whether the batches of a step are kept.
        shared: Whether other processes train too.
    """
    if is_sharded(model):
        return NoChecks("the model is shared out over processes, and none holds it whole")
    place = place_for(start)
    if isinstance(place, str):
        return NoChecks(place)
    if place.beside and loss.objective.references:
        return NoChecks("its reference models are on the device that it is trained on")
    try:
        return CheckedSteps(stage, loss, model, optimizer, names, start, keeps, place, shared)
    except Exception as error:
        if memory.ran_out(error):
            return NoChecks("memory ran out when that was prepared")
        if place.beside:
            return NoChecks(cannot_run(error))
        raise
