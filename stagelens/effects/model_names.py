"""Names of a run's models: ``final``, ``after:STAGE`` and ``without:STAGE``. No torch."""

from __future__ import annotations

from stagelens.contracts import BASE, StageLensError
from stagelens.runs.run import Run

FINAL, AFTER, WITHOUT = "final", "after", "without"


def model_name(kind: str, stage: str = "") -> str:
    """The name of a model, for instance ``without:sft``."""
    return f"{kind}:{stage}" if stage else kind


def parsed(run: Run, name: str) -> tuple[str, str]:
    """Kind and stage of a model's name; of the final model the stage is empty.

    The model after the last stage is the final one.

    Raises:
        StageLensError: It is no such name, or the run has no such stage.
    """
    kind, colon, stage = name.partition(":")
    if (kind == FINAL and not colon) or (kind, stage) == (AFTER, run.last.name):
        return FINAL, ""
    if kind not in (AFTER, WITHOUT) or not stage:
        raise StageLensError(
            f"there is no model {name!r}; give final, after:STAGE or without:STAGE"
        )
    if not (kind == AFTER and stage == BASE):
        run.stage(stage)
    return kind, stage
