"""Evaluation sets of a run: written once, then read a few rows at a time. No torch here.

``sets/<name>/set.json`` describes a set, ``sets/<name>/examples.parquet`` holds it: ``example_id``,
``label`` (class name or null), the input, and the user's metadata columns. A text input is a column
``text``; an image is a column ``image`` with the bytes of a file: the original file, PNG for an
array of uint8, ``.npy`` (exact, little-endian) for any other array. Row groups are small and pages
carry checksums, so a page of 25 rows reads little and damage is noticed.
"""

from __future__ import annotations

import hashlib
import io
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..contracts import Example, RunError, SetError, Task
from .files import CheckedFiles, read_json, write_file, write_json
from .schema import FileRef, SetFile, canonical_json, check_name
from .set_readers import Channels, as_array, as_image, decode_image

# fmt: off
RESERVED_COLUMNS = frozenset({
    "example_id", "label", "image", "text",
    "set", "stage", "behaviour", "final", "without", "effect", "estimator", "prediction",
    "prediction_without", "confidence", "confidence_without", "within_noise", "trust",
})
# fmt: on
"""Names that metadata columns cannot have: the set's own, and those of the effect table."""

_GROUP_ROWS, _GROUP_BYTES = 256, 4 << 20
_NPY = b"\x93NUMPY"


