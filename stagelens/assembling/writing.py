"""What an assembled run says of each stage: its stage.json, and what lies beside its weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from stagelens.contracts import BASE
from stagelens.runs.boundary_facts import Boundary, Merge
from stagelens.runs.checked_files import CheckedFiles
from stagelens.runs.files import write_file, write_json
from stagelens.runs.loss_tables import write_history
from stagelens.runs.merge_words import merge_words
from stagelens.runs.merges import fit
from stagelens.runs.saved_states import load_model
from stagelens.runs.schema import FileRef, StageFile, StageRef, StateRef

from .checkpoints import Checkpoint
from .matching import Matched
from .parents import Descent
from .states import new_names
from .task import find_tokenizer
from .trainer_facts import TrainerFacts

_BESIDE = ("config.json", "generation_config.json")


def folder_of(number: int, checkpoint: Checkpoint) -> str:
    """Where a checkpoint's weights lie in the run folder."""
    return f"checkpoints/{number:02d}-{checkpoint.name.replace(' ', '_')}"


def write_stage(
    root: Path,
    number: int,
    descent: Descent,
    opened: Sequence[Checkpoint],
    matched: Sequence[Matched],
    states: Sequence[StateRef],
    facts: TrainerFacts,
    merge: Merge | None,
) -> StageRef:
    """Write the stage that checkpoint ``number`` ends, from the one that it came from."""
    checkpoint, earlier = opened[number], descent.before(number)
    before, after = matched[earlier], matched[number]
    folder = f"stages/{number - 1:02d}-{checkpoint.name.replace(' ', '_')}"
    history = None
    if facts.history is not None:
        history = write_history(root, f"{folder}/history.parquet", facts.history)
    stage = StageFile(
        name=checkpoint.name,
        description=_description(checkpoint, opened[0] if earlier == 0 else None, merge),
        origin="assembled",
        status="complete",
        optimizer=facts.optimizer,
        boundary=Boundary(
            optimizer="not known",
            new=new_names(before, after),
            grown={
                name: rows
                for name, rows in before.rows.items()
                if name in after.names and after.rows.get(name) != rows
            },
            removed=new_names(after, before),
        ),
        trainable=[],
        keep_batches="none",
        start=states[earlier],
        end=states[number],
        history=history,
        updates=facts.updates,
        beside=_write_beside(root, number, descent, opened) if number in descent.leaves else {},
        merge=merge,
    )
    sha256 = write_json(root / folder / "stage.json", stage)
    return StageRef(
        name=checkpoint.name, folder=folder, sha256=sha256, parents=descent.listed(number)
    )


def merges(root: Path, descent: Descent, states: Sequence[StateRef]) -> dict[int, Merge]:
    """The weights of every merge, by the number of its checkpoint."""
    files, found = CheckedFiles(root), {}
    for number, parents in enumerate(descent.parents):
        if descent.merged(number):
            named = {
                descent.names[each] if each else BASE: load_model(files, states[each])
                for each in parents
            }
            found[number] = fit(load_model(files, states[number]), named)
    return found


def merge_notes(descent: Descent, found: dict[int, Merge]) -> list[str]:
    """What every merge was made of, in sentences."""
    return [merge_words(descent.names[number], merge) for number, merge in found.items()]


def _description(checkpoint: Checkpoint, base: Checkpoint | None, merge: Merge | None) -> str:
    start = "" if base is None else f", from {base.name} ({base.label})"
    made = "" if merge is None else f"merge of {' and '.join(merge.weights)}: "
    return f"{made}checkpoint {checkpoint.label}, {checkpoint.precision}{start}"


def _write_beside(
    root: Path, number: int, descent: Descent, opened: Sequence[Checkpoint]
) -> dict[str, FileRef]:
    """Keep what makes the weights of a leaf a checkpoint that ``from_pretrained`` loads."""
    leaf = opened[number]
    files = [leaf.weights / name for name in _BESIDE if (leaf.weights / name).is_file()]
    along = [opened[each] for each in descent.history(number)]
    files += find_tokenizer(along) or find_tokenizer(opened)
    return {
        file.name: write_file(
            root,
            f"{folder_of(number, leaf)}/{file.name}",
            lambda path, source=file: shutil.copyfile(source, path),  # type: ignore[misc]
        )
        for file in files
    }
