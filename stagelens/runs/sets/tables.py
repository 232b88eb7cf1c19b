"""Files with rows, as columns: CSV, JSON lines, parquet, arrays, and what ``datasets`` saved.

Cells stay as the file has them: ``007`` is not 7.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import lzma
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagelens.contracts import SetError

from .sizes import check_batches, check_npz, check_parquet, check_size

Table = dict[str, Any]
"""Column name to values, a list or an array."""

_STATE, _SPLITS = "state.json", "dataset_dict.json"
"""Files that mark a folder saved by ``datasets``, and one with several splits."""

_EXCEL_SEPARATOR = re.compile(r"sep=(.)\r?\n")
_OTHER_KINDS = (
    ((b"pk\x03\x04",), "an Excel workbook or a zip file", "save its sheet as CSV (UTF-8)"),
    ((b"\xd0\xcf\x11\xe0",), "an old Excel workbook", "save its sheet as CSV (UTF-8)"),
    ((b"\x1f\x8b",), "compressed with gzip", "unpack it: gunzip FILE"),
    ((b"PAR1",), "a parquet file", "rename it to .parquet"),
    (
        (b"<!doctype html", b"<html"),
        "a web page",
        "download the file itself, not the page that shows it",
    ),
    ((b"version https://git-lfs",), "a pointer of Git LFS", "fetch the file: git lfs pull"),
)
"""What other kinds of files begin with, in small letters: what they are, and what to do."""

_LARGEST_JSON = 64 * 2**20

_TEXT_TIMES = 5
"""Reading lines of text takes at least so many times the bytes of the file: as bytes, as text, in
lines, and as values."""

_QUOTED = re.compile(r'"(?:[^"]|"")*"')

# Whatever damaged bytes make the readers raise, beside OSError and ValueError.
_DAMAGE = (
    *(pa.ArrowException, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
    *(RuntimeError, OverflowError),  # of zip files: encrypted, or packed in an unknown way
    MemoryError,  # a header that claims more than there is
)


def read_table(path: Path) -> Table:
    """Column name to values for a file with rows or a saved dataset; key to array for a ``.npz``.

    Raises:
        SetError: Unreadable, without rows, of an unknown kind, or a column appears twice.
    """
    reader = _read_saved if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(_READERS)
        raise SetError(f"{path}: give a folder of images or a file of one of the kinds {kinds}")
    try:
        if reader is not _read_saved and (not path.is_file() or path.stat().st_size == 0):
            raise SetError(f"{path} is empty or not a file; check the path, or save the file again")
        header, columns = reader(path)
    except (OSError, ValueError, EOFError, *_DAMAGE) as error:
        raise SetError(f"{path} is damaged or not what its name says: {error}") from None
    # Before the columns become a dict, which would keep only the last of them.
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise SetError(f"{path}: column {twice!r} appears twice; rename one of them")
    if not columns or (isinstance(columns[0], list) and not columns[0]):
        raise SetError(f"{path} has no rows; an evaluation set needs at least one example")
    return dict(zip(header, columns, strict=True))


def _text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 with the mark that spreadsheets begin it with.

    Raises:
        SetError: It is in another encoding, or no text at all; says what it is.
    """
    check_size(path, _TEXT_TIMES * path.stat().st_size, "reading it")
    data = path.read_bytes()
    _check_kind(path, data)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if max(data[half:1000:2].count(0) for half in (0, 1)) > len(data[:1000]) // 4:
        raise SetError(
            f"{path} holds null bytes, as text in UTF-16 does; save the file with the encoding "
            "UTF-8"
        )
    try:
        return data.decode("utf-8-sig")  # Excel begins UTF-8 files with a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SetError(
            f"{path}: line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save the "
            "file with the encoding UTF-8"
        ) from None


def _check_kind(path: Path, data: bytes) -> None:
    """Refuse what another kind of file begins with, whatever the file is called."""
    begin = data[:64].lstrip().lower()
    for marks, what, advice in _OTHER_KINDS:
        if begin.startswith(marks) or data.startswith(marks):
            raise SetError(f"{path} is {what}, whatever its name says; {advice}")


def _read_csv(path: Path) -> tuple[list[str], list[Any]]:
    # Not pandas: it pads short rows, and reads "NA" and "007", which can be labels, as others.
    # The csv module refuses fields of more than 131,072 characters by default.
    csv.field_size_limit(2**31 - 1)
    whole = _text(path)
    text = whole.lstrip("\r\n")
    told = _EXCEL_SEPARATOR.match(text)  # a first line by which Excel is told the separator
    text = text[told.end() :] if told else text
    separator, spaced = _separator(text, ("\t,;" if path.suffix.lower() == ".tsv" else ",;\t|"))
    separator = told[1] if told else separator
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced
    )
    rows: list[list[str]] = []
    before = whole[: len(whole) - len(text)].count("\n")  # lines that the reader does not see
    begun = 1
    try:
        for row in reader:
            # Of empty cells alone, as spreadsheets leave them behind, is no example.
            if any(row) or len(row) == 1:
                if len(row) != len(rows[0] if rows else row):
                    raise csv.Error(f"{len(row)} fields, but the header has {len(rows[0])}")
                rows.append(row)
            begun = reader.line_num + 1
    except csv.Error as error:
        said = str(error)
        if said == "unexpected end of data":
            said = "a quote begins a field there, which no other one ends"
        raise SetError(
            f"{path}: line {before + begun}: {said}; correct that line, with quotes around "
            f"fields that hold {separator!r} or a line break, and quotes doubled within them"
        ) from None
    names = [name.strip() for name in rows[0]] if rows else []
    header = [name or f"Unnamed: {i}" for i, name in enumerate(names)]
    columns = [list(column) for column in zip(*rows[1:], strict=True)]
    # A separator at the end of every line begins a column with neither a name nor a value.
    kept = [i for i, column in enumerate(columns) if names[i] or any(column)]
    return [header[i] for i in kept] if columns else header, [columns[i] for i in kept]


