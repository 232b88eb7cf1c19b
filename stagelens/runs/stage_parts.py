"""Whether the parts of a stage are whole: without a gap, and as many steps as the stage says."""

from __future__ import annotations

from pathlib import Path

from stagelens.contracts import RunError

from .schema import StageFile


def check_parts(root: Path, facts: StageFile) -> None:
    """Check the parts that a stage's facts name.

    Args:
        root: The run folder, for messages.
        facts: Of the stage.

    Raises:
        RunError: A part is missing; names the step.
    """
    expected = 0
    for part in facts.parts:
        if part.first_step != expected:
            raise RunError(
                f"{part.table.path} of stage {facts.name!r} starts at step {part.first_step}, "
                f"but step {expected} should follow; restore the original folder"
            )
        expected += part.steps
    if facts.status == "complete" and expected != facts.steps:
        raise RunError(
            f"{root}: stage {facts.name!r} says that it has {facts.steps} steps, "
            f"but its parts hold {expected}; restore the original folder"
        )
