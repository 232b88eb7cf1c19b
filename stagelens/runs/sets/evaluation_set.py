"""Evaluation sets of a run: written once, then read a few rows at a time, without torch.

``sets/<name>/set.json`` describes a set, ``sets/<name>/examples.parquet`` holds it: ``example_id``,
``label`` (class name or null), the input, and the user's metadata columns. A text input is a column
``text``, or several columns such as ``prompt`` and ``completion``; an image is a column ``image``
with the bytes of a file: the original file, PNG for an array of uint8, ``.npy`` (exact,
little-endian) for any other array. Row groups are small and pages carry checksums, so showing 25
rows reads little, and damage is noticed.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stagelens.contracts import Example, RunError, SetError, Task

from ..checked_files import CheckedFiles
from ..files import read_json
from ..schema import SetFile, check_name
from .images import decode_pixels, display_png

TARGET = "target"
"""Column of labels that answers come near to, without being right or wrong: numbers, say."""


class EvaluationSet:
    """An evaluation set on disk; rows are read on demand.

    Attributes:
        name: As in the run folder.
        kind: What an input is, ``"image"`` or ``"text"``.
        inputs: Names of the input's columns: the kind itself, or for instance ``("prompt",
            "completion")``.
        count: Number of examples.
        digest: Over ids, inputs, labels and metadata; the key of results.
        description: As given when the set was added.
        columns: Names of the metadata columns, in order; the first is :data:`TARGET` where labels
            are something to come near.
    """

    def __init__(self, root: Path, facts: SetFile) -> None:
        self.facts = facts
        self.name, self.kind, self.count = facts.name, facts.kind, facts.count
        self.digest, self.description = facts.digest, facts.description
        self.inputs = tuple(facts.inputs) or (facts.kind,)
        self._stored = tuple(facts.columns)
        self.columns = (*([TARGET] if facts.target else []), *self._stored)
        self._files = CheckedFiles(root)
        self._path = self._files.present(facts.table)
        with _reading(self._path):
            # With the checksums of pages, this finds damage without hashing the whole file.
            if facts.footer_sha256 != footer_sha256(self._path):
                raise ValueError("its footer was changed")
            self._metadata = pq.read_metadata(self._path)
            names = ["example_id", "label", *self.inputs, *self._stored]
            if self._metadata.schema.to_arrow_schema().names != names:
                raise ValueError(f"its columns are not {names}")
            if self._metadata.num_rows != self.count:
                raise ValueError(f"it has {self._metadata.num_rows} rows, not {self.count}")
        self._starts = [0]
        for group in range(self._metadata.num_row_groups):
            self._starts.append(self._starts[-1] + self._metadata.row_group(group).num_rows)
        self._ids: pa.Array | None = None

    @classmethod
    def open(cls, run_path: str | Path, name: str) -> EvaluationSet:
        """Open a set of a run folder, reading only set.json and the table's footer.

        Raises:
            SetError: No set can have such a name.
            RunError: The set is missing, damaged or foreign; names the file.
        """
        root = Path(run_path)
        path = CheckedFiles(root).inside(f"sets/{usable_name(name)}/set.json")
        facts = read_json(path, SetFile)
        if facts.name != name:
            raise RunError(f"{path}: name: {facts.name!r}, but its folder is {name!r}; rename it")
        return cls(root, facts)

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"EvaluationSet({self.name!r}, kind={self.kind!r}, count={self.count})"

    def verify(self) -> None:
        """Compare the table with every digest of it that was recorded; reads the whole file.

        Raises:
            RunError: It was changed after it was written.
        """
        self._files.verified(self.facts.table)

    def check_fits(self, task: Task) -> None:
        """Refuse to measure a task's models on inputs that they do not take.

        Raises:
            SetError: The inputs are of another kind, or have other names.
        """
        check_inputs(self.name, self.kind, self.inputs, task)

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
        own = [name for name in wanted if not (self.facts.target and name == TARGET)]
        names = list(dict.fromkeys(("example_id", "label", *own)))
        with self._open() as file:
            table = file.read(columns=names)
            self._kept_ids(table["example_id"])
        frame = pd.DataFrame({name: _series(table[name]) for name in names})
        del table
        if self.facts.target:
            frame = _with_target(frame, TARGET in wanted)
        # pyarrow's allocator would keep what was read, for as long as the process runs.
        pa.default_memory_pool().release_unused()
        return frame

    def texts(self) -> pd.Series:
        """What every example of a set of texts says, in order: its id, and a line for each text."""
        with self._open() as file:
            table = file.read(columns=["example_id", *self.inputs])
        # In arrow: a million texts as objects of Python would take gigabytes.
        lines = pc.binary_join_element_wise(*table.columns, "\n", null_handling="skip")
        return lines.to_pandas().astype("str")

    def cells(self) -> Iterator[tuple[str | bytes | None, ...]]:
        """What is stored of every input, in order, without decoding it; holds one row group."""
        with self._open() as file:
            for group in range(self._metadata.num_row_groups):
                table = file.read_row_group(group, columns=list(self.inputs))
                yield from zip(*(table[name].to_pylist() for name in self.inputs), strict=True)

    def examples(self, start: int = 0, stop: int | None = None) -> list[Example]:
        """The examples in rows ``start`` to ``stop`` (exclusive; None for the end), as a slice."""
        return self._at(range(self.count)[start:stop])

    def batches(
        self, size: int, start: int = 0, stop: int | None = None
    ) -> Iterator[list[Example]]:
        """Examples in order, ``size`` at a time; holds one row group and one batch.

        Args:
            size: Examples per batch.
            start: The first row.
            stop: The row after the last one; None for all.
        """
        if size < 1:
            raise ValueError(f"batches of {size} examples; give a size of at least 1")
        batch: list[Example] = []
        wanted = range(self.count)[start:stop]
        with self._open() as file:
            for group, (first, end) in enumerate(pairwise(self._starts)):
                rows = range(max(first, wanted.start), min(end, wanted.stop))
                if not rows:
                    continue
                local = None if len(rows) == end - first else [row - first for row in rows]
                for example in self._group(file, group, local):
                    batch.append(example)
                    if len(batch) == size:
                        yield batch
                        batch = []
        if batch:
            yield batch

    def by_id(self, ids: Sequence[str]) -> list[Example]:
        """The examples of these ids, in the order given; reads only their row groups.

        Raises:
            SetError: The set does not have an id.
        """
        rows = self._rows(ids)
        unknown = [name for name in ids if name not in rows]
        if unknown:
            raise SetError(
                f"set {self.name!r} has no example {few(unknown)}; choose one of its "
                f"{self.count:,} ids"
            )
        return self._at([rows[name] for name in ids])

    def _kept_ids(self, read: pa.ChunkedArray) -> pa.Array:
        """The ids, kept once no two examples share one: every example is known by its id."""
        # Comparing with ids that were checked before is quicker than checking again.
        if self._ids is not None and read.equals(pa.chunked_array([self._ids])):
            return self._ids
        if not pa.types.is_string(read.type) or pc.count_distinct(read).as_py() != len(read):
            raise ValueError("its ids are not text, or appear more than once")
        self._ids = read.combine_chunks()
        return self._ids

    def _rows(self, ids: Sequence[str]) -> dict[str, int]:
        """The rows of those ids that are in the set."""
        known = self._ids
        if known is None:
            with self._open() as file:
                known = self._kept_ids(file.read(columns=["example_id"])["example_id"])
        asked = pc.is_in(known, value_set=pa.array(ids, known.type))
        rows = np.flatnonzero(asked.to_numpy(zero_copy_only=False))
        return dict(zip(known.take(rows).to_pylist(), rows.tolist(), strict=True))

    def image_png(self, example_id: str, side: int | None = None, framed: bool = False) -> bytes:
        """One image as PNG bytes for a page to show; see ``display_png``."""
        return self.image_pngs([example_id], side, framed)[0]

    def image_pngs(
        self, ids: Sequence[str], side: int | None = None, framed: bool = False
    ) -> list[bytes]:
        """Images as PNG bytes for a page to show, in the order of ``ids``.

        Raises:
            SetError: The set holds texts, or does not have an id.
        """
        if self.kind != "image":
            raise SetError(f"set {self.name!r} holds texts, no images; show the text instead")
        return [display_png(each.input["image"], side, framed) for each in self.by_id(ids)]

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
            # In the order of the file, so that each row group is read once.
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
        # take before to_pylist, which makes Python objects of every image that it is given.
        for row in (table if rows is None else table.take(rows)).to_pylist():
            content = {name: row[name] for name in self.inputs}
            if self.kind == "image":
                try:
                    content = {"image": decode_pixels(row["image"])}
                except ValueError as error:
                    raise RunError(
                        f"{self._path}: image of example {row['example_id']!r} {error}"
                    ) from None
            yield Example(
                example_id=row["example_id"],
                input=content,
                label=row["label"],
                columns={name: row[name] for name in self._stored},
            )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into an error that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path} is damaged or was not written by StageLens: {error}; restore it, or add the "
            "set again"
        ) from None


def footer_sha256(path: Path) -> str:
    """sha256 of a parquet file's footer, which says where pages lie and what they mean."""
    with open(path, "rb") as file:
        file.seek(-8, io.SEEK_END)  # a parquet file ends: footer, its length (4 bytes), "PAR1"
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, io.SEEK_END)
        return hashlib.sha256(file.read(length)).hexdigest()


