"""How stages of a recording that was interrupted are taken up again."""

from __future__ import annotations

from pathlib import Path

from stagelens.contracts import RecordingError
from stagelens.runs.files import read_json, sha256_of, write_json
from stagelens.runs.run import Stage
from stagelens.runs.schema import StageFile, StageRef
from stagelens.runs.steps import parts_until


def sealed(root: Path, reference: StageRef) -> StageRef:
    """A finished stage with its sha256, even if the recording was killed before writing it."""
    if reference.sha256 is not None:
        return reference
    return reference.model_copy(
        update={"sha256": sha256_of(root / reference.folder / "stage.json")}
    )


def end_at_checkpoint(root: Path, reference: StageRef, stage: Stage) -> StageRef:
    """Let an interrupted stage end at its newest checkpoint, if its steps reach that far."""
    checkpoint = stage.facts.checkpoints[-1]
    path = root / reference.folder / "stage.json"
    facts = read_json(path, StageFile)
    parts = parts_until(stage.facts.parts, checkpoint.step)
    steps = sum(part.steps for part in parts)
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
            "steps": steps,
        }
    )
    sha256 = write_json(path, ended)
    return reference.model_copy(update={"sha256": sha256})
