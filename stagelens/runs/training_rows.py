"""The training examples of a stage: what each is called, and at which steps it was seen.

They are read from the recorded batches. An example that several steps used is one row: the same
input with the same label. Its id is where it was first seen, ``12-7`` for place 7 of step 12, both
counted from 0, places over the micro-batches of a step. Where the task cannot show its training
data (see :meth:`Task.examples`), an example is known by its tensors; a text that is padded
otherwise in another batch is then another one.

Nothing here imports torch when it is loaded: pages read the table that a command has stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from stagelens.contracts import Example, ProgressCallback, RunError, no_progress

from . import fact_tables
from .example_content import content_digest
from .row_columns import row_columns
from .run import Run, Stage
from .schema import digest
from .step_records import MicroBatch

_METHOD = 2
"""Part of every key; raised when what is stored changes."""

COLUMNS = ("example_id", "label", "content", "step", "position", "uses", "steps", "positions")
"""One row per training example, in the order in which they were first seen.

``content`` identifies the input, whatever the label; ``step`` and ``position`` are those of its
first use; ``steps`` and ``positions`` are lists, one entry per use. The columns of a recorded data
set follow (see :func:`.row_columns.row_columns`), those of the row that it was first made of.
"""


@dataclass(frozen=True)
class Use:
    """A training example in one step.

    Attributes:
        step: Number within the stage, from 0.
        micro: Which micro-batch of the step.
        place: Which example of the micro-batch.
        position: The same, counted over the micro-batches of the step.
        content: Identifies the input: equal for equal inputs.
        label: As it was trained on; None where the task shows none.
        example: As the task shows it; None where it cannot.
        row: Its number in the recorded data set; None without one.
        packed: Whether it is one of several documents of its rows.
    """

    step: int
    micro: int
    place: int
    position: int
    content: str
    label: str | None
    example: Example | None
    row: int | None
    packed: bool

    @property
    def example_id(self) -> str:
        """What the example is called if this is its first use."""
        return f"{self.step}-{self.position}"


def examples_in(stage: Stage, task: Any, batch: Any) -> list[Example | None]:
    """The examples of a micro-batch; None for those that the task cannot show."""
    shown = stage.objective.examples(task, batch)
    if shown is not None:
        return list(shown)
    from .batches import batch_size

    if (documents := stage.objective.documents(task, batch)) is not None:
        return [None] * (int(documents.max()) + 1)
    owners = stage.objective.row_examples(task, batch)
    return [None] * (batch_size(batch) if owners is None else max(owners) + 1)


def uses(run: Run, stage: Stage, step: int, batches: Sequence[MicroBatch]) -> list[Use]:
    """The training examples of one step, in order.

    Args:
        run: The run.
        stage: One of its stages.
        step: Number within the stage.
        batches: The step's.
    """
    found: list[Use] = []
    for micro, one in enumerate(batches):
        shown = examples_in(stage, run.task, one.batch)
        packed = stage.objective.documents(run.task, one.batch) is not None
        tensors = _by_tensors(stage, run.task, one.batch) if None in shown else []
        rows = rows_used(stage, run.task, one)
        rows = rows if rows is not None and len(rows) == len(shown) else None
        for place, example in enumerate(shown):
            found.append(
                Use(
                    *(step, micro, place, len(found)),
                    content=tensors[place] if example is None else content_digest(example),
                    label=None if example is None else example.label,
                    example=example,
                    row=None if rows is None else rows[place],
                    packed=packed,
                )
            )
    return found


def rows_used(stage: Stage, task: Any, micro: MicroBatch) -> Sequence[int] | None:
    """The rows of the recorded data set that the examples of a micro-batch are.

    None without one, and for documents: they are parts of its rows.
    """
    if micro.rows is None or stage.objective.documents(task, micro.batch) is not None:
        return None
    return micro.rows


def _by_tensors(stage: Stage, task: Any, batch: Any) -> list[str]:
    """Per example a digest of its part of every tensor; of a document its tokens and labels."""
    from .batches import batch_size, flatten

    if (documents := stage.objective.documents(task, batch)) is not None:
        places = [documents == number for number in range(int(documents.max()) + 1)]
        parts = [[batch[name][own] for name in ("input_ids", "labels")] for own in places]
        return [hashlib.sha256(b"".join(map(_bytes, part))).hexdigest() for part in parts]
    owners = stage.objective.row_examples(task, batch)
    owners = range(batch_size(batch)) if owners is None else owners
    hashers = [hashlib.sha256() for _ in range(max(owners) + 1)]
    _, tensors = flatten(batch)
    for place, tensor in enumerate(tensors):
        if not tensor.ndim or tensor.shape[0] not in (len(owners), len(hashers)):
            continue
        own = owners if tensor.shape[0] == len(owners) else range(len(hashers))
        for owner, row in zip(own, tensor, strict=True):
            hashers[owner].update(f"{place} {row.dtype} {tuple(row.shape)}".encode())
            hashers[owner].update(_bytes(row))
    return [each.hexdigest() for each in hashers]


def _bytes(tensor: Any) -> bytes:
    import torch

    # As bytes, because numpy has no bfloat16.
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def every_use(
    run: Run, stage: Stage, progress: ProgressCallback = no_progress
) -> Iterator[list[Use]]:
    """The training examples of every step of a stage.

    Raises:
        RunError: The batches of a step were not kept, or their data set is missing.
    """
    if stage.no_data_set:
        raise RunError(stage.no_data_set)
    steps = stage.read_steps()
    for number in range(len(steps)):
        batches = steps[number].batches
        if batches is None:
            raise RunError(
                f"not all batches of stage {stage.name!r} were kept, so its training examples are "
                'not known; record it with keep_batches="all"'
            )
        yield uses(run, stage, number, batches)
        progress((number + 1) / len(steps), f"Reading the training examples of {stage.name}")


class TrainingRowsFacts(BaseModel):
    """What a stored table of training examples says of itself.

    Attributes:
        run_digest: Of the run.
        stage: Whose.
        shown: Whether the task shows its training data.
        columns: Names of the columns of the recorded data set.
        packed: Whether examples are documents of which rows hold several.
    """

    model_config = ConfigDict(frozen=True)

    run_digest: str
    stage: str
    shown: bool
    columns: tuple[str, ...] = ()
    packed: bool = False


@dataclass(frozen=True)
class TrainingRows:
    """The training examples of a stage: a table (:data:`COLUMNS`) and what it says of itself."""

    facts: TrainingRowsFacts
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Example id to the number of its row."""
        return {str(name): number for number, name in enumerate(self.table["example_id"])}

    def places(self, ids: Sequence[str]) -> dict[int, set[int]]:
        """Step to the positions of these examples in it.

        Raises:
            RunError: The stage has no such training example; names it.
        """
        found: dict[int, set[int]] = {}
        steps, positions = self.table["steps"], self.table["positions"]
        for name in ids:
            if name not in self.numbers:
                raise RunError(
                    f"stage {self.facts.stage!r} has no training example {name!r}; ids are those "
                    "of stagelens training-rows, such as "
                    f"{', '.join(self.table['example_id'][:3])}"
                )
            number = self.numbers[name]
            for step, position in zip(steps[number], positions[number], strict=True):
                found.setdefault(int(step), set()).add(int(position))
        return found


