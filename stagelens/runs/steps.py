"""Recorded steps: one row each in numbered parquet parts, with kept batches beside them.

A part is written as a whole: first its batches, then the table that names them, each atomically.
So after a kill, every part that has a table is complete. Tensors of the same place, dtype and shape
in the steps of a part are stacked (a few large tensors are quick to write); for each step the table
names the stacks that hold its tensors, which follow the order of the steps.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from safetensors import SafetensorError

from stagelens.contracts import RunError

from .checked_files import CheckedFiles
from .data_rows import StageRows
from .files import reference_of, write_file
from .packed import PackedStacks, pack
from .schema import FileRef, PartRef, digest
from .step_records import StepRecord, of_all
from .step_rows import as_step, numbers_of, stack_name, stored
from .steps_digest import StepsDigest

if TYPE_CHECKING:
    from torch import Tensor

_BATCHES_KEY = b"stagelens.batches"
_DIGEST_KEY = b"stagelens.digest"
COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("groups", pa.string()),
        ("missing", pa.list_(pa.string())),
        ("micro_batches", pa.int32()),
        ("divisors", pa.list_(pa.float64())),
        ("batch", pa.string()),
        ("tensors", pa.list_(pa.string())),
    ]
)
_NO_STEP = (LookupError, TypeError, ValueError, AttributeError, RuntimeError, SafetensorError)
"""Raised by a row that was not recorded: its JSON, names and tensors do not fit together."""

_OPENED = 64
"""Parts whose tables are held at a time, as steps may be read in any order."""

_DIVISORS = COLUMNS.get_field_index("divisors")
COLUMNS_WITHOUT_DIVISORS = COLUMNS.remove(_DIVISORS)
"""Steps as earlier versions recorded them: every loss was divided by the accumulation."""


@dataclass
class FlatMicroBatch:
    """A micro-batch as the recorder holds it until the next flush: copied, nothing nested.

    Attributes:
        description: As :func:`stagelens.runs.batches.flatten` returns it.
        tensors: Those that the description refers to by number.
        rng: As in :class:`MicroBatch`.
        divisor: As in :class:`MicroBatch`.
        rows: What is written in place of its tensors, see :func:`data_rows.kept_of`; else None.
    """

    description: Any
    tensors: list[Tensor]
    rng: dict[str, Tensor]
    divisor: float | None = None
    rows: dict[str, Tensor] | None = None

    @property
    def stored(self) -> list[tuple[int | str, Tensor]]:
        """What is written of it, each with its place."""
        own = enumerate(self.tensors) if self.rows is None else self.rows.items()
        return [*own, *self.rng.items()]

    def only_stored(self) -> FlatMicroBatch:
        """The same without the memory of tensors that are not written."""
        if self.rows is None:
            return self
        return replace(self, tensors=[tensor.to("meta") for tensor in self.tensors])


@dataclass
class FlatStep:
    """A step as the recorder holds it until the next flush; ``micro`` is empty if none is kept."""

    record: StepRecord
    micro: list[FlatMicroBatch]


def write_part(
    root: Path, folder: str, number: int, steps: Sequence[FlatStep], so_far: StepsDigest
) -> PartRef:
    """Write one flush.

    Args:
        root: The run folder.
        folder: The stage's folder inside it.
        number: The part's number within the stage, from 0.
        steps: Consecutive steps.
        so_far: Digest of the stage's earlier steps; these are added to it.
    """
    import torch

    collected: dict[str, list[Tensor]] = {}
    rows: list[dict[str, Any]] = []
    for place, step in enumerate(steps):
        # Hyperparameters rarely change, and then all steps have the same list.
        same = place > 0 and step.record.groups is steps[place - 1].record.groups
        groups = rows[-1]["groups"] if same else json.dumps(step.record.groups)
        rows.append(_row(step, groups, collected))
    stacks = {name: torch.stack(tensors) for name, tensors in collected.items()}
    so_far.take_in(rows, stacks)
    batches: FileRef | None = None
    if stacks:  # batches first: a table on disk means that its batches are there too
        from safetensors.torch import save_file

        relative = f"{folder}/batches-{number:05d}.safetensors"
        kept, how = pack(stacks, _steps_of(rows))
        batches = write_file(
            root, relative, lambda path: save_file(kept, path, how), sync_folder=False
        )
    metadata = {
        _BATCHES_KEY: batches.model_dump_json() if batches else "",
        _DIGEST_KEY: so_far.hexdigest(),
    }
    columns = {name: [row[name] for row in rows] for name in COLUMNS.names}
    table = pa.table(columns, schema=COLUMNS.with_metadata(metadata))
    reference = write_file(
        root,
        f"{folder}/steps-{number:05d}.parquet",
        lambda path: pq.write_table(table, path, write_page_checksum=True),
    )
    first = steps[0].record.step
    return PartRef(first_step=first, steps=len(steps), table=reference, batches=batches)


def _row(step: FlatStep, groups: str, collected: dict[str, list[Tensor]]) -> dict[str, Any]:
    """A step's row with its hyperparameters; adds the step's tensors to their stacks."""
    record, names = step.record, []
    for number, micro in enumerate(step.micro):
        if micro.rows is not None:  # named, so that it is known how large they are
            names += [stack_name(f"{number}.{i}", t) for i, t in enumerate(micro.tensors)]
        for place, tensor in micro.stored:
            names.append(stack_name(f"{number}.{place}", tensor))
            collected.setdefault(names[-1], []).append(tensor)
    return {
        "step": record.step,
        "loss": record.loss,
        "lr": _rate(record.groups[0].get("lr") if record.groups else None),
        "groups": groups,
        "missing": list(record.missing),
        "micro_batches": record.micro_batches,
        "divisors": list(record.divisors),
        "batch": json.dumps([m.description for m in step.micro]) if step.micro else None,
        "tensors": names,
    }


def _steps_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Which step each row of a stack belongs to."""
    steps: dict[str, list[int]] = {}
    for row in rows:
        for name in stored(row["tensors"] or ()):
            steps.setdefault(name, []).append(row["step"])
    return steps


