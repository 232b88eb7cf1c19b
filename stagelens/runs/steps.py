"""Recorded steps: one row each in numbered parquet parts, kept batches beside them.

A part is written as a whole: first its batches, then the table that names them, each atomically.
So after a kill the newest part that has a table is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..contracts import RunError
from .files import CheckedFiles, sha256_of, write_file
from .schema import FileRef, PartRef

if TYPE_CHECKING:
    from torch import Tensor

_BATCHES_KEY = b"stagelens.batches"
_COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("groups", pa.string()),
        ("missing", pa.list_(pa.string())),
        ("micro_batches", pa.int32()),
        ("batch", pa.string()),
    ]
)


@dataclass
class MicroBatch:
    """What one forward pass and its backward saw.

    Attributes:
        batch: As :func:`stagelens.runs.batches.unflatten` gives it.
        rng: Device name to the generator's state just before the forward pass; empty where the
            pass drew no random numbers.
    """

    batch: Any
    rng: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class StepRecord:
    """One optimiser step.

    Attributes:
        step: Number within the stage, from 0.
        loss: As the training loop reported it, mean over the micro-batches.
        groups: Hyperparameters per parameter group, as they were for this step.
        missing: Parameters of the optimiser that had no gradient.
        micro_batches: How many forward passes were accumulated.
        batches: One entry per micro-batch, or None where the step's batches were not kept.
    """

    step: int
    loss: float
    groups: list[dict[str, Any]]
    missing: tuple[str, ...]
    micro_batches: int
    batches: list[MicroBatch] | None


@dataclass
class FlatStep:
    """A step as the recorder holds it until the next flush: tensors copied, nothing nested."""

    record: StepRecord
    descriptions: list[Any]
    tensors: dict[str, Tensor]


def write_part(root: Path, folder: str, number: int, steps: Sequence[FlatStep]) -> PartRef:
    """Write one flush.

    Args:
        root: The run folder.
        folder: The stage's folder inside it.
        number: The part's number within the stage, from 0.
        steps: Consecutive steps.
    """
    tensors = {name: tensor for step in steps for name, tensor in step.tensors.items()}
    batches: FileRef | None = None
    if tensors:
        from safetensors.torch import save_file

        relative = f"{folder}/batches-{number:05d}.safetensors"
        batches = write_file(root, relative, lambda path: save_file(tensors, path))
    records = [step.record for step in steps]
    table = pa.table(
        {
            "step": [r.step for r in records],
            "loss": [r.loss for r in records],
            "lr": [float(r.groups[0]["lr"]) for r in records],
            "groups": [json.dumps(r.groups) for r in records],
            "missing": [list(r.missing) for r in records],
            "micro_batches": [r.micro_batches for r in records],
            "batch": [json.dumps(s.descriptions) if s.descriptions else None for s in steps],
        },
        schema=_COLUMNS.with_metadata({_BATCHES_KEY: batches.model_dump_json() if batches else ""}),
    )
    reference = write_file(
        root,
        f"{folder}/steps-{number:05d}.parquet",
        lambda path: pq.write_table(table, path, write_page_checksum=True),
    )
    return PartRef(first_step=records[0].step, steps=len(records), table=reference, batches=batches)


def discover_parts(root: Path, folder: str) -> list[PartRef]:
    """The parts on disk of a stage that was not finished, in order, up to the first gap.

    Raises:
        RunError: A part is damaged; names the file.
    """
    parts: list[PartRef] = []
    for number in range(1_000_000):
        relative = f"{folder}/steps-{number:05d}.parquet"
        path = root / relative
        if not path.exists():
            break
        table = _read_table(path)
        named = (table.schema.metadata or {}).get(_BATCHES_KEY, b"")
        parts.append(
            PartRef(
                first_step=table.column("step")[0].as_py(),
                steps=table.num_rows,
                table=FileRef(path=relative, sha256=sha256_of(path), bytes=path.stat().st_size),
                batches=FileRef.model_validate_json(named) if named else None,
            )
        )
    return parts


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise RunError(
            f"{path} is damaged or no parquet file ({str(error).splitlines()[0]}); restore it"
        ) from None
    if table.num_rows == 0 or not set(_COLUMNS.names) <= set(table.column_names):
        raise RunError(f"{path} does not hold recorded steps; restore the original file")
    return table


def steps_table(files: CheckedFiles, parts: Sequence[PartRef]) -> pd.DataFrame:
    """Step number, loss and learning rate (of the first group) of every step, one row each."""
    if not parts:
        return pd.DataFrame({"step": [], "loss": [], "lr": []})
    tables = [_read_table(files.path(part.table)) for part in parts]
    return pa.concat_tables(tables).select(["step", "loss", "lr"]).to_pandas()


def read_steps(files: CheckedFiles, parts: Sequence[PartRef]) -> Iterator[StepRecord]:
    """Recorded steps in order; one part's table and one step's batches in memory at a time."""
    for part in parts:
        rows = _read_table(files.path(part.table)).to_pylist()
        if part.batches is None:
            for row in rows:
                yield _record(row, None)
            continue
        from safetensors import safe_open

        with safe_open(files.path(part.batches), framework="pt") as tensors:
            names: dict[int, list[str]] = {}
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                names.setdefault(int(name.split(".", 1)[0]), []).append(name)
            for row in rows:
                own = {n: tensors.get_tensor(n) for n in names.get(row["step"], [])}
                yield _record(row, own)


def _record(row: dict[str, Any], tensors: dict[str, Tensor] | None) -> StepRecord:
    from .batches import unflatten

    batches: list[MicroBatch] | None = None
    if row["batch"] is not None and tensors is not None:
        batches = []
        for micro, description in enumerate(json.loads(row["batch"])):
            prefix = f"{row['step']}.{micro}."
            leaves: dict[int, Tensor] = {}
            rng: dict[str, Tensor] = {}
            for name, tensor in tensors.items():
                if not name.startswith(prefix):
                    continue
                key = name.removeprefix(prefix)
                if key.startswith("rng."):
                    rng[key.removeprefix("rng.")] = tensor
                else:
                    leaves[int(key)] = tensor
            ordered = [leaves[number] for number in sorted(leaves)]
            batches.append(MicroBatch(unflatten(description, ordered), rng))
    return StepRecord(
        step=row["step"],
        loss=row["loss"],
        groups=json.loads(row["groups"]),
        missing=tuple(row["missing"]),
        micro_batches=row["micro_batches"],
        batches=batches,
    )
