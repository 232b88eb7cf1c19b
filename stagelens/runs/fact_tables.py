"""Tables that describe themselves: parquet files with facts, a pydantic model, in the metadata.

Results of every kind are kept in them. Whatever cannot be read in full, because it is missing,
damaged, of another kind or without a column, reads as None: it is then computed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from pydantic import BaseModel

from .files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

Facts = TypeVar("Facts", bound=BaseModel)

_KEY = b"stagelens"


def write(
    path: Path, table: pd.DataFrame | pa.Table, facts: BaseModel | None = None, **layout: Any
) -> None:
    """Store a table with its facts, atomically; its pages carry checksums.

    Args:
        path: Of the file.
        table: Its rows; the index of a data frame is not kept.
        facts: What the table says about itself; None if its path says enough.
        layout: Further arguments of ``pyarrow.parquet.write_table``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = isinstance(table, pd.DataFrame)
    arrow = pa.Table.from_pandas(table, preserve_index=False) if frame else table
    if facts is not None:
        # Beside what pandas wrote there, by which columns get their types back.
        own = {_KEY: facts.model_dump_json().encode()}
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **own})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd", write_page_checksum=True, **layout)


def read(
    path: Path, kind: type[Facts], columns: Iterable[str] = ()
) -> tuple[Facts, pd.DataFrame] | None:
    """A stored table with its facts; None if it cannot be used.

    Args:
        path: Of the file.
        kind: Of its facts.
        columns: Columns that it must have.
    """
    found = read_arrow(path, kind, columns)
    frame = None if found is None else _as_frame(found[1])
    return None if found is None or frame is None else (found[0], frame)


def read_arrow(
    path: Path, kind: type[Facts], columns: Iterable[str] = (), filters: Any = None
) -> tuple[Facts, pa.Table] | None:
    """As :func:`read`, with a pyarrow table; ``filters`` as for ``read_table``."""
    table = _read(path, columns, filters)
    try:
        return None if table is None else (facts_in(table.schema, kind), table)
    except (KeyError, ValueError):
        return None


def read_plain(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame | None:
    """A table without facts; None if it cannot be used."""
    table = _read(path, columns)
    return None if table is None else _as_frame(table)


def _read(path: Path, columns: Iterable[str], filters: Any = None) -> pa.Table | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():  # given a folder, pyarrow would read all files in it
        return None
    try:  # damaged bytes make pyarrow raise any of these, and a damaged result is only recomputed
        table = pq.read_table(path, filters=filters, page_checksum_verification=True)
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        return None
    return table if set(columns) <= set(table.column_names) else None


def facts_of(path: Path, kind: type[Facts]) -> Facts | None:
    """The facts alone, reading only the file's footer; None if it cannot be used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return facts_in(pq.read_schema(path), kind)
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        return None


def facts_in(schema: pa.Schema, kind: type[Facts]) -> Facts:
    """The facts in a file's schema.

    Raises:
        KeyError: There are none.
        ValueError: They are of another kind.
    """
    return kind.model_validate_json((schema.metadata or {})[_KEY])


def _as_frame(table: pa.Table) -> pd.DataFrame | None:
    """The rows; None if a damaged description of the columns cannot be followed."""
    import pyarrow as pa

    try:
        return table.to_pandas()
    except (pa.ArrowException, LookupError, TypeError, ValueError):
        return None