def _rate(value: float | None) -> float:
    """NaN for an optimiser that chooses its own, and where the main process has the schedule."""
    return math.nan if value is None else float(value)


def discover_parts(files: CheckedFiles, folder: str) -> list[PartRef]:
    """The parts on disk of an unfinished stage, in order.

    Raises:
        RunError: A part is missing or damaged; names the file.
    """
    parts: list[PartRef] = []
    found = len(list(files.inside(folder).glob("steps-*.parquet")))
    for number in range(found):  # by number, so that a gap is a missing file, not fewer steps
        relative = f"{folder}/steps-{number:05d}.parquet"
        path = files.inside(relative)
        table = read_table(path)
        try:
            named = table.schema.metadata[_BATCHES_KEY]
            parts.append(
                PartRef(
                    first_step=table.column("step")[0].as_py(),
                    steps=table.num_rows,
                    table=reference_of(path, relative),
                    batches=FileRef.model_validate_json(named) if named else None,
                )
            )
        except (KeyError, TypeError, ValidationError):
            raise _foreign(path) from None
    return parts


def parts_until(parts: Sequence[PartRef], step: int) -> list[PartRef]:
    """The parts that hold the first ``step`` steps, if one of them ends there."""
    return [part for part in parts if part.first_step + part.steps <= step]


def steps_of_all(parts: Sequence[Sequence[PartRef]]) -> int:
    """How many steps the parts of every process hold; what only some of them wrote is no step."""
    return min(sum(part.steps for part in own) for own in parts)


def recorded_digest(files: CheckedFiles, parts: Sequence[Sequence[PartRef]]) -> str:
    """Digest of all steps of these parts, of each process, from the footer of the last one.

    Raises:
        RunError: The part is missing or was changed; names the file.
    """
    found = [_digest_of(files, own) for own in parts]
    return found[0] if len(found) == 1 else digest(found)


def _digest_of(files: CheckedFiles, parts: Sequence[PartRef]) -> str:
    if not parts:
        return ""
    path = files.path(parts[-1].table)
    try:
        return str(pq.read_schema(path).metadata[_DIGEST_KEY], "ascii")
    except (pa.ArrowException, OSError, KeyError, TypeError, UnicodeDecodeError):
        raise _foreign(path) from None