class EvaluationSet:
    """An evaluation set on disk; rows are read when asked for.

    Attributes:
        name: As in the run folder.
        kind: What an input is, ``"image"`` or ``"text"``.
        count: Number of examples.
        digest: Over ids, inputs, labels and metadata; results are keyed by it.
        description: As given when the set was added.
        columns: Names of the metadata columns, in order.
    """

    def __init__(self, root: Path, facts: SetFile) -> None:
        self.facts = facts
        self.name, self.kind, self.count = facts.name, facts.kind, facts.count
        self.digest, self.description = facts.digest, facts.description
        self.columns = tuple(facts.columns)
        self._files = CheckedFiles(root)
        self._path = self._files.present(facts.table)
        with _reading(self._path):
            self._metadata = pq.read_metadata(self._path)
            names = ["example_id", "label", self.kind, *self.columns]
            if self._metadata.schema.to_arrow_schema().names != names:
                raise ValueError(f"its columns are not {names}")
            if self._metadata.num_rows != self.count:
                raise ValueError(f"it has {self._metadata.num_rows} rows, not {self.count}")
        self._starts = [0]
        for group in range(self._metadata.num_row_groups):
            self._starts.append(self._starts[-1] + self._metadata.row_group(group).num_rows)
        self._rows: dict[str, int] | None = None

    @classmethod
    def open(cls, run_path: str | Path, name: str) -> EvaluationSet:
        """Open a set of a run folder; reads set.json and the table's footer only.

        Raises:
            SetError: The name is none that a set can have.
            RunError: The set is missing, damaged or foreign; names the file.
        """
        root = Path(run_path)
        path = root / "sets" / _usable(name) / "set.json"
        facts = read_json(path, SetFile)
        if facts.name != name:
            raise RunError(f"{path}: name: {facts.name!r}, but its folder is {name!r}; rename it")
        return cls(root, facts)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"EvaluationSet({self.name!r}, kind={self.kind!r}, count={self.count})"

    def verify(self) -> None:
        """Compare the table with its recorded sha256; reads the whole file.

        Raises:
            RunError: It was changed after it was written.
        """
        self._files.path(self.facts.table)

    def table(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per example, in order: ``example_id``, ``label`` and metadata; never the inputs.

        Args:
            columns: Metadata columns to read beside id and label; None for all.

        Raises:
            SetError: There is no such column; lists those that exist.
        """
        wanted = self.columns if columns is None else tuple(columns)
        for name in wanted:
            if name not in (*self.columns, "example_id", "label"):
                raise SetError(
                    f"set {self.name!r} has no column {name!r}; it has "
                    f"{', '.join(self.columns) or 'no metadata'}"
                )
        names = list(dict.fromkeys(("example_id", "label", *wanted)))
        with self._open() as file:
            table = file.read(columns=names)
        return pd.DataFrame({name: _series(table[name]) for name in names})

    def examples(self, start: int = 0, stop: int | None = None) -> list[Example]:
        """Examples of the rows ``start`` to ``stop`` (exclusive; None for the last), as a slice."""
        return self._at(range(self.count)[start:stop])

    def batches(self, size: int) -> Iterator[list[Example]]:
        """All examples in order, ``size`` at a time; holds one row group and one batch."""
        if size < 1:
            raise ValueError(f"batches of {size} examples; give a size of at least 1")
        batch: list[Example] = []
        with self._open() as file:
            for group in range(len(self._starts) - 1):
                for example in self._group(file, group):
                    batch.append(example)
                    if len(batch) == size:
                        yield batch
                        batch = []
        if batch:
            yield batch

    def by_id(self, ids: Sequence[str]) -> list[Example]:
        """The examples of these ids, in the order asked for; reads only their row groups.

        Raises:
            SetError: An id is none of the set's.
        """
        if self._rows is None:
            with self._open() as file:
                names = file.read(columns=["example_id"])["example_id"].to_pylist()
            self._rows = {name: row for row, name in enumerate(names)}
        unknown = [name for name in ids if name not in self._rows]
        if unknown:
            raise SetError(
                f"set {self.name!r} has no example {_few(unknown)}; choose one of its "
                f"{self.count:,} ids"
            )
        return self._at([self._rows[name] for name in ids])

    def image_png(self, example_id: str, side: int | None = None) -> bytes:
        """One image as PNG bytes for a page to show; see ``display_png``."""
        return self.image_pngs([example_id], side)[0]

    def image_pngs(self, ids: Sequence[str], side: int | None = None) -> list[bytes]:
        """Images as PNG bytes for a page to show, in the order of ``ids``.

        Raises:
            SetError: The set holds texts, or an id is none of the set's.
        """
        if self.kind != "image":
            raise SetError(f"set {self.name!r} holds texts, no images; show the text instead")
        return [display_png(example.input["image"], side) for example in self.by_id(ids)]

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        with (
            _reading(self._path),
            pq.ParquetFile(
                self._path, metadata=self._metadata, page_checksum_verification=True
            ) as file,
        ):
            yield file

    def _at(self, rows: Sequence[int]) -> list[Example]:
        found: dict[int, Example] = {}
        with self._open() as file:
            for group, members in groupby(
                sorted(set(rows)), key=lambda row: bisect_right(self._starts, row) - 1
            ):
                wanted = list(members)
                local = [row - self._starts[group] for row in wanted]
                found.update(zip(wanted, self._group(file, group, local), strict=True))
        return [found[row] for row in rows]

    def _group(
        self, file: pq.ParquetFile, group: int, rows: list[int] | None = None
    ) -> Iterator[Example]:
        """Examples of a row group, decoded one at a time."""
        table = file.read_row_group(group)
        for row in (table if rows is None else table.take(rows)).to_pylist():
            content = row[self.kind]
            if self.kind == "image":
                try:
                    content = _decode(content)
                except ValueError as error:
                    raise RunError(
                        f"{self._path}: image of example {row['example_id']!r} {error}"
                    ) from None
            yield Example(
                example_id=row["example_id"],
                input={self.kind: content},
                label=row["label"],
                columns={name: row[name] for name in self.columns},
            )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What pyarrow says of a damaged file, as an error that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path} is damaged or foreign: {error}; restore it, or add the set again"
        ) from None


def _series(column: pa.ChunkedArray) -> pd.Series:
    """As pandas has it, save that integers and truth values with gaps stay what they are."""
    gapped: dict[Any, Any] = {}
    if column.null_count and pa.types.is_integer(column.type):
        gapped = {column.type: pd.Int64Dtype()}
    elif column.null_count and pa.types.is_boolean(column.type):
        gapped = {column.type: pd.BooleanDtype()}
    return column.to_pandas(types_mapper=gapped.get)


@dataclass(frozen=True)
class SetReport:
    """What ``write_set`` found. Nothing of it is dropped from the set.

    Attributes:
        name: The set's.
        count: Number of examples.
        missing_labels: Ids of the examples without a label.
        duplicate_inputs: (id, id of the first example with the same input).
        left_out: What the file or folder held besides, each with the reason.
    """

    name: str
    count: int
    missing_labels: list[str] = field(default_factory=list)
    duplicate_inputs: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """What a person should know, in one line."""
        parts = [f"Set {self.name!r} has {self.count:,} example{'s' * (self.count != 1)}"]
        if self.missing_labels:
            missing = f"{len(self.missing_labels):,} without a label"
            parts.append(f"{missing} ({_few(self.missing_labels)})")
        if self.duplicate_inputs:
            pairs = [f"{name} = {first}" for name, first in self.duplicate_inputs]
            parts.append(f"{len(pairs):,} with the input of an earlier one ({_few(pairs, str)})")
        if self.left_out:
            parts.append(f"{len(self.left_out):,} left out: {_few(self.left_out, str)}")
        return "; ".join(parts) + "."


def write_set(
    run_path: str | Path,
    task: Task | None,
    name: str,
    *,
    images: Any = None,
    texts: Any = None,
    labels: Any = None,
    ids: Any = None,
    columns: Mapping[str, Any] | None = None,
    description: str = "",
    channels: Channels | None = None,
    left_out: Sequence[str] = (),
) -> SetReport:
    """Add an evaluation set to a run folder. The same content again changes nothing.

    Args:
        run_path: The run folder.
        task: Checks the labels and the kind of input; None where the run's task is not installed.
        name: Of the set.
        images: N images: an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), or a list of
            images as ``as_image`` takes them.
        texts: N strings; either these or ``images``.
        labels: N labels as ``task.check_label`` takes them; None, NaN and "" are missing.
        ids: N unique ids, kept as text; row numbers from 0 where None.
        columns: Metadata, N values of one kind per column; lists and dicts are kept as JSON text.
        description: One sentence for people.
        channels: Where C stands in arrays, for shapes that do not say so themselves.
        left_out: What a reader found and left out, for the report.

    Raises:
        SetError: Something does not fit; names the example or column and what to do.
    """
    root, folder = Path(run_path), f"sets/{_usable(name)}"
    if not root.is_dir():
        raise SetError(f"{root} is no folder; give the path of a run folder")
    kind, inputs = _inputs(name, images, texts)
    if task is not None and task.input_kind != kind:
        raise SetError(f"set {name!r} holds {kind}s, but the run's task takes {task.input_kind}s")
    id_list = _ids(name, ids, len(inputs))
    rows = _Rows(name, kind, id_list, _labels(name, task, id_list, labels), inputs, {}, channels)
    for column, values in () if columns is None else columns.items():
        rows.add_column(column, values)
    path = root / folder / "set.json"
    old = read_json(path, SetFile) if path.exists() else None
    if old is not None:
        rows.stream(lambda _: None)
        if rows.digest != old.digest:
            raise SetError(
                f"the run has a set {name!r} with other content ({old.count:,} examples); choose "
                f"another name, or delete {path.parent} to replace it"
            )
    table = old.table if old is not None and _intact(root, old.table) else None
    if table is None:
        table = write_file(root, f"{folder}/examples.parquet", rows.write)
    missing = [key for key, label in zip(rows.ids, rows.labels, strict=True) if label is None]
    facts = SetFile(
        name=name,
        kind=kind,
        count=len(rows.ids),
        columns=list(rows.columns),
        description=description or (old.description if old is not None else ""),
        digest=rows.digest,
        table=table,
        missing_labels=len(missing),
        duplicate_inputs=len(rows.duplicates),
    )
    if facts != old:
        write_json(path, facts)
    return SetReport(name, facts.count, missing, rows.duplicates, list(left_out))


@dataclass
class _Rows:
    """Checked values on their way to disk; ``digest`` and ``duplicates`` stand after ``stream``."""

    name: str
    kind: Literal["image", "text"]
    ids: list[str]
    labels: list[str | None]
    inputs: Sequence[Any]
    columns: dict[str, pa.Array]
    channels: Channels | None
    digest: str = ""
    duplicates: list[tuple[str, str]] = field(default_factory=list)

    def add_column(self, column: Any, values: Any) -> None:
        """Check one metadata column and give it one type."""
        where = f"set {self.name!r}: column {column!r}"
        if not isinstance(column, str) or not column or column in self.columns:
            raise SetError(f"{where} needs a name of its own, as text; rename it")
        if column in RESERVED_COLUMNS:
            raise SetError(
                f"{where} has a name that StageLens uses itself; rename it, for instance to "
                f"{'own_' + column!r}"
            )
        try:
            if isinstance(values, pa.Array | pa.ChunkedArray):
                values = values.to_pylist()
            values = as_array(values) if hasattr(values, "detach") else values
            array = pa.array(values, from_pandas=True)  # NaN and NA become null
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            if pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if pa.types.is_nested(array.type):
                cells = [None if v is None else json.dumps(v) for v in array.to_pylist()]
                array = pa.array(cells, pa.string())
            if pa.types.is_null(array.type) or pa.types.is_large_string(array.type):
                array = array.cast(pa.string())
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SetError(
                f"{where} cannot be kept ({error}); give values of one kind, for instance text"
            ) from None
        plain = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
        if not any(is_it(array.type) for is_it in (*plain, *_TEXT_AND_TIME)):
            raise SetError(f"{where} holds {array.type}; make it numbers or text, or leave it out")
        _same_length(self.name, len(self.ids), f"column {column!r}", len(array))
        self.columns[column] = array

    def write(self, path: Path) -> None:
        """Write the parquet file."""
        kind = pa.binary() if self.kind == "image" else pa.string()
        fields = [("example_id", pa.string()), ("label", pa.string()), (self.kind, kind)]
        fields += [(name, array.type) for name, array in self.columns.items()]
        schema = pa.schema(fields)
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            self.stream(lambda columns: writer.write_table(pa.table(columns, schema)))

    def stream(self, sink: Callable[[list[Any]], object]) -> None:
        """Hand the rows to ``sink`` by row groups, and take their digest.

        The digest is over values (pixels of arrays, bytes of files), each with its length, so it
        depends neither on pyarrow's version nor on the row groups.
        """
        order = sorted(self.columns)
        hasher = hashlib.sha256(canonical_json(["stagelens-set-1", self.kind, order]).encode())
        metadata = [self.columns[name].to_pylist() for name in order]
        first: dict[bytes, str] = {}
        self.duplicates = []
        stored: list[Any] = []
        start = size = 0
        for row, (key, given) in enumerate(zip(self.ids, self.inputs, strict=True)):
            try:
                value, content, same = self._input(given)
                cells = (key, self.labels[row], *(values[row] for values in metadata))
                for part in (content, *map(_token, cells)):
                    hasher.update(f"{len(part)}:".encode() + part)
            except UnicodeEncodeError:
                raise SetError(
                    f"set {self.name!r}: example {key!r} has text that is no Unicode; mend it"
                ) from None
            except ValueError as error:
                source = (
                    f" ({given})" if isinstance(given, str | Path) and self.kind == "image" else ""
                )
                raise SetError(
                    f"set {self.name!r}: {self.kind} of example {key!r}{source} {error}"
                ) from None
            earlier = first.setdefault(hashlib.sha256(same).digest(), key)
            if earlier != key:
                self.duplicates.append((key, earlier))
            stored.append(value)
            size += len(value)
            if len(stored) == _GROUP_ROWS or size >= _GROUP_BYTES or row == len(self.ids) - 1:
                rest = [array.slice(start, len(stored)) for array in self.columns.values()]
                end = row + 1
                sink([self.ids[start:end], self.labels[start:end], stored, *rest])
                start, size, stored = end, 0, []
        self.digest = hasher.hexdigest()

    def _input(self, given: Any) -> tuple[str | bytes, bytes, bytes]:
        """An input as it is stored, as the digest covers it, and as duplicates are known by."""
        if self.kind == "text":
            if not isinstance(given, str):
                raise ValueError(f"is {type(given).__name__}, no text; give a string")
            return given, given.encode(), given.encode()
        pixels, data = as_image(given, self.channels)
        same = f"{pixels.dtype.str}{pixels.shape}".encode() + pixels.tobytes()
        return (_encode(pixels), same, same) if data is None else (data, data, same)


_TEXT_AND_TIME = (pa.types.is_string, pa.types.is_temporal, pa.types.is_decimal)


def _token(value: Any) -> bytes:
    """A value of a cell, for the digest: the same whatever library gave it."""
    if isinstance(value, float):
        return b"f" + value.hex().encode()
    if hasattr(value, "isoformat"):
        return b"t" + value.isoformat().encode()
    return f"{type(value).__name__}:{value}".encode()


def _inputs(name: str, images: Any, texts: Any) -> tuple[Literal["image", "text"], Any]:
    if (images is None) == (texts is None):
        raise SetError(f"set {name!r} needs images or texts, and not both; give one of them")
    kind: Literal["image", "text"] = "text" if images is None else "image"
    given = texts if images is None else images
    if isinstance(given, str | bytes | Path | Image.Image):
        raise SetError(f"set {name!r} was given a single {kind}; give a list of them")
    if kind == "image" and hasattr(given, "ndim"):
        try:
            array = as_array(given)
        except ValueError as error:
            raise SetError(f"set {name!r}: images {error}") from None
        # (H, W, C) of a single image looks like H images of W x C pixels; a tiny square does not.
        single = array.ndim == 3 and array.shape[2] in (1, 3, 4) != array.shape[1]
        if array.dtype != object and (array.ndim not in (3, 4) or single):
            raise SetError(
                f"set {name!r}: images have the shape {array.shape}; give (N, H, W), (N, H, W, C) "
                "or (N, C, H, W), so images[None] for a single one"
            )
        given = array
    inputs = given if isinstance(given, np.ndarray) else list(given)
    if len(inputs) == 0:
        raise SetError(f"set {name!r} is empty; an evaluation set needs at least one example")
    return kind, inputs


def _same_length(name: str, expected: int, what: str, found: int) -> None:
    if found != expected:
        raise SetError(
            f"set {name!r} has {expected} examples but {found} values of {what}; give one per "
            "example, in the same order"
        )


def _scalars(name: str, what: str, values: Any, count: int) -> list[Any]:
    """One plain value per example, None where it is missing (None, NaN, NA or "")."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    _same_length(name, count, what, len(listed))
    plain: list[Any] = []
    for row, value in enumerate(listed):
        value = value[0] if isinstance(value, list) and len(value) == 1 else value  # (N, 1)
        value = value.item() if hasattr(value, "item") else value
        if not pd.api.types.is_scalar(value):
            raise SetError(f"set {name!r}: row {row} of {what} is {value!r}; give one value each")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of integers with gaps comes as floats
        plain.append(None if pd.isna(value) or value == "" else value)
    return plain


