"""How stages of a recording that was interrupted are taken up again."""

from __future__ import annotations

from pathlib import Path

from stagelens.contracts import RecordingError
from stagelens.runs.files import read_json, sha256_of, write_json
from stagelens.runs.run import Stage
from stagelens.runs.schema import Checkpoint, StageFile, StageRef
from stagelens.runs.steps import parts_until, steps_of_all


def sealed(root: Path, reference: StageRef) -> StageRef:
    """A finished stage with its sha256, even if the recording was killed before writing it."""
    if reference.sha256 is not None:
        return reference
    return reference.model_copy(
        update={"sha256": sha256_of(root / reference.folder / "stage.json")}
    )


def reached(stage: Stage) -> Checkpoint | None:
    """The newest checkpoint before which all processes have written their steps."""
    return next((c for c in reversed(stage.facts.checkpoints) if c.step <= stage.steps), None)


def end_at_checkpoint(
    root: Path, reference: StageRef, stage: Stage, checkpoint: Checkpoint
) -> StageRef:
    """Let an interrupted stage end at a checkpoint, if a part of every process ends there."""
    path = root / reference.folder / "stage.json"
    facts = read_json(path, StageFile)
    parts, *others = (parts_until(own, checkpoint.step) for own in stage.facts.parts_of_each)
    parallel = facts.parallel and facts.parallel.model_copy(update={"parts": others})
    steps = steps_of_all([parts, *others])
    if steps != checkpoint.step:
        raise RecordingError(
            f"{path}: the newest checkpoint is at step {checkpoint.step}, but only {steps} steps "
            "before it are on disk; restore the missing parts"
        )
    ended = facts.model_copy(
        update={
            "status": "complete",
            "end": checkpoint.state,
            "end_calls": checkpoint.calls,
            "parts": parts,
            "parallel": parallel,
            "steps": steps,
            "checkpoints": [one for one in facts.checkpoints if one.step <= steps],
        }
    )
    sha256 = write_json(path, ended)
    return reference.model_copy(update={"sha256": sha256})
