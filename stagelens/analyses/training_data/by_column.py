"""The group of every training example by a column: source, annotator, length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from stagelens.contracts import ProgressCallback, RunError, no_progress
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows
from stagelens.wording.folding import listed

from .groups import LENGTH, groupings
from .tables import TrainingData, columns_path, load, stage_of


def columns_to_value_by(data: TrainingData, groups: Iterable[str]) -> list[str]:
    """Of what examples can be grouped by, what they can be valued by.

    What somebody says of them, and their length. Not labels, within which they are compared, and
    not what this run's models say of them.

    Args:
        data: Of the stage.
        groups: Names of :func:`~.groups.groupings`.
    """
    return [name for name in groups if name in (*data.columns, LENGTH)]


def columns_key(run: Run, stage_name: str) -> list[str]:
    """What joined columns are, as a part of keys; nothing where none were joined."""
    path = columns_path(run, stage_name)
    return [hashlib.sha256(path.read_bytes()).hexdigest()] if path.is_file() else []


def groups_by(
    run: Run, stage_name: str, column: str, progress: ProgressCallback = no_progress
) -> Mapping[str, str]:
    """Training example to its group.

    Args:
        run: The run.
        stage_name: One of its stages.
        column: Of the recorded data set or of a file that was joined, or ``length``.
        progress: Called while examples are read; what is there already is read from disk.

    Raises:
        RunError: There is no such stage, its batches are not at hand, or its examples have no such
            column with two groups or more.
    """
    from .looks import looks  # it reads batches, and pages ask for keys alone

    stage = stage_of(run, stage_name)
    looks(run, stage, training_rows(run, stage).table, progress)
    data = load(run, stage_name)
    found = {} if data is None else groupings(data, data.frame)
    known = [] if data is None else columns_to_value_by(data, found)
    if data is None or column not in known:
        has = f"they have {listed(known)}" if known else "they have none"
        raise RunError(
            f"training examples of {stage_name!r} have no column {column!r} to value them by; "
            f"{has}; add columns with: stagelens training-data {run.path} --stage {stage_name} "
            "--columns FILE"
        )
    ids = data.frame["example_id"].astype(str)
    return dict(zip(ids, found[column].astype(str), strict=True))
