"""What files unpack to, found before or while they are read: a small one may hold very much."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stagelens.compute import memory
from stagelens.contracts import SetError

_MOST, _MOST_TIMES = 10**9, 100
"""Content may take so many bytes, or so many times those of its file, whichever is more."""

_ROWS = 1 << 16
"""Rows that are counted at a time."""

_VALUE = 16
"""Bytes that any value takes at least as an object of Python's."""


def check_size(path: Path, size: int, what: str) -> None:
    """Refuse content that is far larger than its file, or than memory.

    Args:
        path: The file.
        size: Bytes that its content takes in memory.
        what: What takes them, to go on in a sentence.

    Raises:
        SetError: It is too large; says by how much, and what to do.
    """
    packed = path.stat().st_size
    if size > max(_MOST, _MOST_TIMES * packed):
        raise SetError(
            f"{path}: {what} would take {memory.amount(size)}, more than {_MOST_TIMES} times the "
            f"{memory.amount(packed)} of the file, so it is not read; save only what the set needs"
        )
    if size > (free := memory.available()):
        raise SetError(
            f"{path}: {what} would take {memory.amount(size)} of memory, but only "
            f"{memory.amount(free)} are available; give a smaller set, or use a machine with more "
            "memory"
        )


def check_npz(path: Path) -> None:
    """Refuse arrays that are too large by what their headers say; reads nothing else.

    Raises:
        SetError: They are; names the array.
    """
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                size, kind = _npy(file)
            total += max(size, member.file_size)
            name = member.filename.removesuffix(".npy")
            check_size(path, total, f"array {name!r}{kind}, with those before it,")


def _npy(file: IO[bytes]) -> tuple[int, str]:
    """Bytes of the array in a ``.npy`` file, and what it is, by its header; 0 for another file."""
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = read[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError):  # numpy says what is wrong with it when it is read
        return 0, ""
    return math.prod(shape) * dtype.itemsize, f" of shape {shape} and type {dtype}"


def check_parquet(path: Path) -> None:
    """Refuse a parquet file that unpacks to too much: its pages may repeat one value at will.

    Raises:
        SetError: It does.
    """
    facts = pq.read_metadata(path)
    leaves = [facts.schema.column(number) for number in range(facts.num_columns)]
    groups = [facts.row_group(number) for number in range(facts.num_row_groups)]
    values = sum(group.column(n).num_values for group in groups for n in range(len(leaves)))
    check_size(path, _VALUE * values, "its values")
    # As numbers of words, texts tell how much they take without taking it.
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(path, metadata=facts, read_dictionary=texts) as file:
        check_batches(path, file.schema_arrow, file.iter_batches(batch_size=_ROWS))


def check_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Refuse batches that take too much in all, or are of a type that says nothing of its size.

    Raises:
        SetError: They do.
    """
    for column in schema:
        if not _sized(column.type):
            raise SetError(
                f"{path}: column {column.name!r} holds {column.type}, which is not read; save it "
                "as text or numbers"
            )
    total = rows = 0
    for batch in batches:
        total, rows = total + sum(map(_bytes, batch.columns)), rows + len(batch)
        check_size(path, total, f"its first {rows:,} rows")


def _sized(kind: pa.DataType) -> bool:
    """Whether an array of this type holds what it is made of, and does not only point to it."""
    if pa.types.is_dictionary(kind):
        return not pa.types.is_nested(kind.value_type)
    if pa.types.is_nested(kind):
        known = _is_list(kind) or pa.types.is_struct(kind)
        return known and all(_sized(kind.field(n).type) for n in range(kind.num_fields))
    return not pa.types.is_run_end_encoded(kind)


def _is_list(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_it(kind) for is_it in lists)


def _bytes(column: pa.Array) -> int:
    """Bytes that a column takes once every value stands by itself."""
    if isinstance(column, pa.ExtensionArray):
        return _bytes(column.storage)
    if pa.types.is_struct(column.type):
        return sum(map(_bytes, column.flatten()))
    if _is_list(column.type):
        return _VALUE * len(column) + _bytes(column.flatten())
    if not pa.types.is_dictionary(column.type):
        return max(int(column.nbytes), _VALUE * len(column))
    words = column.dictionary
    if pa.types.is_primitive(words.type) or not len(words):
        return _VALUE * len(column)
    lengths = pc.binary_length(words).cast(pa.int64())
    return _VALUE * len(column) + int(pc.sum(lengths.take(column.indices)).as_py() or 0)
