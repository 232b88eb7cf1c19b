"""What is said of a stage when its run is opened, and whether its parts are whole."""

from __future__ import annotations

from pathlib import Path

from stagelens.contracts import RunError

from .optimizer_kinds import training_weights
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


def told_of(facts: StageFile) -> str | None:
    """A sentence on what people should know of a finished stage, for the run's problems."""
    if facts.problem is not None:
        return (
            f"stage {facts.name!r} was recorded with its boundaries only, because it cannot be "
            f"replayed: {facts.problem}"
        )
    if facts.unchecked is not None:
        return (
            f"no step of stage {facts.name!r} was run again while it was recorded, because "
            f"{facts.unchecked}; a replay of the whole stage tells whether it can be replayed"
        )
    return training_weights(facts)
