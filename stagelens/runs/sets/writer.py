"""Adding an evaluation set to a run folder: checked, digested, and reported on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stagelens.compute import temporaries
from stagelens.contracts import RunError, SetError, Task

from ..checked_files import CheckedFiles
from ..files import read_json, write_file, write_json
from ..schema import FileRef, SetFile, canonical_json
from .cells import in_json, text_of, token
from .evaluation_set import TARGET, EvaluationSet, check_inputs, few, footer_sha256, usable_name
from .images import Channels, as_array, as_image, encode_pixels
from .seen import FIRST, figures
from .values import (
    check_length,
    checked_ids,
    checked_inputs,
    checked_labels,
    with_implied_labels,
)

# fmt: off
RESERVED_COLUMNS = frozenset({
    "example_id", "label", "image", "text",
    "set", "stage", "behaviour", "final", "without", "effect", "estimator", "prediction",
    "prediction_without", "confidence", "confidence_without", "within_noise", "trust",
    "reliable", "expected_error",
})
# fmt: on
"""Names that metadata columns cannot have: the set's own, and those of the effect table."""

# Whichever comes first, so that a page of few rows reads little, also of large images.
_GROUP_ROWS, _GROUP_BYTES = 256, 4 << 20


_LEFT_OUT = 20
"""How many of the things that were left out set.json names."""


@dataclass(frozen=True)
class SetReport:
    """What ``write_set`` found; none of these examples is dropped from the set.

    Attributes:
        name: The set's.
        count: Number of examples.
        missing_labels: Ids of the examples without a label.
        duplicate_inputs: (id, id of the first example with the same input).
        notes: What the task says about inputs (``"cut to 512 tokens"``), to the ids concerned.
        left_out: What else the file or folder held, each with the reason.
    """

    name: str
    count: int
    missing_labels: list[str] = field(default_factory=list)
    duplicate_inputs: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        """What a person should know, in one line."""
        parts = [f"Set {self.name!r} has {self.count:,} example{'s' * (self.count != 1)}"]
        if self.missing_labels:
            missing = f"{len(self.missing_labels):,} without a label"
            parts.append(f"{missing} ({few(self.missing_labels)})")
        if self.duplicate_inputs:
            pairs = [f"{name} = {first}" for name, first in self.duplicate_inputs]
            parts.append(f"{len(pairs):,} with the input of an earlier one ({few(pairs, str)})")
        for note, ids in self.notes.items():
            parts.append(f"{len(ids):,} {note} ({few(ids)})")
        if self.left_out:
            parts.append(f"{len(self.left_out):,} left out: {few(self.left_out, str)}")
        return "; ".join(parts) + "."


def write_set(
    run_path: str | Path,
    task: Task | None,
    name: str,
    *,
    images: Any = None,
    texts: Any = None,
    inputs: Mapping[str, Any] | None = None,
    labels: Any = None,
    ids: Any = None,
    columns: Mapping[str, Any] | None = None,
    description: str = "",
    channels: Channels | None = None,
    left_out: Sequence[str] = (),
    from_file: bool = False,
) -> SetReport:
    """Add an evaluation set to a run folder. Adding the same content again changes nothing.

    Args:
        run_path: The run folder.
        task: Checks the labels and the kind of input; None if the run's task is not installed.
        name: Of the set.
        images: N images: an array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), or a list of
            images as ``as_image`` takes them.
        texts: N strings.
        inputs: Several texts per example, by the names of ``task.input_fields``: N strings or None
            each. One of ``images``, ``texts`` and ``inputs`` is given.
        labels: N labels as ``task.check_label`` takes them; None, NaN and "" are missing.
        ids: N unique ids, kept as text; row numbers from 0 if None.
        columns: Metadata, N values of one kind per column; lists and dicts are kept as JSON text.
        description: One sentence for people.
        channels: Where C stands in arrays, for shapes that do not say so themselves.
        left_out: What a reader found and left out, for the report.
        from_file: Whether a reader took ``columns`` as they came: one that cannot be kept is then
            left out, and reported, instead of refused.

    Raises:
        SetError: Something does not fit; names the example or column and what to do.
    """
    root, folder = Path(run_path), f"sets/{usable_name(name)}"
    if not root.is_dir():
        raise SetError(f"{root} is not a folder; give the path of a run folder")
    kind, fields, given = checked_inputs(name, images, texts, inputs)
    if task is not None:
        check_inputs(name, kind, fields, task)
    id_list = checked_ids(name, ids, len(given))
    label_list = checked_labels(name, task, id_list, labels)
    if task is not None and kind == "text":
        label_list = with_implied_labels(task, fields, given, label_list)
    rows = _Rows(name, kind, fields, id_list, label_list, given, task, channels)
    left_out = list(left_out)
    for column, values in () if columns is None else columns.items():
        try:
            rows.add_column(column, values, as_text=from_file)
        except SetError as error:
            if not from_file:
                raise
            # Without the advice, which is for a program that gives the column itself.
            left_out.append(str(error).removeprefix(f"set {name!r}: ").rpartition("; ")[0])
    path = root / folder / "set.json"
    old = read_json(path, SetFile) if path.exists() else None
    if old is not None:
        rows.stream(lambda _: None)  # only for the digest: nothing is written if it differs
        if rows.digest != old.digest:
            raise SetError(
                f"the run has a set {name!r} with other content ({old.count:,} examples); choose "
                f"another name, or delete {path.parent} to replace it"
            )
    missing = [key for key, label in zip(rows.ids, rows.labels, strict=True) if label is None]
    if task is not None and not task.takes_labels:
        missing = []
    with _whole(root, folder) as base:
        # Adding the same content once more is how people mend a damaged table.
        table = old.table if old is not None and _intact(root, old.table) else None
        if table is None:
            table = write_file(base, f"{folder}/examples.parquet", rows.write)
        facts = SetFile(
            name=name,
            kind=kind,
            count=len(rows.ids),
            inputs=[] if fields == (kind,) else list(fields),
            columns=list(rows.columns),
            target=task is not None and not task.labels_are_answers,
            description=description or (old.description if old is not None else ""),
            digest=rows.digest,
            table=table,
            footer_sha256=footer_sha256(base / table.path),
            missing_labels=len(missing),
            duplicate_inputs=len(rows.duplicates),
            notes={note: len(own) for note, own in rows.notes.items()},
            left_out=_first(left_out),
        )
        if task is not None:
            seen = figures(task, EvaluationSet(base, facts).examples(0, FIRST))
            facts = facts.model_copy(update={"seen": seen})
        if facts != old:
            write_json(base / folder / "set.json", facts)
    return SetReport(name, facts.count, missing, rows.duplicates, rows.notes, left_out)


