"""What the outputs of checkpoints mean: names of classes, and tokens of the vocabulary.

All states of a run are read as the final model's. Where an earlier checkpoint says that its outputs
mean something else, its numbers would stand under wrong names.
"""

from __future__ import annotations

import filecmp
import re
from collections.abc import Sequence
from pathlib import Path

from stagelens.contracts import RunError, Task, TaskError
from stagelens.tasks import MultiLabelClassification, TransformersImageClassification
from stagelens.tasks.named_outputs import NamedOutputs
from stagelens.tasks.tokenizer import KeptTokenizer
from stagelens.tasks.transformer_task import TransformerTask

from .architecture import Architecture
from .checkpoints import Checkpoint
from .configs import output_names
from .matching import Matched
from .task import assets_in, find_tokenizer

_UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls outputs that nobody named."""

_SHOWN = 8


def compare_outputs(
    opened: Sequence[Checkpoint], matched: Sequence[Matched], final: Architecture, task: Task
) -> list[str]:
    """Compare what outputs, and tokens, mean in each checkpoint and in the final model.

    Returns:
        Sentences on outputs that have other names in an earlier checkpoint.

    Raises:
        RunError: The same names, or tokens, are in other places there.
    """
    notes = []
    if isinstance(task, NamedOutputs | TransformersImageClassification):
        head = {name for name in final.own_names.values() if not name.startswith(final.body)}
        for each, found in zip(opened, matched, strict=True):
            if head <= found.names.keys():
                several = isinstance(task, MultiLabelClassification)
                notes += _compare_classes(each, opened[-1], task.classes, several)
    if isinstance(task, TransformerTask) and task.assets:
        final_files = find_tokenizer(opened)
        for each in opened[:-1]:
            files = each.tokenizer_files()
            if files and not _same_file(files[0], final_files[:1]):
                notes += _compare_tokens(each, files[0].parent, task)
    return notes


def _compare_classes(
    checkpoint: Checkpoint, last: Checkpoint, classes: Sequence[str], several: bool
) -> list[str]:
    own = _names_of(checkpoint)
    where = f"{checkpoint.name} ({checkpoint.folder / 'config.json'})"
    if len(own) != len(classes):
        raise RunError(
            f"{where} names {len(own)} outputs (id2label), but its head has {len(classes)}; "
            "correct id2label"
        )
    before, after = ([name.strip().casefold() for name in each] for each in (own, classes))
    moved = [n for n, name in enumerate(before) if name in after and after[n] != name]
    if moved:
        raise RunError(
            f"{where} names its outputs {_listed(own)}, but {last.name} {_listed(classes)}: "
            f"{own[moved[0]]!r} is output {moved[0]} there and {after.index(before[moved[0]])} "
            "here, so its head would be read under wrong names. If only the names are wrong, "
            "correct id2label; otherwise reorder the rows of its head (weight and bias) and "
            f"id2label as in {last.name}, and save it again"
        )
    kind = checkpoint.config.get("problem_type")
    if kind == "regression":
        raise RunError(
            f"{where} is a model for regression (problem_type), so its outputs are scores, and "
            f"not the classes of {last.name}; leave it out, or correct problem_type"
        )
    notes = []
    if _contradicted(checkpoint, own):
        notes.append(
            f"{checkpoint.name}: id2label and label2id contradict each other (config.json); as in "
            "transformers, outputs have the names in id2label"
        )
    if kind == "multi_label_classification" and not several:
        notes.append(
            f"{checkpoint.name} gives a text several labels (problem_type in config.json); its "
            "outputs are read as those of a classifier with one class per text"
        )
    if before != after:
        notes.append(
            f"{checkpoint.name} names its outputs {_listed(own)} (id2label in config.json); they "
            f"are read as {_listed(classes)}, as in {last.name}"
        )
    return notes


def _names_of(checkpoint: Checkpoint) -> list[str]:
    """Names of the outputs, from ``label2id`` where ``id2label`` has none."""
    names = output_names(checkpoint)
    numbers = checkpoint.config.get("label2id")
    if all(map(_UNNAMED.fullmatch, names)) and isinstance(numbers, dict):
        known = {number: str(name) for name, number in numbers.items()}
        if sorted(known, key=str) == sorted(range(len(names)), key=str):
            return [known[number] for number in range(len(names))]
    return names


def _contradicted(checkpoint: Checkpoint, names: Sequence[str]) -> bool:
    """Whether ``label2id`` knows the outputs by the same names in other places."""
    numbers = checkpoint.config.get("label2id")
    known = numbers if isinstance(numbers, dict) else {}
    return any(known.get(name, number) != number for number, name in enumerate(names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _same_file(one: Path, others: Sequence[Path]) -> bool:
    """Whether both are one tokenizer.json, which need not be made to be compared."""
    return any(
        one.name == other.name == "tokenizer.json" and filecmp.cmp(one, other, shallow=False)
        for other in others
    )


def _compare_tokens(checkpoint: Checkpoint, folder: Path, task: TransformerTask) -> list[str]:
    try:
        own = KeptTokenizer(assets_in(folder))
    except TaskError as error:
        return [f"{checkpoint.name}: not compared with the final tokenizer, as {error}"]
    if (moved := own.moved_token(task.tokenizer)) is not None:
        token, before, after = moved
        raise RunError(
            f"{checkpoint.name}: the token {token!r} has the id {before:,} in {folder} "
            f"and {after:,} in the final model's tokenizer, so the two vocabularies do not fit "
            "each other; give checkpoints that share their tokens, or the right tokenizer files"
        )
    return []