def training_rows(run: Run, stage: Stage, progress: ProgressCallback = no_progress) -> TrainingRows:
    """The training examples of a stage; read from disk where they were listed before.

    Args:
        run: The run.
        stage: One of its stages.
        progress: Called for every step that is read.

    Raises:
        RunError: The batches of a step were not kept, or their data set is missing.
    """
    stored = load_training_rows(run, stage)
    if stored is not None:
        return stored
    found: dict[tuple[str, str | None], list[Use]] = {}
    for own in every_use(run, stage, progress):
        for use in own:
            # The example itself would hold all training data in memory.
            found.setdefault((use.content, use.label), []).append(_only_place(use))
    first = [every[0] for every in found.values()]
    table = pd.DataFrame(
        {
            "example_id": pd.array([use.example_id for use in first], dtype="string"),
            "label": pd.array([use.label for use in first], dtype="string"),
            "content": [use.content for use in first],
            "step": np.array([use.step for use in first], dtype=np.int64),
            "position": np.array([use.position for use in first], dtype=np.int64),
            "uses": np.array([len(every) for every in found.values()], dtype=np.int64),
            "steps": [[use.step for use in every] for every in found.values()],
            "positions": [[use.position for use in every] for every in found.values()],
        },
        columns=list(COLUMNS),
    )
    more = row_columns(stage.rows, [use.row for use in first], run.task.input_fields)
    more = more[[name for name in more if name not in COLUMNS]]
    facts = TrainingRowsFacts(
        run_digest=run.digest,
        stage=stage.name,
        shown=all(use.example is not None for use in first),
        columns=tuple(more),
        packed=any(use.packed for use in first),
    )
    rows = TrainingRows(facts, table.join(more))
    fact_tables.write(training_rows_path(run, stage), rows.table, facts)
    # Read again, so that what is worked with is what the next one reads.
    return load_training_rows(run, stage) or rows


def _only_place(use: Use) -> Use:
    example = None if use.example is None else replace(use.example, input={})
    return replace(use, example=example)


def training_rows_path(run: Run, stage: Stage) -> Path:
    """Where the training examples of a stage are listed, or would be."""
    key = digest(_METHOD, run.digest, stage.name)[:32]
    return run.files.inside(f"results/training-rows/{key}.parquet")


def load_training_rows(run: Run, stage: Stage) -> TrainingRows | None:
    """A stored list; None where there is none that can be used. Without torch."""
    found = fact_tables.read(training_rows_path(run, stage), TrainingRowsFacts, COLUMNS)
    return None if found is None else TrainingRows(*found)


def example_key(run: Run, stage: str) -> tuple[str, ...]:
    """Part of the keys of results that name a stage's training examples.

    Of packed rows, an example is a document; in results of earlier versions it was a whole row,
    under an id that may now be another's. Nothing elsewhere. Without torch.
    """
    path = training_rows_path(run, run.stage(stage))
    packed = path.is_file() and _is_packed(path, path.stat().st_mtime_ns)
    return ("documents",) if packed else ()


def rest_key(run: Run, stage: str) -> tuple[str, ...]:
    """Part of the keys of results without some of a stage's training examples.

    Earlier versions took losses that each of several processes divides by a count of its own for
    ones over the count of all. Nothing elsewhere.
    """
    return ("counts of processes",) if run.stage(stage).facts.processes > 1 else ()


@lru_cache(maxsize=256)
def _is_packed(path: Path, _stamp: int) -> bool:
    facts = fact_tables.facts_of(path, TrainingRowsFacts)
    return facts is not None and facts.packed