@contextmanager
def _whole(root: Path, folder: str) -> Iterator[Path]:
    """Where ``folder`` is written, to be in ``root`` as a whole or not at all."""
    target = root / folder
    if target.exists():  # file by file, set.json last: a set is there once that is
        yield root
        return
    there = next(each for each in target.parents if each.exists())
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporaries.folder(f".{target.name}", target.parent) as hidden:
            yield Path(hidden)
            os.replace(Path(hidden) / folder, target)
    finally:
        temporaries.remove_empty(target.parent, there)


@dataclass
class _Rows:
    """Checked values on their way to disk.

    ``digest``, ``duplicates`` and ``notes`` are known after ``stream``. The inputs are the values
    of a single field, or tuples of several.
    """

    name: str
    kind: Literal["image", "text"]
    fields: tuple[str, ...]
    ids: list[str]
    labels: list[str | None]
    inputs: Sequence[Any]
    task: Task | None
    channels: Channels | None
    columns: dict[str, pa.Array] = field(default_factory=dict)
    digest: str = ""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add_column(self, column: Any, values: Any, *, as_text: bool) -> None:
        """Check one metadata column and give it one type: text, where it has none of its own.

        Args:
            column: Its name.
            values: Its cells.
            as_text: Whether cells of several kinds become text, instead of being refused.
        """
        where = f"set {self.name!r}: column {column!r}"
        # Lone surrogates cannot be written as UTF-8, which parquet and JSON need.
        usable = isinstance(column, str) and column.encode(errors="ignore").decode() == column
        if not usable or not column or column in self.columns:
            raise SetError(f"{where} needs a name of its own, as text; rename it")
        target = self.task is not None and not self.task.labels_are_answers and column == TARGET
        if column in RESERVED_COLUMNS or column in self.fields or target:
            raise SetError(
                f"{where} has a name that StageLens uses itself; rename it, for instance to "
                f"{'own_' + column!r}"
            )
        try:
            if isinstance(values, pa.Array | pa.ChunkedArray):
                values = values.to_pylist()
            values = as_array(values) if hasattr(values, "detach") else values
            try:
                array = pa.array(values, from_pandas=True)  # NaN and NA become null
            except (pa.ArrowException, OverflowError):
                if not as_text:
                    raise
                array = pa.array([text_of(value) for value in values], pa.string())
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            if pa.types.is_dictionary(array.type):
                array = array.dictionary_decode()
            if pa.types.is_nested(array.type):
                cells = [
                    None if v is None else json.dumps(v, default=in_json) for v in array.to_pylist()
                ]
                array = pa.array(cells, pa.string())
            # A column without any value has no type, and large_string only another layout.
            if pa.types.is_null(array.type) or pa.types.is_large_string(array.type):
                array = array.cast(pa.string())
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise SetError(
                f"{where} cannot be kept ({error}); give values of one kind, for instance text"
            ) from None
        plain = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating)
        if not any(is_it(array.type) for is_it in (*plain, *_TEXT_AND_TIME)):
            raise SetError(f"{where} holds {array.type}; make it numbers or text, or leave it out")
        check_length(self.name, len(self.ids), f"column {column!r}", len(array))
        self.columns[column] = array

    def write(self, path: Path) -> None:
        """Write the parquet file."""
        kind = pa.binary() if self.kind == "image" else pa.string()
        fields = [("example_id", pa.string()), ("label", pa.string())]
        fields += [(name, kind) for name in self.fields]
        fields += [(name, array.type) for name, array in self.columns.items()]
        schema = pa.schema(fields)
        with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
            self.stream(lambda columns: writer.write_table(pa.table(columns, schema)))

    def stream(self, sink: Callable[[list[Any]], object]) -> None:
        """Pass the rows to ``sink`` in row groups, and compute their digest.

        The digest is over values (pixels of arrays, bytes of files), each with its length, so it
        depends neither on pyarrow's version nor on the row groups.
        """
        order = sorted(self.columns)  # no result depends on the order of columns
        what = self.kind if self.fields == (self.kind,) else list(self.fields)
        hasher = hashlib.sha256(canonical_json(["stagelens-set-1", what, order]).encode())
        metadata = [self.columns[name].to_pylist() for name in order]
        first: dict[bytes, str] = {}
        self.duplicates, self.notes = [], {}
        stored: list[tuple[Any, ...]] = []
        start = size = 0
        for row, (key, given) in enumerate(zip(self.ids, self.inputs, strict=True)):
            try:
                values, content, same = self._input(key, given)
                cells = (key, self.labels[row], *(own[row] for own in metadata))
                for part in (content, *map(token, cells)):
                    hasher.update(f"{len(part)}:".encode() + part)
            except UnicodeEncodeError:
                raise SetError(
                    f"set {self.name!r}: example {key!r} has text that is not Unicode; correct it"
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
            stored.append(values)
            size += len(content)
            if len(stored) == _GROUP_ROWS or size >= _GROUP_BYTES or row == len(self.ids) - 1:
                rest = [array.slice(start, len(stored)) for array in self.columns.values()]
                end = row + 1
                inputs = map(list, zip(*stored, strict=True))
                sink([self.ids[start:end], self.labels[start:end], *inputs, *rest])
                start, size, stored = end, 0, []
        self.digest = hasher.hexdigest()

    def _input(self, key: str, given: Any) -> tuple[tuple[Any, ...], bytes, bytes]:
        """An input as stored, as the digest covers it, and as duplicates are recognised."""
        if self.kind == "image":
            pixels, data = as_image(given, self.channels)
            self._check(key, {"image": pixels})
            # Equal pixels are a duplicate, whatever files they come from.
            same = f"{pixels.dtype.str}{pixels.shape}".encode() + pixels.tobytes()
            return ((encode_pixels(pixels),), same, same) if data is None else ((data,), data, same)
        texts = given if len(self.fields) > 1 else (given,)
        if self.task is not None and self.task.takes_words:
            texts = tuple(" ".join(each) if _are_words(each) else each for each in texts)
        for name, text in zip(self.fields, texts, strict=True):
            if text is None and len(texts) == 1:
                raise ValueError("is missing; give one, or delete the row")
            if text is not None and not isinstance(text, str):
                what = "is" if len(texts) == 1 else f"has a {name} that is"
                advice = "give a string"
                if isinstance(text, list):
                    advice += (
                        ", of chat messages tokenizer.apply_chat_template(..., tokenize=False)"
                    )
                raise ValueError(f"{what} {type(text).__name__}, not text; {advice}")
        # Also where only JSON is digested: that would escape what is not Unicode, this raises.
        encoded = [None if text is None else text.encode() for text in texts]
        self._check(key, dict(zip(self.fields, texts, strict=True)))
        # A single text is digested as before sets could have several, so its digest is the same.
        content = encoded[0] if len(texts) == 1 else canonical_json(list(texts)).encode()
        assert content is not None
        return tuple(texts), content, content

    def _check(self, key: str, value: Mapping[str, Any]) -> None:
        note = None if self.task is None else self.task.check_input(value)
        if note is not None:
            self.notes.setdefault(note, []).append(key)


_TEXT_AND_TIME = (pa.types.is_string, pa.types.is_temporal, pa.types.is_decimal)


def _are_words(text: Any) -> bool:
    return isinstance(text, list | np.ndarray) and all(isinstance(word, str) for word in text)


def _first(left_out: Sequence[str]) -> list[str]:
    """The first of them, and how many more there are: a folder may hold any number of files."""
    kept = list(left_out[:_LEFT_OUT])
    more = len(left_out) - len(kept)
    return [*kept, f"and {more:,} more"] if more else kept


def _intact(root: Path, table: FileRef) -> bool:
    with suppress(RunError):
        CheckedFiles(root).path(table)
        return True
    return False