def _ids(name: str, ids: Any, count: int) -> list[str]:
    if ids is None:
        return [str(row) for row in range(count)]
    given = _scalars(name, "ids", ids, count)
    if None in given:
        raise SetError(f"set {name!r}: row {given.index(None)} has no id; give every example one")
    texts = [str(value) for value in given]
    twice = [text for text, times in Counter(texts).items() if times > 1]
    if twice:
        raise SetError(
            f"set {name!r}: {len(twice)} ids stand there more than once ({_few(twice)}); ids must "
            "be unique, leave them out to use row numbers"
        )
    return texts


def _labels(name: str, task: Task | None, ids: list[str], labels: Any) -> list[str | None]:
    if labels is None:
        return [None] * len(ids)
    checked: list[str | None] = []
    refused: list[str] = []
    for key, value in zip(ids, _scalars(name, "labels", labels, len(ids)), strict=True):
        try:
            label = value if task is None or value is None else task.check_label(value)
            checked.append(None if label is None else str(label))
        except ValueError as error:
            refused.append(f"example {key!r}: {error}")
    if refused:
        more = f"; so have {len(refused) - 1:,} more examples" if len(refused) > 1 else ""
        raise SetError(f"set {name!r}: {refused[0]}{more}; correct the labels or leave them empty")
    return checked


