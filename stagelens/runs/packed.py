"""Stacks of whole numbers in few bytes: token ids, masks and labels of recorded batches.

A token of a language model's batch is 24 bytes as it lies in memory: an id, a mask and a label of
eight bytes each. Here ids take the fewest bytes that their range needs, labels are what their mask
leaves of the ids, and the rest is left to a compressor. Every row can be read by itself, so that
steps are found in any order. What comes back is equal bit for bit; floating point stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, TypeAdapter

from .boundary_facts import STRICT

if TYPE_CHECKING:
    import torch
    from torch import Tensor

KEY = "stagelens.packed"
"""Where a file of batches says, in its metadata, how its stacks are packed."""

_ENDS = " ends"
_SMALLEST = 1 << 14
"""Bytes from which a stack is packed: there is nothing to save on smaller ones."""

_WORTH = 0.9
"""Share of a stack's bytes that packing has to stay below."""

_UNITS = (np.uint8, np.uint16, np.uint32)
_CODEC = "zstd"


class Narrow(BaseModel):
    """Values less the least one, in units of so many bytes.

    Attributes:
        least: What is added to every number.
        bytes: Of one number: 1, 2 or 4.
    """

    model_config = STRICT
    kind: Literal["narrow"] = "narrow"
    least: int
    bytes: Literal[1, 2, 4]


class Masked(BaseModel):
    """The values of another stack, except where they are one that marks them as left out.

    Attributes:
        of: The other stack, which is not itself masked.
        value: That which stands where something is left out, for instance -100.
    """

    model_config = STRICT
    kind: Literal["masked"] = "masked"
    of: str
    value: int


Packing = Annotated[Narrow | Masked, Field(discriminator="kind")]
_PACKINGS: TypeAdapter[dict[str, Packing]] = TypeAdapter(dict[str, Packing])


def pack(
    stacks: Mapping[str, Tensor], steps: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Take what can be packed out of the stacks.

    Args:
        stacks: Of one part, by name; the first dimension is that of the steps.
        steps: Which step each row of a stack belongs to.

    Returns:
        The tensors of the file, and its metadata; the inverse is :class:`PackedStacks`.
    """
    import torch

    found: dict[str, Tensor] = {}
    packings: dict[str, Narrow | Masked] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, stack in stacks.items():
        whole = not (stack.is_floating_point() or stack.is_complex()) and _is_data(name)
        if not whole or stack.nbytes < _SMALLEST or stack.dtype == torch.uint64:
            found[name] = stack
            continue
        array = arrays[name] = stack.to(torch.int64).reshape(len(stack), -1).numpy()
        others = [
            each
            for each, packing in packings.items()
            if isinstance(packing, Narrow) and _beside(each, name) and steps[each] == steps[name]
        ]
        packing, numbers = _packed(array, {each: arrays[each] for each in others})
        rows = [] if packing is None else [_compressed(row) for row in numbers]
        if packing is None or sum(map(len, rows)) > _WORTH * stack.nbytes:
            found[name] = stack
            continue
        packings[name] = packing
        found[name] = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
        found[name + _ENDS] = torch.tensor([len(row) for row in rows]).cumsum(0)
    told = {name: packing.model_dump() for name, packing in packings.items()}
    return found, ({KEY: json.dumps(told)} if told else {})


class PackedStacks:
    """The packed stacks of a file, row by row.

    Args:
        metadata: Of the file.
        tensor: Reads one of the file's tensors by name.

    Raises:
        ValueError: The metadata is not what :func:`pack` writes.
    """

    def __init__(self, metadata: Mapping[str, str] | None, tensor: Callable[[str], Tensor]) -> None:
        self._packings = _PACKINGS.validate_json((metadata or {}).get(KEY, "{}"))
        self._tensor = tensor
        self._blobs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for packing in self._packings.values():
            if isinstance(packing, Masked) and not isinstance(
                self._packings.get(packing.of), Narrow
            ):
                raise ValueError("a masked stack of one that is not there")

    def __contains__(self, name: str) -> bool:
        return name in self._packings

    def row(self, name: str, number: int) -> Tensor:
        """One row of a stack, as it was recorded.

        Raises:
            ValueError: It is damaged, or its name is not that of a stack.
        """
        import torch

        dtype, shape = _kind(name)
        values = self._values(name, number, int(np.prod(shape, dtype=np.int64)))
        return torch.from_numpy(values).to(dtype).reshape(shape)

    def _values(self, name: str, number: int, count: int) -> np.ndarray:
        packing = self._packings[name]
        if isinstance(packing, Narrow):
            numbers = self._numbers(name, number, count, packing.bytes)
            return numbers.astype(np.int64) + packing.least
        left_out = self._numbers(name, number, count, 1).astype(bool)
        return np.where(left_out, packing.value, self._values(packing.of, number, count))

    def _numbers(self, name: str, number: int, count: int, size: int) -> np.ndarray:
        if name not in self._blobs:
            self._blobs[name] = self._tensor(name).numpy(), self._tensor(name + _ENDS).numpy()
        blob, ends = self._blobs[name]
        begin = int(ends[number - 1]) if number else 0
        try:
            text = pa.decompress(
                pa.py_buffer(blob[begin : int(ends[number])]),
                decompressed_size=count * size,
                codec=_CODEC,
            )
        except (pa.ArrowException, OSError) as error:
            raise ValueError(str(error)) from None
        planes = np.frombuffer(text, np.uint8).reshape(size, count)
        unit = _UNITS[size.bit_length() - 1]
        return np.ascontiguousarray(planes.T).view(np.dtype(unit).newbyteorder("<")).ravel()


def _packed(
    array: np.ndarray, others: Mapping[str, np.ndarray]
) -> tuple[Narrow | Masked | None, np.ndarray]:
    """How an array of int64 is packed, and the numbers that are kept of it."""
    least, most = int(array.min()), int(array.max())
    for name, other in others.items():
        differs = array != other
        if least == most:
            break  # the compressor leaves nothing of it
        if not differs.any():
            return Masked(of=name, value=0), differs.astype(np.uint8)
        value = int(array[differs][0])
        if (array[differs] == value).all():
            return Masked(of=name, value=value), differs.astype(np.uint8)
    for unit in _UNITS:
        if most - least <= np.iinfo(unit).max:
            size: Literal[1, 2, 4] = np.dtype(unit).itemsize  # type: ignore[assignment]
            return Narrow(least=least, bytes=size), (array - least).astype(unit)
    return None, array


def _compressed(row: np.ndarray) -> bytes:
    """A row's numbers, all first bytes before all second ones, compressed."""
    size = row.dtype.itemsize
    little = row.astype(row.dtype.newbyteorder("<"), copy=False)
    planes = np.ascontiguousarray(little.view(np.uint8).reshape(-1, size).T)
    return pa.compress(pa.py_buffer(planes), codec=_CODEC, asbytes=True)


def _kind(name: str) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape of the rows of a stack, from its name."""
    import torch

    _, kind, *sides = name.split(" ")
    dtype = getattr(torch, kind, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {kind!r}")
    return dtype, tuple(int(side) for side in sides[0].split("x")) if sides else ()


def _is_data(name: str) -> bool:
    """Whether a stack holds tensors of batches; random states are read as they lie."""
    return name.split(" ")[0].rpartition(".")[2].isdigit()


def _beside(one: str, other: str) -> bool:
    """Whether two stacks are of the same micro-batch, dtype and shape."""
    (place, *kind), (there, *same) = one.split(" "), other.split(" ")
    return kind == same and place.partition(".")[0] == there.partition(".")[0]
