"""How many forward passes come before each update: extra ones disturb what replay does."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.contracts import RecordingError
from stagelens.runs.steps import FlatMicroBatch

from .watch import Watch


class ForwardPasses:
    """The passes per batch at a stage's first step, which all others are held to."""

    def __init__(self) -> None:
        self._per_batch = 0
        self._first = 0

    def check(self, watch: Watch, micro: Sequence[FlatMicroBatch], kept: bool) -> None:
        """Count the passes before the update that was just made.

        Args:
            watch: Counted them.
            micro: The micro-batches that were noted.
            kept: Whether they are kept.

        Raises:
            RecordingError: There were more or fewer than at the first step, and it matters.
        """
        forwards, batches = watch.forwards, len(micro)
        if not self._per_batch:
            # A loss may call the model several times per batch, but equally often for each.
            if forwards % batches or not forwards:
                raise RecordingError(
                    f"{forwards} forward passes of the model came before the first update, but "
                    f"{batches} batches were noted; call the model itself (not its parts or its "
                    "forward method), and call stage.step(batch, loss) once after every backward "
                    "pass, following optimizer.step()"
                )
            self._per_batch, self._first = forwards // batches, forwards
        drew = any(one.rng for one in micro)
        # Extra passes shift the random numbers of the recorded ones, and move running statistics.
        # A model with neither is the same after them.
        matters = drew or (kept and watch.passes_move_buffers)
        if matters and forwards != self._per_batch * batches:
            what = "random numbers the update drew" if drew else "passes moved its buffers"
            raise RecordingError(
                f"{forwards} forward passes of the model came before update {watch.updates}, "
                f"where {self._per_batch} per batch came before the first, so which {what} is not "
                "known; run other forward passes in evaluation mode, under torch.no_grad()"
            )

    def explained(self, error: RecordingError, noted: int, batches: int) -> RecordingError:
        """What is wrong with a step, and whether undeclared accumulation may be why.

        Args:
            error: What is wrong.
            noted: How many steps were noted before.
            batches: How many batches the step had.
        """
        if noted or self._first == batches:
            return error
        return RecordingError(
            f"{error}. {self._first} forward passes came before this update, but {batches} "
            "batches were noted: where gradients are accumulated, declare "
            "stage(..., accumulation=G) and call stage.step after every backward pass"
        )
