"""Noted steps on their way to disk, and the parts written so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from stagelens.runs.schema import PartRef
from stagelens.runs.step_records import StepRecord
from stagelens.runs.steps import FlatMicroBatch, FlatStep, write_part
from stagelens.runs.steps_digest import StepsDigest

from .update_count import UpdateCount
from .watch import Watch

# What is held is lost when the process is killed, and kept batches take memory.
_FLUSH_SECONDS = 10.0
_FLUSH_BYTES = 64 * 2**20
_HELD_BYTES = 4 * _FLUSH_BYTES
"""Most that is held while the disk is slow; from there on, the training waits for it."""


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
    """Holds noted steps until they are written as a part, by a thread beside the training.

    One part is written at a time. What goes wrong there is raised by the next call.

    Args:
        root: The run folder.
        folder: The stage's folder inside it.
        flush_every: Most steps to hold.
        schedule: Whether what the main process writes of a step is written: hyperparameters, and
            which parameters had no gradient.
        foretell: Told of the first step, at once.

    Attributes:
        parts: Those on disk, in order.
        steps: How many steps they hold.
        stopped: Whether later steps are left out, because some could not be written.
    """

    def __init__(
        self,
        root: Path,
        folder: str,
        flush_every: int,
        schedule: bool = True,
        foretell: Callable[[FlatStep], None] | None = None,
    ) -> None:
        self.parts: list[PartRef] = []
        self.steps = 0
        self.stopped = False
        self._root = root
        self._folder = folder
        self._flush_every = flush_every
        self._schedule = schedule
        self._foretell = foretell
        self._pending: list[FlatStep] = []
        self._losses: list[Sequence[Tensor | float]] = []
        self._bytes = 0
        self._digest = StepsDigest()
        self._flushed = time.monotonic()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

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
        if not self._schedule:
            record = replace(record, groups=[], missing=())
        step = FlatStep(record, [one.only_stored() for one in micro])
        self._pending.append(step)
        if (foretell := self._foretell) is not None:
            self._foretell = None
            foretell(step)
        self._losses.append(losses)
        for one in micro:
            for _, tensor in one.stored:
                self._bytes += tensor.nbytes

    @property
    def due(self) -> bool:
        """Whether as much is held as a killed process may lose."""
        return (
            len(self._pending) >= self._flush_every
            or self._bytes >= _FLUSH_BYTES
            or time.monotonic() - self._flushed >= _FLUSH_SECONDS
        )

    def begin_flush(self) -> None:
        """Begin to write what is held, unless the part before is still being written.

        Raises:
            Exception: An earlier part could not be written; nothing more is then.
        """
        writing = self._thread is not None and self._thread.is_alive()
        if writing and self._bytes < _HELD_BYTES:
            return
        with self._stopping():
            self._wait()
            # Not a daemon: a process that ends writes to the end what it began.
            self._thread = threading.Thread(target=self._write, args=(self._held(),))
            self._thread.start()
            self._let_go()

    def flush(self) -> None:
        """Write what is held; afterwards it survives a killed process.

        Raises:
            Exception: It cannot be written; nothing more is then.
        """
        with self._stopping():
            self._wait()
            self._write(self._held())
            self._wait()
            self._let_go()

    def stop(self) -> None:
        """Hold and write nothing more: a part that is missing must not be followed by others."""
        self.stopped = True
        self._let_go()

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.stop()
            raise

    def _wait(self) -> None:
        """Wait for the part that is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _held(self) -> list[FlatStep]:
        # Losses are read only here: reading each at its step would wait for the accelerator. By the
        # training's own thread, as a stream of its own might be waited for.
        for step, losses in zip(self._pending, self._losses, strict=True):
            step.record.loss = step.record.reported_loss([float(loss) for loss in losses])
        return self._pending

    def _let_go(self) -> None:
        self._pending, self._losses, self._bytes = [], [], 0
        self._flushed = time.monotonic()

    def _write(self, held: list[FlatStep]) -> None:
        # An interruption may come between writing steps and letting go of them.
        steps = [step for step in held if step.record.step >= self.steps]
        if not steps or self.stopped:
            return
        try:
            digest = self._digest.copy()  # a part that is not written does not count
            part = write_part(self._root, self._folder, len(self.parts), steps, digest)
        except Exception as error:
            self._error = error
            return
        self._digest = digest
        self.parts.append(part)
        self.steps += part.steps
