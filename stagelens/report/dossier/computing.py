"""What each stage's training took, and its share of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from pydantic import BaseModel

from stagelens.contracts import ProgressCallback, RunError, StageLensError, no_progress
from stagelens.runs.files import read_json, write_json
from stagelens.runs.run import Run

from .content import Computing

_FILE = "results/operations.json"


class Counted(BaseModel):
    """Operations as they were counted, kept with the run's results.

    Attributes:
        run_digest: Of the run then.
        operations: Stage to its operations; None where they could not be counted.
        reasons: Stage to why not.
    """

    run_digest: str
    operations: dict[str, float | None]
    reasons: dict[str, str] = {}


def stored(run: Run) -> Counted | None:
    """What was counted; None where nothing was, or of another recording."""
    try:
        found = read_json(run.files.inside(_FILE), Counted)
    except RunError:  # missing or damaged
        return None
    return found if found.run_digest == run.digest else None


def count(run: Run, progress: ProgressCallback = no_progress) -> Counted:
    """Count the operations of every stage, and keep them; what cannot be counted says why.

    Args:
        run: The run.
        progress: Called after each stage.
    """
    # It brings torch, which pages that read what is stored do without.
    from stagelens.replaying.operations import operations

    found: dict[str, float | None] = {}
    reasons = {}
    for number, stage in enumerate(run.stages, 1):
        try:
            found[stage.name] = operations(run.task, stage).total
        except StageLensError as error:
            found[stage.name], reasons[stage.name] = None, str(error)
        progress(number / len(run.stages), f"counting the operations of {stage.name}")
    counted = Counted(run_digest=run.digest, operations=found, reasons=reasons)
    with suppress(OSError):  # a run that cannot be written to is described all the same
        write_json(run.files.inside(_FILE), counted)
    return counted


def computing(
    stages: Sequence[str], counted: Counted | None, base: float | None = None
) -> list[Computing]:
    """Each stage's operations and their share.

    Args:
        stages: In training order.
        counted: As they were counted; None if they were not.
        base: Operations of the training that the run started from; None if not known.
    """
    known: Mapping[str, float | None] = {} if counted is None else counted.operations
    reasons = {} if counted is None else counted.reasons
    took = [known.get(name) for name in stages]
    made = []
    for at, (name, of) in enumerate(zip(stages, took, strict=True)):
        why = reasons.get(name, "") if name in known else "it was not counted"
        up_to = [base or 0.0, *took[: at + 1]]
        made.append(Computing(of, _part(of, [base or 0.0, *took]), _part(of, up_to), why))
    return made


def _part(of: float | None, all_of: Sequence[float | None]) -> float | None:
    """A part of a sum; None where any term is not known, or nothing was computed."""
    known = [value for value in all_of if value is not None]
    if of is None or len(known) < len(all_of) or not sum(known):
        return None
    return of / sum(known)