def read_table(path: Path, columns: pa.Schema = COLUMNS) -> pa.Table:
    """A table of steps.

    Raises:
        RunError: It is missing, damaged, or has other columns.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise RunError(f"{path} is missing; restore it from where the run was recorded") from None
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{path} is damaged or not a parquet file ({str(error).splitlines()[0]}); restore it"
        ) from None
    if table.schema.equals(COLUMNS_WITHOUT_DIVISORS):
        nulls = pa.nulls(table.num_rows, COLUMNS.field("divisors").type)
        table = table.add_column(_DIVISORS, "divisors", nulls)
    if table.num_rows == 0 or not table.schema.equals(columns):
        raise _foreign(path)
    return table


def _foreign(path: Path) -> RunError:
    return RunError(f"{path} does not hold steps as StageLens records them; restore the original")


class RecordedSteps(Sequence[StepRecord]):
    """The recorded steps of a stage, by number or in order.

    A few parts' tables are in memory at a time, so that steps can be read in any order; a step's
    batches are read with the step.

    Args:
        files: The run folder's files.
        parts: The stage's parts, in order, of each of its processes.
        between: Which of the stage's steps these are; None for all of them.
        rows: The stage's data set, for batches that are kept as rows of it.
    """

    def __init__(
        self,
        files: CheckedFiles,
        parts: Sequence[Sequence[PartRef]],
        between: range | None = None,
        rows: StageRows | None = None,
    ) -> None:
        self._numbers = range(steps_of_all(parts)) if between is None else between
        self._of_each = [_StepsOfProcess(files, own, rows) for own in parts]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...

    @overload
    def __getitem__(self, index: slice) -> list[StepRecord]: ...

    def __getitem__(self, index: int | slice) -> StepRecord | list[StepRecord]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        # Outside the block, where it stays an IndexError: that is how a loop over steps ends.
        return self._read(self._numbers[index], whole=True)

    def facts(self, step: int) -> StepRecord:
        """A step without its batches."""
        return self._read(self._numbers[step], whole=False)

    def sizes(self) -> list[int]:
        """How many numbers the batches of each step hold, 0 where none were kept; reads none."""
        return [sum(own.size(step) for own in self._of_each) for step in self._numbers]

    def _read(self, step: int, whole: bool) -> StepRecord:
        return of_all([own.read(step, whole) for own in self._of_each])


class _StepsOfProcess:
    """What one process wrote of a stage's steps."""

    def __init__(
        self, files: CheckedFiles, parts: Sequence[PartRef], rows: StageRows | None
    ) -> None:
        self._files, self._parts, self._rows = files, parts, rows
        self._starts = [part.first_step for part in parts]
        self._opened: dict[int, _OpenedPart] = {}

    def size(self, step: int) -> int:
        return sum(map(numbers_of, self._part_of(step).row(step)["tensors"] or ()))

    def read(self, step: int, whole: bool) -> StepRecord:
        """A step; contents that no step has become an error that names the file."""
        part = self._part_of(step)
        try:
            row = part.row(step)
            tensors = [part.tensor(n, step) for n in stored(row["tensors"])] if whole else None
            return as_step(row, tensors, self._rows)
        except _NO_STEP:
            raise _foreign(part.path) from None

    def _part_of(self, step: int) -> _OpenedPart:
        number = bisect.bisect_right(self._starts, step) - 1
        found = self._opened.pop(number, None)
        if found is None:
            found = _OpenedPart(self._files, self._parts[number])
        self._opened[number] = found  # the last one used stands last
        if len(self._opened) > _OPENED:
            del self._opened[next(iter(self._opened))]
        return found


class _OpenedPart:
    """The table of one part, with what finds the tensors of its steps."""

    def __init__(self, files: CheckedFiles, part: PartRef) -> None:
        self.path = files.path(part.table)
        self._first = part.first_step
        self._rows: list[dict[str, Any]] = read_table(self.path).to_pylist()
        # Rows are found by position, so their numbers have to be without gaps.
        numbers = [row["step"] for row in self._rows]
        if numbers != list(range(part.first_step, part.first_step + part.steps)):
            raise _foreign(self.path)
        self._tensors: Any = None
        self._stacks: dict[str, Tensor] = {}
        self._packed = PackedStacks(None, self._stacks.__getitem__)
        self._places = {
            name: {step: row for row, step in enumerate(steps)}
            for name, steps in _steps_of(self._rows).items()
        }
        if part.batches is not None:
            from safetensors import safe_open

            path = files.path(part.batches)
            self._tensors = safe_open(path, framework="pt")
            try:
                self._packed = PackedStacks(self._tensors.metadata(), self._tensors.get_tensor)
            except ValueError:
                raise _foreign(path) from None

    def row(self, step: int) -> dict[str, Any]:
        """The row of a step."""
        return self._rows[step - self._first]

    def tensor(self, name: str, step: int) -> tuple[str, Tensor]:
        """A tensor of a step, with the name of its stack; a view of the file if not packed."""
        row = self._places[name][step]
        if name in self._packed:
            return name, self._packed.row(name, row)
        if name not in self._stacks:
            # Mapped into memory, so that only rows that are used are read.
            self._stacks[name] = self._tensors.get_tensor(name)
        return name, self._stacks[name][row]
