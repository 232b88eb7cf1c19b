"""Steps as the training loop noted them, and the state that they start from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from stagelens.runs.batches import unflatten
from stagelens.runs.states import OptimizerState
from stagelens.runs.step_records import MicroBatch, StepRecord
from stagelens.runs.steps import FlatMicroBatch

from .held_gradients import Gradients


@dataclass
class NotedStep:
    """A step as it was noted.

    Attributes:
        record: Its settings.
        micro: Its micro-batches, as they are written.
        losses: Of its micro-batches, as the loop reported them.
        batches: Copies of its batches, where ``micro`` does not hold them.
    """

    record: StepRecord
    micro: Sequence[FlatMicroBatch]
    losses: Sequence[Tensor | float]
    batches: Sequence[Any] | None = None

    def as_replayed(self) -> StepRecord:
        """The step with its batches, as replay will read them."""
        batches = self.batches or [unflatten(one.description, one.tensors) for one in self.micro]
        return replace(
            self.record,
            batches=[
                MicroBatch(batch, one.rng, one.divisor)
                for batch, one in zip(batches, self.micro, strict=True)
            ],
        )


@dataclass
class Stretch:
    """Steps without a gap, and the training state before the first of them.

    Attributes:
        model: Parameters and buffers; None where the second model holds them.
        optimizer: The optimiser's state; None where it was not copied.
        left_out: Parameters whose state was not copied, although others' was.
        planned: Whether it is one step, to be checked as soon as it is noted.
        steps: As far as they were noted.
        gradients: Of each of them, None where they are not known or not held any more.
    """

    model: Mapping[str, Tensor] | None
    optimizer: OptimizerState | None
    planned: bool
    left_out: Collection[str] = ()
    steps: list[NotedStep] = field(default_factory=list)
    gradients: list[Gradients | None] = field(default_factory=list)
