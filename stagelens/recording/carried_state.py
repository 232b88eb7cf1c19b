"""What becomes of an optimiser's state after a stage: kept, carried on by the next one, or gone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagelens.contracts import RecordingError
from stagelens.runs.boundary_facts import Boundary
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.files import read_json
from stagelens.runs.optimizer_ends import carried_from, end_optimizer
from stagelens.runs.optimizer_facts import EndOptimizer, OptimizerFacts
from stagelens.runs.optimizer_kinds import mode_of
from stagelens.runs.optimizer_set import AnyOptimizer
from stagelens.runs.run import Stage
from stagelens.runs.saved_states import load_state
from stagelens.runs.schema import RunFile, StageFile
from stagelens.runs.states import OptimizerState, TrainingState, optimizer_tensors


def kept_at_end(facts: OptimizerFacts | None, asked: bool) -> bool:
    """Whether a stage's end has its optimiser's state on disk.

    Args:
        facts: The optimiser; None if replay could not make it again.
        asked: Whether that was asked for.
    """
    # What turns trained weights into others is needed to tell how the next stage began.
    return facts is not None and (asked or bool(mode_of(facts)))


def told_apart(
    facts: OptimizerFacts | None, optimizer: AnyOptimizer, names: Mapping[int, str]
) -> EndOptimizer | None:
    """What is known of an optimiser's state at a stage's end without the state itself.

    Args:
        facts: The optimiser; None if replay could not make it again.
        optimizer: As it is now.
        names: ``id(parameter)`` to name.
    """
    return None if facts is None else end_optimizer(optimizer_tensors(optimizer, names))


def without_optimizer(ending: dict[str, Any], root: Path) -> dict[str, Any]:
    """How a stage ends at a state that is on disk already, but for its optimiser's.

    Args:
        ending: New values of the stage's facts.
        root: The run folder.
    """
    state = ending["end"]
    if state.optimizer is None:
        return ending
    end = state.model_copy(update={"optimizer": None})
    checkpoints = [
        each.model_copy(update={"state": end}) if each.state == state else each
        for each in ending["checkpoints"]
    ]
    known = end_optimizer(load_state(CheckedFiles(root), state).optimizer)
    return {**ending, "end": end, "checkpoints": checkpoints, "end_optimizer": known}


def state_to_restore(root: Path, file: RunFile, stage: Stage) -> TrainingState:
    """The training state at a stage's end, with the optimiser's, to go on from.

    Args:
        root: The run folder.
        file: Its run.json.
        stage: The last finished stage.

    Raises:
        RecordingError: The optimiser's state was not kept, and no stage has carried it on.
    """
    state, known = stage.end(), stage.facts.end_optimizer
    if state.optimizer or known is None or not known.digests:
        return state
    # One that was interrupted began with it.
    for reference in reversed([*file.stages, *file.set_aside]):
        facts = read_json(root / reference.folder / "stage.json", StageFile)
        found = _carried(root, facts)
        if end_optimizer(found) == known:
            return TrainingState(state.model, found)
    raise RecordingError(
        f"the optimiser's state at the end of stage {stage.name!r} is not in the run, as no stage "
        "has carried it on yet; go on with a new optimiser, recorder.restore(model), or record "
        f"stage {stage.name!r} with keep_optimizer=True"
    )


def _carried(root: Path, facts: StageFile) -> OptimizerState:
    boundary: Boundary = facts.boundary
    if facts.start.optimizer is None or not boundary.carried:
        return {}
    return carried_from(load_state(CheckedFiles(root), facts.start).optimizer, boundary)
