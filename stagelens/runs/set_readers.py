"""Files and images that people have, read as ``write_set`` takes them.

Images of a folder stay paths until ``write_set`` takes them one by one, so a large folder costs no
memory. Labels and ids stay the text that the file holds: ``007`` is not 7.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..contracts import SetError

_Table = dict[str, Any]


_Roles = dict[str, str | None]


_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)


_DAMAGE = (pa.ArrowException, zipfile.BadZipFile, zlib.error)


_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


_NPZ_IMAGES = ("images", "image", "x", "X", "test_images", "x_test", "X_test")


_NPZ_LABELS = ("label", "labels", "y")


_SPLITS = frozenset({"train", "val", "valid", "validation", "test"})


_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan", re.ASCII | re.I)


_PADDED = re.compile(r"[+-]?0\d+", re.ASCII)


_TRUTH = {"True": True, "true": True, "False": False, "false": False}


def read_set_file(
    path: str | Path,
    *,
    label_column: str | None = "label",
    id_column: str | None = None,
    text_column: str | None = None,
    image_column: str | None = None,
) -> dict[str, Any]:
    """Read a file or folder of examples as keyword arguments of ``write_set``.

    - An image folder has a ``metadata.csv`` (or ``.jsonl``, ``.parquet``) with a column
      ``file_name``, as the ``imagefolder`` of Hugging Face ``datasets`` has it, or one subfolder
      per class. Ids are the file names.
    - ``.csv``, ``.tsv`` and ``.jsonl`` hold texts, or paths of images relative to their folder.
    - ``.parquet`` holds texts, or images as bytes, paths or ``{bytes, path}`` as ``datasets``
      writes them; the class names that ``datasets`` keeps there are used.
    - ``.npz`` holds images as ``images``, ``x`` or ``x_test`` with labels ``labels``, ``y`` or
      ``y_test``; other arrays with one value per image are metadata.

    Without ``text_column`` and ``image_column`` the input is the column ``text``, ``image`` or
    ``file_name``. A column ``example_id`` holds the ids unless ``id_column`` names another.

    Args:
        path: The file or folder.
        label_column: Where the labels stand; None or "" for a set without labels. Class folders
            need no such column.
        id_column: Where unique ids stand; row numbers where None.
        text_column: Where the texts stand.
        image_column: Where the images or their paths stand; for ``.npz`` the key of the images.

    Returns:
        ``images`` or ``texts``, ``labels``, ``ids``, ``columns`` and ``left_out``.

    Raises:
        SetError: The file cannot be read as a set; names file and row, and what to do.
    """
    path = Path(path)
    given = {"label": label_column, "id": id_column, "text": text_column, "image": image_column}
    roles = {role: name or None for role, name in given.items()}  # a command line gives ""
    if roles["text"] and (roles["image"] or path.is_dir() or path.suffix.lower() == ".npz"):
        raise SetError(
            f"{path} was asked for images and texts at once; name a text column of a .csv, .tsv, "
            ".jsonl or .parquet file, or read images without one"
        )
    if path.is_dir():
        return _read_folder(path, roles)
    return _keywords(path, _read_table(path), roles)


def _keywords(path: Path, table: _Table, roles: _Roles) -> dict[str, Any]:
    """Columns of a table to keyword arguments of ``write_set``."""
    left_out: list[str] = []
    if path.suffix.lower() == ".npz":
        roles, left_out = _npz_roles(path, table, roles)
    if roles["text"] is None and roles["image"] is None:
        found = [name for name in ("text", "image", "file_name") if name in table]
        if len(found) != 1:
            raise SetError(
                f"{path}: name the column that holds the input (text_column or image_column); "
                f"it has {_listing(table)}"
            )
        roles = {**roles, "text" if found == ["text"] else "image": found[0]}
    if roles["id"] is None and "example_id" in table:
        roles = {**roles, "id": "example_id"}
    for role, name in roles.items():
        if name is not None and name not in table:
            advice = ", or label_column='' for a set without labels" if role == "label" else ""
            raise SetError(
                f"{path} has no {name!r}; it has {_listing(table)}: name one of these as "
                f"{role}_column{advice}"
            )
    typed = _typed if path.suffix.lower() in (".csv", ".tsv") else lambda values: values
    keywords = {
        "labels": table[roles["label"]] if roles["label"] is not None else None,
        "ids": table[roles["id"]] if roles["id"] is not None else None,
        "columns": {n: typed(values) for n, values in table.items() if n not in roles.values()},
        "left_out": left_out,
    }
    if roles["text"] is not None:
        return {"texts": table[roles["text"]], **keywords}
    images = table[str(roles["image"])]
    if not isinstance(images, np.ndarray):
        images = [_image_cell(path, row, cell) for row, cell in enumerate(images, start=1)]
    return {"images": images, **keywords}


def _image_cell(path: Path, row: int, cell: Any) -> Path | bytes:
    """A table's image: bytes, a path, or ``{bytes, path}``; of paths only those inside."""
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        raise SetError(f"{path}: row {row} has no image; give its path or bytes, or delete the row")
    return _inside(path.parent, cell, f"{path}: row {row}")


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file ``name`` in ``folder``.

    Raises:
        SetError: It leads out of the folder, also by a link, or is absent.
    """
    target = folder / name
    try:
        inside = ".." not in target.relative_to(folder).parts
        inside = inside and target.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):  # elsewhere, a null byte, a loop of links
        inside = False
    if not inside:
        raise SetError(
            f"{where}: {name!r} leads out of {folder}; copy the image into that folder and name "
            "it relative to it"
        )
    if not target.is_file():
        raise SetError(f"{where}: {name!r} is not in {folder}; add the file or delete the row")
    return target


def _read_folder(folder: Path, roles: _Roles) -> dict[str, Any]:
    """An image folder: described by a metadata file, or with one subfolder per class."""
    left_out: list[str] = []
    files = sorted(_walk(folder, left_out))
    described = [name for name in files if name.rpartition("/")[2] in _METADATA]
    if len(described) > 1 or (described and "/" in described[0]):
        raise SetError(
            f"{folder} holds {_listing(described)}; give a folder with one of {_listing(_METADATA)}"
        )
    if described:
        path = _inside(folder, described[0], str(folder))
        table = _read_table(path)
        roles = {**roles, "image": roles["image"] or "file_name"}
        if roles["id"] is None and roles["image"] in table:
            table = {"example_id": table[str(roles["image"])], **table}
        keywords = _keywords(path, table, roles)
        paths = [image for image in keywords["images"] if isinstance(image, Path)]
        read = {os.path.relpath(image, folder).replace(os.sep, "/") for image in paths}
        reason = f"not listed in {described[0]}"
    else:
        images = [name for name in files if Path(name).suffix.lower() in _SUFFIXES]
        labelled = roles["label"] is not None
        stray = next((name for name in images if labelled and name.count("/") != 1), None)
        if not images or stray or not {"label", None}.issuperset(roles.values()):
            found = f"{stray!r} lies outside a class folder" if stray else f"{len(images)} images"
            raise SetError(
                f"{folder} has no metadata.csv that names columns ({found}); add one with the "
                "columns file_name and label, or move every image to CLASS/FILE, or give "
                "label_column='' for images without labels"
            )
        keywords = {
            "images": [_inside(folder, name, str(folder)) for name in images],
            "labels": [name.split("/")[0] for name in images] if labelled else None,
            "ids": images,
            "columns": {},
        }
        read, reason = set(images), "not an image that can be read"
    left_out += [f"{n} ({reason})" for n in files if n not in read and n not in described]
    return {**keywords, "left_out": left_out}


def _walk(folder: Path, left_out: list[str]) -> Iterator[str]:
    """Files below ``folder`` with forward slashes, no hidden ones; links to folders are noted."""
    for root, folders, names in os.walk(folder):
        base = Path(root).relative_to(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [base / name for name in folders if Path(root, name).is_symlink()]
        left_out += [f"{link.as_posix()} (a link to a folder)" for link in links]
        yield from ((base / name).as_posix() for name in names if not name.startswith("."))


def _read_table(path: Path) -> _Table:
    """Column name to values of a file with rows, or key to array of a ``.npz`` file.

    Raises:
        SetError: Unreadable, without rows, of an unknown kind, or a column stands there twice.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        kinds = ", ".join(_READERS)
        raise SetError(f"{path}: give a folder of images or a file of one of the kinds {kinds}")
    try:
        if not path.is_file() or path.stat().st_size == 0:
            raise SetError(f"{path} is empty or no file; check the path, or save the file again")
        header, columns = reader(path)
    except (OSError, ValueError, EOFError, *_DAMAGE) as error:
        raise SetError(f"{path} is damaged or not what its name says: {error}") from None
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise SetError(f"{path}: column {twice!r} stands there twice; rename one of them")
    if not columns or (isinstance(columns[0], list) and not columns[0]):
        raise SetError(f"{path} has no rows; an evaluation set needs at least one example")
    return dict(zip(header, columns, strict=True))