def _separator(text: str, candidates: str) -> tuple[str, bool]:
    """What separates the columns, by the header, and whether a space follows it everywhere.

    Spreadsheets write semicolons where numbers have a decimal comma.
    """
    header = _QUOTED.sub("", text.partition("\n")[0])
    found = next((each for each in candidates if each in header), candidates[0])
    return found, 0 < header.count(found) == header.count(f"{found} ")


def _read_jsonl(path: Path) -> tuple[list[str], list[Any]]:
    # Not pandas or pyarrow, which read texts such as "007" and "2024-01-01" as other types.
    text = _text(path)
    rows = _array(path, text) if text.lstrip().startswith("[") else list(_objects(path, text))
    # Rows may differ in their keys; the order is that of first appearance.
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, [[row.get(name) for row in rows] for name in header]


def _objects(path: Path, text: str) -> Iterator[dict[str, Any]]:
    # Not splitlines: texts in JSON may hold other line breaks, such as U+2028, as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:  # the latter of very deep nesting
            raise SetError(
                f"{path}: line {number} is not JSON: {error}; correct that line, or write one "
                "{...} per line"
            ) from None
        if isinstance(row, dict):
            yield row
        elif line.strip():
            raise SetError(
                f"{path}: line {number} is not a JSON object; write one {{...}} per line"
            )


def _array(path: Path, text: str) -> list[dict[str, Any]]:
    """The objects of a file that holds one JSON array."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetError(f"{path} is not a JSON array: {error}; correct it") from None
    wrong = next((n for n, row in enumerate(rows, start=1) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise SetError(f"{path}: entry {wrong} is not a JSON object; give an array of {{...}}")
    return list(rows)


def _read_parquet(path: Path) -> tuple[list[str], list[Any]]:
    with open(path, "rb") as content:
        _check_kind(path, content.read(64).removeprefix(b"PAR1"))
    check_parquet(path)
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return _arrow_columns(path, file.read())


def _arrow_columns(path: Path, table: pa.Table) -> tuple[list[str], list[Any]]:
    """Columns as lists, with class names from the schema, where ``datasets`` keeps them."""
    try:
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        features = {}
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        feature = features.get(name) or {}
        names = feature.get("names") if isinstance(feature, dict) else None
        cells = column.to_pylist()
        if names and pa.types.is_integer(column.type):  # a ClassLabel, where -1 is a missing label
            wrong = next((c for c in cells if c is not None and not -1 <= c < len(names)), None)
            if wrong is not None:
                raise SetError(f"{path}: column {name!r} has {wrong}, but {len(names)} class names")
            cells = [names[c] if c is not None and c >= 0 else None for c in cells]
        columns.append(cells)
    return list(table.column_names), columns


def saved_splits(folder: Path) -> list[str] | None:
    """Splits of a saved ``DatasetDict``; [] for a saved ``Dataset``; None for another folder."""
    if (folder / _SPLITS).is_file():
        names = map(str, _listed(folder / _SPLITS, "splits"))
        # A name that is a path could lead out of the folder.
        return [name for name in names if Path(name).name == name]
    return [] if (folder / _STATE).is_file() else None


def _read_saved(folder: Path) -> tuple[list[str], list[Any]]:
    """Columns of a saved ``Dataset``, from the arrow files that it lists.

    Raises:
        SetError: It lists none, or one outside the folder.
    """
    tables = []
    for entry in _listed(folder / _STATE, "_data_files"):
        name = str(entry.get("filename") if isinstance(entry, dict) else entry)
        if Path(name).name != name:
            raise SetError(
                f"{folder / _STATE} names {name!r}, which is not a file of {folder}; save it again"
            )
        with pa.memory_map(str(folder / name)) as source:
            stream = pa.ipc.open_stream(source)
            check_batches(folder / name, stream.schema, stream)
            source.seek(0)
            tables.append(pa.ipc.open_stream(source).read_all())
            tables[-1].validate(full=True)  # else wrong lengths read past the file, and crash
    if not tables:
        raise SetError(f"{folder / _STATE} names no data files; save the dataset again")
    return _arrow_columns(folder, pa.concat_tables(tables))


def _listed(path: Path, name: str) -> list[Any]:
    """What a file of ``datasets`` lists under a name; empty if it lists nothing."""
    found = _json_object(path).get(name) or []
    if not isinstance(found, list):
        raise SetError(f"{path}: {name} is not a list; save the dataset again")
    return found


def _json_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_JSON:
        raise SetError(f"{path} is larger than 64 MB, so it is not what its name says")
    value = json.loads(_text(path))
    if not isinstance(value, dict):
        raise SetError(f"{path} is not a JSON object; save the dataset again")
    return value


def _read_npz(path: Path) -> tuple[list[str], list[Any]]:
    # A pickle can run code; a single array is only mapped.
    file = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise SetError(f"{path} holds a single array; save images and labels with np.savez")
    columns = []
    with file:
        check_npz(path)
        for key in file.files:
            try:
                columns.append(file[key])
            except ValueError as error:
                raise SetError(
                    f"{path}: array {key!r} cannot be read ({error}); save it with np.savez as "
                    "numbers or text, not as Python objects"
                ) from None
        return list(file.files), columns


def listing(names: Iterable[str]) -> str:
    """Names, quoted for a message."""
    return ", ".join(repr(name) for name in names)


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
}
FILE_KINDS = frozenset(_READERS)
"""Suffixes of the files that can be read."""
