"""Noted steps on their way to disk, and the parts written so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from stagelens.runs.schema import PartRef
from stagelens.runs.step_records import StepRecord
from stagelens.runs.steps import FlatMicroBatch, FlatStep, StepsDigest, write_part

from .update_count import UpdateCount
from .watch import Watch

# What is held is lost when the process is killed, and kept batches take memory.
_FLUSH_SECONDS = 10.0
_FLUSH_BYTES = 64 * 2**20


def record_of(watch: Watch | UpdateCount, divisors: Sequence[float | None]) -> StepRecord:
    """The newest step, before its batches and losses are read."""
    return StepRecord(
        step=watch.noted,
        loss=0.0,  # set when it is flushed
        groups=watch.groups,
        missing=watch.missing,
        divisors=tuple(divisors),
        batches=None,
    )


class StepWriter:
    """Holds noted steps until they are written as a part.

    Args:
        root: The run folder.
        folder: The stage's folder inside it.
        flush_every: Most steps to hold.

    Attributes:
        parts: Those on disk, in order.
        steps: How many steps they hold.
        stopped: Whether later steps are left out, because some could not be written.
    """

    def __init__(self, root: Path, folder: str, flush_every: int) -> None:
        self.parts: list[PartRef] = []
        self.steps = 0
        self.stopped = False
        self._root = root
        self._folder = folder
        self._flush_every = flush_every
        self._pending: list[FlatStep] = []
        self._losses: list[Sequence[Tensor | float]] = []
        self._bytes = 0
        self._digest = StepsDigest()
        self._flushed = time.monotonic()

    def note(
        self,
        record: StepRecord,
        micro: Sequence[FlatMicroBatch],
        losses: Sequence[Tensor | float],
    ) -> None:
        """Hold a step.

        Args:
            record: Its loss is not set yet: reading it waits for an accelerator.
            micro: Its micro-batches; none where they are not kept.
            losses: Of all its micro-batches, as the loop reported them.
        """
        if self.stopped:
            return
        self._pending.append(FlatStep(record, list(micro)))
        self._losses.append(losses)
        self._bytes += sum(
            tensor.nbytes for own in micro for tensor in (*own.tensors, *own.rng.values())
        )

    @property
    def due(self) -> bool:
        """Whether as much is held as a killed process may lose."""
        return (
            len(self._pending) >= self._flush_every
            or self._bytes >= _FLUSH_BYTES
            or time.monotonic() - self._flushed >= _FLUSH_SECONDS
        )

    def flush(self) -> None:
        """Write what is held; afterwards it survives a killed process.

        Raises:
            OSError: It cannot be written; nothing more is then.
        """
        try:
            self._flush()
        except Exception:
            self.stop()
            raise

    def stop(self) -> None:
        """Hold and write nothing more: a part that is missing must not be followed by others."""
        self.stopped = True
        self._let_go()

    def _flush(self) -> None:
        # Losses are read only here: reading each at its step would wait for the accelerator.
        for step, losses in zip(self._pending, self._losses, strict=True):
            step.record.loss = step.record.reported_loss([float(loss) for loss in losses])
        if self._pending:
            number = len(self.parts)
            # A copy, as a part that is not written does not count.
            digest = self._digest.copy()
            part = write_part(self._root, self._folder, number, self._pending, digest)
            self._digest = digest
            self.parts.append(part)
            self.steps += part.steps
        self._let_go()

    def _let_go(self) -> None:
        self._pending, self._losses, self._bytes = [], [], 0
        self._flushed = time.monotonic()
