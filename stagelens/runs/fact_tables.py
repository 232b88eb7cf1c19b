"""Tables that describe themselves: parquet files with facts, a pydantic model, in the metadata.

Results of every kind are kept in them. Whatever cannot be read in full, because it is missing,
damaged, edited, of another kind or without a column, reads as None: it is then computed again.

With the facts stands a checksum: sha256 of the whole file, with zeros in the checksum's own place.
Page checksums would not do, as they are made anew by whoever writes an edited table.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
from pydantic import BaseModel

from .files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

Facts = TypeVar("Facts", bound=BaseModel)

_KEY = b"stagelens"
_CHECKSUM = "checksum"
_BLANK = "0" * 64
_BLOCK = 1 << 20


def write(
    path: Path, table: pd.DataFrame | pa.Table, facts: BaseModel | None = None, **layout: Any
) -> None:
    """Store a table with its facts and its checksum, atomically.

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
    said = {} if facts is None else json.loads(facts.model_dump_json())
    # Beside what pandas wrote there, by which columns get their types back.
    own = {_KEY: json.dumps({**said, _CHECKSUM: _BLANK}).encode()}
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **own})
    with atomic_path(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd", write_page_checksum=True, **layout)
        seal(temporary)


def seal(path: Path) -> None:
    """Put a table's checksum in its place, if it has one, where zeros stand so far."""
    place = _place(path, _BLANK)
    if place is None:
        return
    with open(path, "r+b") as file:
        content = _sha256(file.fileno(), place)
        file.seek(place)
        file.write(content.encode())


def _place(path: Path, checksum: str) -> int | None:
    """Where a file's checksum stands: in its footer, so near its end."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = content.rfind(f'"{_CHECKSUM}": "{checksum}"'.encode())
    return None if found < 0 else found + len(f'"{_CHECKSUM}": "')


def _sha256(descriptor: int, place: int) -> str:
    """sha256 of a file, with zeros where its checksum stands."""
    digest = hashlib.sha256()
    with open(descriptor, "rb", closefd=False) as file:
        for start, end in ((0, place), (place + len(_BLANK), os.fstat(descriptor).st_size)):
            file.seek(start)
            # Block by block: mapped as a whole, a large file would count as memory of the process.
            while block := file.read(min(_BLOCK, end - file.tell())):
                digest.update(block)
            digest.update(_BLANK.encode() if start == 0 else b"")
    return digest.hexdigest()


def checksum(path: Path) -> str | None:
    """The checksum that a table carries; None for one that an earlier version wrote.

    Raises:
        ValueError: The file cannot be read as a table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        footer = pq.read_metadata(path)
        said = json.loads((footer.metadata or {}).get(_KEY, b"{}"))
        # Arrow keeps a copy of the facts, from before the checksum was put in.
        copy = json.loads((footer.schema.to_arrow_schema().metadata or {}).get(_KEY, b"{}"))
        return str(said.get(_CHECKSUM)) if _CHECKSUM in {*said, *copy} else None
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def is_intact(path: Path) -> bool:
    """Whether a file is a table as it was written, as far as it can tell; hashed once."""
    try:
        stat = path.stat()
        return path.is_file() and _is_intact(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    except OSError:
        return False


@lru_cache(maxsize=4096)
def _is_intact(path: Path, *_written: int) -> bool:
    # Sizes, times and inodes are arguments so that a file that was written since is hashed again.
    try:
        said = checksum(path)
        if said is None:
            return True
        place = _place(path, said)
        with open(path, "rb") as file:
            return place is not None and _sha256(file.fileno(), place) == said
    except (OSError, ValueError):
        return False


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

    if not is_intact(path):
        return None
    try:  # damaged bytes make pyarrow raise any of these, and a damaged result is only recomputed
        table = pq.read_table(path, filters=filters, page_checksum_verification=True)
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        return None
    return table if set(columns) <= set(table.column_names) else None


def facts_of(path: Path, kind: type[Facts]) -> Facts | None:
    """The facts alone, without the table; None if it cannot be used."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not is_intact(path):
        return None
    try:
        return facts_in(pq.read_schema(path), kind)
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError):
        return None


def facts_of_all(folder: Path, pattern: str, kind: type[Facts]) -> dict[Path, Facts]:
    """Files that can be used, of those in a folder whose names match: to facts, latest first."""
    files = sorted(folder.glob(pattern), key=lambda file: -file.stat().st_mtime_ns)
    every = ((file, facts_of(file, kind)) for file in files)
    return {file: facts for file, facts in every if facts is not None}


def facts_in(schema: pa.Schema, kind: type[Facts]) -> Facts:
    """The facts in a file's schema.

    Raises:
        KeyError: There are none.
        ValueError: They are of another kind.
    """
    said = json.loads((schema.metadata or {})[_KEY])
    said.pop(_CHECKSUM, None)
    return kind.model_validate(said)


def _as_frame(table: pa.Table) -> pd.DataFrame | None:
    """The rows; None if a damaged description of the columns cannot be followed."""
    import pyarrow as pa

    try:
        return table.to_pandas()
    except (pa.ArrowException, LookupError, TypeError, ValueError):
        return None
