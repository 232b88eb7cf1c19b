"""What each stage's training took, and its share of the whole."""

from __future__ import annotations

from collections.abc import Sequence

from stagelens.contracts import ProgressCallback, StageLensError, no_progress
from stagelens.replaying.operations import operations
from stagelens.runs.run import Run

from .content import Computing


def computing(
    run: Run, base: float | None = None, progress: ProgressCallback = no_progress
) -> list[Computing]:
    """Count the operations of every stage; those that cannot be counted say why.

    Args:
        run: The run.
        base: Operations of the training that the run started from; None if not known.
        progress: Called after each stage.
    """
    counted: list[float | None] = []
    reasons = []
    for number, stage in enumerate(run.stages, 1):
        try:
            counted.append(operations(run.task, stage).total)
            reasons.append("")
        except StageLensError as error:
            counted.append(None)
            reasons.append(str(error))
        progress(number / len(run.stages), f"counting the operations of {stage.name}")
    return [
        Computing(of, _part(of, [base or 0.0, *counted]), _part(of, _until(base, counted, at)), why)
        for at, (of, why) in enumerate(zip(counted, reasons, strict=True))
    ]


def _until(base: float | None, counted: Sequence[float | None], at: int) -> list[float | None]:
    return [base or 0.0, *counted[: at + 1]]


def _part(of: float | None, all_of: Sequence[float | None]) -> float | None:
    """A part of a sum; None where any term is not known, or nothing was computed."""
    known = [value for value in all_of if value is not None]
    if of is None or len(known) < len(all_of) or not sum(known):
        return None
    return of / sum(known)
