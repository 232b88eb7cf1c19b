"""Micro-batches on their way to an update."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stagelens.contracts import RecordingError
from stagelens.runs.batches import flatten
from stagelens.runs.steps import FlatMicroBatch

from .row_batches import RowBatches, Rows


class MicroBatches:
    """Those that were noted since the last update.

    Args:
        accumulation: How many make an update, where they come without a divisor.
        by_rows: Finds which are kept as rows of a data set.

    Attributes:
        flat: Copies of them, without their tensors where they are not kept.
        losses: As the loop reported them.
    """

    def __init__(self, accumulation: int, by_rows: RowBatches) -> None:
        self.flat: list[FlatMicroBatch] = []
        self.losses: list[Tensor | float] = []
        self._accumulation, self._by_rows = accumulation, by_rows
        self._first: list[Any] | None = []

    def add_loss(self, loss: Tensor | float) -> None:
        """Note a loss."""
        # No float() of a tensor: it would make every step wait for the accelerator. A copy: it is
        # read when steps are written, and loops add later losses to it.
        self.losses.append(loss.detach().clone() if isinstance(loss, Tensor) else float(loss))

    def add(
        self,
        batch: Any,
        rng: Mapping[str, Tensor],
        divisor: float | None,
        kept: bool,
        update: int,
        rows: Rows = None,
    ) -> None:
        """Copy a batch.

        Args:
            batch: As the loop noted it.
            rng: Generator states before its forward pass.
            divisor: What its loss was divided by, where that is not the accumulation.
            kept: Whether it is written.
            update: Number, from 1, of the update that it belongs to.
            rows: Its row numbers in the stage's data set, where the loop told them.

        Raises:
            RecordingError: It holds what cannot be written, or there are too many.
        """
        description, tensors = flatten(batch) if kept else (None, [])
        by_rows = self._by_rows.kept(description, tensors, rows) if kept else None
        self.flat.append(FlatMicroBatch(description, tensors, dict(rng), divisor, by_rows))
        # The first step is checked even if its batches are not kept; the loop may change them.
        if self._first is not None and not kept:
            self._first.append(copy.deepcopy(batch))
        if divisor is None and len(self.flat) > self._accumulation:
            raise RecordingError(
                f"{len(self.flat)} batches were noted before update {update}; call "
                "stage.step(batch, loss) after optimizer.step(), and declare gradient "
                "accumulation with stage(..., accumulation=G). Where a GradScaler skips updates, "
                "train without one"
            )

    def take_first(self) -> list[Any] | None:
        """Copies of the first update's batches where they are not kept; None at later updates."""
        first, self._first = self._first, None
        return first

    def only_losses(self) -> Sequence[Tensor | float]:
        """The losses, for an update of which nothing else is noted."""
        self.flat, self._first = [], None
        return self.losses or [math.nan]

    def clear(self) -> None:
        """Begin the next update."""
        self.flat, self.losses = [], []