def _usable(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise SetError(f"evaluation set: {error}") from None


def _intact(root: Path, table: FileRef) -> bool:
    with suppress(RunError):
        CheckedFiles(root).path(table)
        return True
    return False


def _few(names: Sequence[str], show: Callable[[str], str] = repr) -> str:
    return ", ".join(map(show, names[:3])) + (", ..." if len(names) > 3 else "")


def _encode(pixels: np.ndarray) -> bytes:
    """An array as the bytes of a file, without loss: PNG for uint8, ``.npy`` for the rest."""
    file = io.BytesIO()
    if pixels.dtype == np.uint8:
        Image.fromarray(pixels).save(file, "PNG")
    else:
        np.lib.format.write_array(file, pixels, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def _decode(data: bytes) -> np.ndarray:
    """The array of stored bytes.

    Raises:
        ValueError: They are damaged.
    """
    if not data.startswith(_NPY):
        return decode_image(data)
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    # Not read_array: that allocates what the header claims before it looks at the data.
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()


def display_png(image: np.ndarray, side: int | None = None) -> bytes:
    """An image for people, as PNG: (H, W), (H, W, 3) or (H, W, 4).

    Values of uint8 are shown as they are, truth values as black and white, floats between 0 and 1
    from black to white. Any other range is stretched from its own lowest to its highest value.

    Args:
        image: The pixels.
        side: Length of the longer side in pixels; None keeps the image's own size. Enlarged pixels
            stay sharp squares.
    """
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
        integers = pixels.dtype.kind in "ui"
        pixels = pixels.astype(np.float64)
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1 or integers:
            pixels = (pixels - low) / (high - low) if high > low else np.full_like(pixels, 0.5)
        pixels = np.round(pixels * 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if side is not None:
        scale = side / max(picture.size)
        size = [max(1, round(length * scale)) for length in picture.size]
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        picture = picture.resize((size[0], size[1]), how)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
