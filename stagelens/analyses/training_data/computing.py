"""Everything that is stored of a stage's training examples, computed as far as it is not there."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stagelens.contracts import Progress, ProgressCallback, RunError, no_progress
from stagelens.runs.run import Run
from stagelens.runs.sets.columns import SetColumns
from stagelens.runs.training_rows import training_rows

from .columns import add_columns
from .duplicates import duplicates
from .looks import looks
from .measuring import measure_rows
from .tables import DuplicateFacts, TrainingData, load, stage_of


def training_data(
    run: Run,
    stage_name: str,
    progress: ProgressCallback = no_progress,
    columns_file: Path | None = None,
    columns: SetColumns | None = None,
) -> TrainingData:
    """The training examples of a stage, with answers, losses over time and duplicates.

    Args:
        run: The run.
        stage_name: One of its stages.
        progress: Called while it is computed; what is there already is read from disk.
        columns_file: Training data in the form of an evaluation set, whose columns are added.
        columns: Which of its columns play which role.

    Raises:
        RunError: There is no such stage, or its batches are not at hand.
        SetError: The file cannot be read.
    """
    stage = stage_of(run, stage_name)
    told = Progress(progress)
    duplicates_of(run, stage_name, told.part(0.0, 0.5))
    own = training_rows(run, stage)
    if columns_file is not None:
        add_columns(run, stage, own.table, columns_file, columns or SetColumns())
    measure_rows(run, stage, own.table, own.facts.shown, told.part(0.5, 1.0))
    found = load(run, stage.name)
    if found is None:
        raise RunError(
            f"what was just stored of the training examples of {stage.name!r} cannot be read; "
            "start the command again"
        )
    return found


def duplicates_of(
    run: Run, stage_name: str, progress: ProgressCallback = no_progress
) -> tuple[DuplicateFacts, pd.DataFrame]:
    """Where else training examples occur, of all stages whose batches are at hand.

    Args:
        run: The run.
        stage_name: A stage that has to be among them.
        progress: Called while it is computed; what is there already is read from disk.

    Returns:
        Facts, and rows of ``tables.DUPLICATES`` of all stages.

    Raises:
        RunError: There is no such stage, or its batches are not at hand.
    """
    stage_of(run, stage_name)
    told = Progress(progress)
    tables, left_out = {}, {}
    for number, each in enumerate(run.stages):
        part = told.part(0.6 * number / len(run.stages), 0.6 * (number + 1) / len(run.stages))
        try:
            stage_of(run, each.name)
        except RunError as error:
            left_out[each.name] = str(error)
            continue
        own = Progress(part)
        rows = training_rows(run, each, own.part(0.0, 0.5))
        tables[each.name] = rows.table, looks(run, each, rows.table, own.part(0.5, 1.0))[1]
    return duplicates(run, tables, left_out, told.part(0.6, 1.0))
