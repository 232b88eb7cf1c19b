"""Losses and learning rates step by step: as recorded, and as a Trainer reported them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .checked_files import CheckedFiles
from .files import write_file
from .schema import FileRef, PartRef
from .steps import COLUMNS, read_table, steps_of_all

_SHOWN = ["step", "loss", "lr"]
_HISTORY = pa.schema([COLUMNS.field(name) for name in _SHOWN])


def steps_table(files: CheckedFiles, parts: Sequence[Sequence[PartRef]]) -> pd.DataFrame:
    """Step number, loss and learning rate (of the first group) of every step, one row each.

    Of several processes, the loss is the mean of theirs, as in
    :func:`~stagelens.runs.step_records.of_all`.

    Args:
        files: The run folder's files.
        parts: Of each process, in order.
    """
    count = steps_of_all(parts)
    if not count:
        return pd.DataFrame({"step": [], "loss": [], "lr": []})
    each = [_table(files, own).slice(0, count) for own in parts]
    found = each[0].select(_SHOWN).to_pandas()
    if len(each) > 1:
        weights = np.stack([_weights(table) for table in each])
        losses = np.stack([table.column("loss").to_numpy() for table in each])
        found["loss"] = (losses * weights / weights.sum(0)).sum(0)
    return found


def _table(files: CheckedFiles, parts: Sequence[PartRef]) -> pa.Table:
    return pa.concat_tables([read_table(files.path(part.table)) for part in parts])


def _weights(table: pa.Table) -> np.ndarray:
    """How much a process's loss counts at each step, (T,)."""
    plain = [not any(divisors or ()) for divisors in table.column("divisors").to_pylist()]
    return np.where(plain, table.column("micro_batches").to_numpy(), 1)


def write_history(root: Path, relative: str, rows: pd.DataFrame) -> FileRef:
    """Write what a Trainer reported about its steps: ``step``, ``loss`` and ``lr``."""
    table = pa.Table.from_pandas(rows, schema=_HISTORY, preserve_index=False)
    return write_file(
        root, relative, lambda path: pq.write_table(table, path, write_page_checksum=True)
    )


def read_history(files: CheckedFiles, reference: FileRef) -> pd.DataFrame:
    """The table of :func:`write_history`.

    Raises:
        RunError: It is missing, damaged or foreign.
    """
    return read_table(files.path(reference), _HISTORY).to_pandas()