def _utf8(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SetError(
            f"{path}: line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save the "
            "file with the encoding UTF-8"
        ) from None


def _read_csv(path: Path) -> tuple[list[str], list[Any]]:
    # Not pandas: it fills short rows up, and takes "NA" and "007", which can be labels, for others.
    csv.field_size_limit(2**31 - 1)
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(_utf8(path), newline=""), delimiter=separator, strict=True)
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row and len(row) != len(rows[0] if rows else row):
                raise csv.Error(f"{len(row)} fields, but the header has {len(rows[0])}")
            if row:
                rows.append(row)
    except csv.Error as error:
        raise SetError(
            f"{path}: line {reader.line_num}: {error}; mend that line, with quotes around fields "
            f"that hold {separator!r} or a line break"
        ) from None
    header = [name or f"Unnamed: {i}" for i, name in enumerate(rows[0] if rows else [])]
    return header, [list(column) for column in zip(*rows[1:], strict=True)]


def _read_jsonl(path: Path) -> tuple[list[str], list[Any]]:
    # Line by line: pandas and pyarrow take texts such as "007" and "2024-01-01" for something else.
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(_utf8(path).split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise SetError(f"{path}: line {number} is not JSON: {error}; mend that line") from None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip():
            raise SetError(f"{path}: line {number} is no JSON object; write one {{...}} a line")
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, [[row.get(name) for row in rows] for name in header]


def _read_parquet(path: Path) -> tuple[list[str], list[Any]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
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


def _read_npz(path: Path) -> tuple[list[str], list[Any]]:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise SetError(f"{path} holds a single array; save images and labels with np.savez")
    columns = []
    with file:
        for key in file.files:
            try:
                columns.append(file[key])
            except ValueError as error:
                raise SetError(
                    f"{path}: array {key!r} cannot be read ({error}); save it with np.savez as "
                    "numbers or text, not as Python objects"
                ) from None
        return list(file.files), columns


def _npz_roles(path: Path, table: _Table, roles: _Roles) -> tuple[_Roles, list[str]]:
    """Which arrays of a ``.npz`` file are images and labels; the ones that do not belong go."""
    images = roles["image"] or next((key for key in _NPZ_IMAGES if key in table), None)
    if images is None or images not in table:
        raise SetError(
            f"{path} has no array {images or 'of images'}; name it as image_column, it has "
            f"{_listing(table)}"
        )
    label, words = roles["label"], images.split("_")
    if label == "label":  # the default: x_test goes with y_test, images with labels
        split = [word for word in words if word in _SPLITS]
        beside = ["_".join(w) for n in _NPZ_LABELS for w in ([n, *split], [*split, n])]
        label = next((key for key in (*beside, *_NPZ_LABELS) if key in table), label)
    left_out = []
    for key in [key for key in table if key not in (images, label, roles["id"])]:
        other = _SPLITS & set(key.split("_")) - set(words)
        if other or table[key].shape != table[images].shape[:1]:
            del table[key]
            left_out.append(f"{key} (an array that does not go with {images})")
    return {**roles, "image": images, "label": label}, left_out


def _typed(values: list[Any]) -> list[Any]:
    """Metadata cells of a CSV file as truth values or numbers where all read so, else as text.

    Cells such as ``007`` keep a column text: as numbers they would lose their zeros.
    """
    given = [v for v in values if v]
    convert: Any = str
    if all(v in _TRUTH for v in given):
        convert = _TRUTH.__getitem__
    elif not any(_PADDED.fullmatch(v) for v in given):
        if all(_INTEGER.fullmatch(v) for v in given):
            convert = int
        elif all(_DECIMAL.fullmatch(v) for v in given):
            convert = float
    return [convert(v) if v else None for v in values]


def _listing(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


_READERS = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
}
