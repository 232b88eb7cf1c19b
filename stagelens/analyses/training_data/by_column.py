"""The group of every training example by a column: source, annotator, length."""

from __future__ import annotations

from collections.abc import Mapping

from stagelens.contracts import ProgressCallback, RunError, no_progress
from stagelens.runs.run import Run
from stagelens.runs.training_rows import training_rows
from stagelens.wording.folding import listed

from .groups import groupings
from .looks import looks
from .marks import marked
from .tables import load, stage_of


def groups_by(
    run: Run, stage_name: str, column: str, progress: ProgressCallback = no_progress
) -> Mapping[str, str]:
    """Training example to its group.

    Args:
        run: The run.
        stage_name: One of its stages.
        column: Of the recorded data set or of a file that was joined, or what every example has.
        progress: Called while examples are read; what is there already is read from disk.

    Raises:
        RunError: There is no such stage, its batches are not at hand, or its examples have no such
            column with two groups or more.
    """
    stage = stage_of(run, stage_name)
    looks(run, stage, training_rows(run, stage).table, progress)
    data = load(run, stage_name)
    found = {} if data is None else groupings(data, marked(data))
    if data is None or column not in found:
        has = f"they have {listed(list(found))}" if found else "they have none"
        raise RunError(
            f"training examples of {stage_name!r} have no column {column!r} with groups; {has}; "
            f"add columns with: stagelens training-data {run.path} --stage {stage_name} "
            "--columns FILE"
        )
    ids = data.frame["example_id"].astype(str)
    return dict(zip(ids, found[column].astype(str), strict=True))