def _with_target(frame: pd.DataFrame, wanted: bool) -> pd.DataFrame:
    """Labels as the column :data:`TARGET`, numbers where all are, instead of as labels."""
    given = frame["label"]
    frame["label"] = pd.Series(None, frame.index, dtype=given.dtype)
    if wanted:
        numbers = pd.to_numeric(given, errors="coerce")
        frame.insert(2, TARGET, numbers if numbers.notna().equals(given.notna()) else given)
    return frame


def _series(column: pa.ChunkedArray) -> pd.Series:
    """As pandas converts it, but integers and truth values with gaps keep their types."""
    if column.null_count and pa.types.is_integer(column.type):
        return column.to_pandas(types_mapper={column.type: pd.Int64Dtype()}.get)
    if column.null_count and pa.types.is_boolean(column.type):
        return column.to_pandas(types_mapper={column.type: pd.BooleanDtype()}.get)
    return column.to_pandas()


def check_inputs(name: str, kind: str, fields: Sequence[str], task: Task) -> None:
    """Whether a set's inputs are what a task takes.

    Args:
        name: Of the set.
        kind: What an input is, ``"image"`` or ``"text"``.
        fields: Names of the inputs.
        task: The task to take them.

    Raises:
        SetError: The task does not take them.
    """
    if task.input_kind != kind:
        raise SetError(f"set {name!r} holds {kind}s, but the run's task takes {task.input_kind}s")
    other = [own for own in fields if own not in task.input_fields]
    if other:
        raise SetError(
            f"set {name!r} has the input {few(other)}, but the run's task takes "
            f"{', '.join(map(repr, task.input_fields))}; name the inputs so"
        )


def usable_name(name: str) -> str:
    """The name, if it is fit for paths and links; else a SetError."""
    try:
        return check_name(name)
    except ValueError as error:
        raise SetError(f"evaluation set: {error}") from None


def few(names: Sequence[str], show: Callable[[str], str] = repr) -> str:
    """The first three of some names, for a message."""
    return ", ".join(map(show, names[:3])) + (", ..." if len(names) > 3 else "")
