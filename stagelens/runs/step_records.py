"""One recorded optimiser step: its settings, and what its forward passes saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Which rows of a recorded batch a smaller one has.

    Attributes:
        size: How many the recorded one has, along the first dimension.
        rows: Their numbers in it, in order.
    """

    size: int
    rows: tuple[int, ...]


@dataclass
class MicroBatch:
    """What one forward and backward pass saw.

    Attributes:
        batch: As :func:`stagelens.runs.batches.unflatten` returns it.
        rng: Device name to the generator's state just before the forward pass; empty where the
            pass drew no random numbers.
        divisor: What its loss was divided by before backward; None if that was the stage's
            accumulation.
        process: Which of the stage's processes saw it; 0 is the main one. Buffers that passes move,
            such as BatchNorm's running statistics, are the main one's: passes of others leave them.
        rows: Their numbers in the stage's data set; None where the batch itself was kept.
        part: Of a recorded micro-batch, where ``batch`` has only some of its rows.
    """

    batch: Any
    rng: dict[str, Tensor] = field(default_factory=dict)
    divisor: float | None = None
    process: int = 0
    rows: tuple[int, ...] | None = None
    part: Part | None = None


@dataclass
class StepRecord:
    """One optimiser step.

    Attributes:
        step: Number within the stage, from 0.
        loss: As the training loop reported it: the mean over the micro-batches or, if these have
            their own divisors, the sum of their divided losses.
        groups: Hyperparameters of each parameter group at this step.
        missing: Parameters of the optimiser that had no gradient.
        divisors: What the loss of each micro-batch, kept or not, was divided by before backward.
            None for all of them if that was the stage's accumulation.
        batches: One entry per micro-batch, or None if the step's batches were not kept. Of several
            processes, those of all, in the order of the processes.
    """

    step: int
    loss: float
    groups: list[dict[str, Any]]
    missing: tuple[str, ...]
    divisors: tuple[float | None, ...]
    batches: list[MicroBatch] | None

    @property
    def micro_batches(self) -> int:
        """How many forward passes were accumulated."""
        return len(self.divisors)

    @property
    def plain(self) -> bool:
        """Whether every micro-batch's loss was divided by the stage's accumulation."""
        return not any(self.divisors)

    def weight(self, accumulation: int) -> float:
        """What the losses of its micro-batches were multiplied by, summed: 1 for their mean."""
        return sum(1 / (divisor or accumulation) for divisor in self.divisors)

    def reported_loss(self, losses: Sequence[float]) -> float:
        """The step's loss from those of its micro-batches; see ``loss``."""
        if self.plain:
            return sum(losses) / len(losses)
        # `if d` is for the type checker: either all divisors are set, or none is.
        return sum(loss / d for loss, d in zip(losses, self.divisors, strict=True) if d)


def of_all(records: Sequence[StepRecord]) -> StepRecord:
    """One step of several processes, whose gradient is the mean of theirs.

    Args:
        records: Of each process, the main one first; that one has the schedule. A loss that was
            divided by d there counts 1 / (n d) in the mean over n processes. Where no divisor is
            said, the accumulation that it stands for is that of all processes together.
    """
    own, count = records[0], len(records)
    if count == 1:
        return own
    divisors = tuple(d and d * count for record in records for d in record.divisors)
    weights = [record.micro_batches if own.plain else 1 for record in records]
    losses = [
        record.loss * weight / sum(weights) for record, weight in zip(records, weights, strict=True)
    ]
    batches = [
        replace(micro, divisor=micro.divisor and micro.divisor * count, process=number)
        for number, record in enumerate(records)
        for micro in record.batches or ()
    ]
    kept = all(record.batches is not None for record in records)
    return replace(own, loss=sum(losses), divisors=divisors, batches=batches if kept else None)
