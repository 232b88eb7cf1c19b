"""Tables that leave the run, as .parquet or .csv files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stagelens.contracts import StageLensError
from stagelens.runs.files import atomic_path, check_writable
from stagelens.wording.cells import cells

from .terminal import say


def check_table_file(out: Path | None) -> None:
    """Check that a table can be written there, before work that may take hours.

    Raises:
        StageLensError: It has another ending, or its folder cannot be written.
    """
    if out is None:
        return
    if out.suffix not in (".parquet", ".csv"):
        raise StageLensError(f"{out}: name the file .parquet or .csv")
    check_writable(out)


def write_table(out: Path, table: pd.DataFrame) -> None:
    """Write a table as its ending says, and tell its size."""
    with atomic_path(out) as temporary:
        if out.suffix == ".csv":
            cells(table).to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
    say(f"{out}: {len(table):,} rows")
