"""A step as the training loop noted it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from stagelens.runs.batches import unflatten
from stagelens.runs.step_records import MicroBatch, StepRecord
from stagelens.runs.steps import FlatMicroBatch


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
