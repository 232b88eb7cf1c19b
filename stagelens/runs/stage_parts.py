"""What is said of a stage when its run is opened, and whether its parts are whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stagelens.contracts import RunError

from .checked_files import CheckedFiles
from .optimizer_kinds import training_weights
from .schema import PartRef, StageFile
from .steps import discover_parts, steps_of_all


def folder_of(folder: str, process: int) -> str:
    """Where a process writes its steps: the main one, 0, in the stage's own folder."""
    return f"{folder}/process-{process:05d}" if process else folder


def unfinished(files: CheckedFiles, folder: str, facts: StageFile) -> tuple[StageFile, str]:
    """What is on disk of a stage whose recording was stopped or is under way.

    Args:
        files: The run's.
        folder: The stage's.
        facts: What its stage.json says.

    Returns:
        The facts with all parts that were found, and a sentence that says how far they reach.

    Raises:
        RunError: A part before a checkpoint is missing, or one is damaged; names the file.
    """
    found = [discover_parts(files, folder_of(folder, n)) for n in range(facts.processes)]
    own = sum(part.steps for part in found[0])
    if facts.checkpoints and facts.checkpoints[-1].step > own:
        raise RunError(
            f"{files.root}/{folder}/steps-{len(found[0]):05d}.parquet is missing "
            f"(there is a checkpoint at step {facts.checkpoints[-1].step}, but only "
            f"{own} steps); restore it from where the run was recorded"
        )
    steps, whose = steps_of_all(found), ""
    if facts.parallel is not None:
        facts = facts.model_copy(
            update={"parallel": facts.parallel.model_copy(update={"parts": found[1:]})}
        )
        counts = [sum(part.steps for part in parts) for parts in found]
        whose = f" of all {facts.processes} processes"
        if max(counts) > steps:
            fewest = counts.index(steps)
            whose += f" (process {fewest} saved the fewest, others up to {max(counts)})"
    said = (
        f"stage {facts.name!r} was not finished: {steps} steps{whose} were saved, later steps and "
        "its end state are missing (recording was stopped, or is still going on)"
    )
    return facts.model_copy(update={"parts": found[0]}), said


def check_parts(root: Path, facts: StageFile) -> None:
    """Check the parts that a stage's facts name.

    Args:
        root: The run folder, for messages.
        facts: Of the stage.

    Raises:
        RunError: A part is missing; names the step.
    """
    for parts in facts.parts_of_each:
        held = _check_order(facts.name, parts)
        if facts.status == "complete" and held != facts.steps:
            raise RunError(
                f"{root}: stage {facts.name!r} says that it has {facts.steps} steps, "
                f"but its parts hold {held}; restore the original folder"
            )
    named = len(facts.parts_of_each)
    if named not in (1, facts.processes):
        raise RunError(
            f"{root}: stage {facts.name!r} was trained by {facts.processes} processes, but its "
            f"stage.json names the parts of {named}; restore the original folder"
        )


def _check_order(stage: str, parts: Sequence[PartRef]) -> int:
    """How many steps parts hold, without a gap.

    Raises:
        RunError: There is one.
    """
    expected = 0
    for part in parts:
        if part.first_step != expected:
            raise RunError(
                f"{part.table.path} of stage {stage!r} starts at step {part.first_step}, "
                f"but step {expected} should follow; restore the original folder"
            )
        expected += part.steps
    return expected


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
