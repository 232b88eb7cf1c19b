"""Safetensors files tensor by tensor: mapped into memory for reading, written in blocks.

The format: 8 bytes with the length of the header (little endian), the header as JSON padded with
spaces to a multiple of 8 bytes, then the tensors' raw bytes without gaps. ``safetensors`` itself
writes only what is in memory as a whole, and what it maps has to fit into memory and swap.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stagelens.contracts import RunError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Linux counts a private mapping as memory that may be needed, and refuses a file larger than
# memory, unless MAP_NORESERVE is set. Python has a name for it from 3.13 on.
_NORESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as a header describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What precedes the tensors in a safetensors file.

    Attributes:
        tensors: By name, in the order of the file.
        metadata: Texts by name; ``transformers`` asks for ``format``.
        size: Its length in bytes, and so where the first tensor begins.
    """

    tensors: Mapping[str, TensorFacts]
    metadata: Mapping[str, str]
    size: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        RunError: The file is damaged, not safetensors, or of a dtype that torch lacks.
    """
    try:
        with safe_open(path, framework="numpy"):  # checks lengths, offsets and overlaps
            pass
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            content = json.loads(file.read(length))
        metadata = content.pop("__metadata__", {})
        # JSON may list them in any order; map_tensors relies on that of the bytes.
        entries = sorted(content.items(), key=lambda item: item[1]["data_offsets"])
        tensors = {
            name: TensorFacts(_DTYPES[facts["dtype"]], tuple(facts["shape"]))
            for name, facts in entries
        }
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged or not a safetensors file ({error}); restore it"
        ) from None
    except KeyError as error:
        raise RunError(f"{path} holds numbers of kind {error}, which torch does not have") from None
    return Header(tensors, metadata, 8 + length)


def map_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, as views that read the file when they are used.

    A tensor that is changed in place becomes separate memory; the file does not change.

    Raises:
        RunError: See :func:`read_header`.
    """
    header = read_header(path)
    tensors, place = {}, header.size
    mapped = _mapped(path)
    for name, facts in header.tensors.items():
        count = math.prod(facts.shape)
        if count:
            flat = torch.frombuffer(mapped, dtype=facts.dtype, count=count, offset=place)
            tensors[name] = flat.view(facts.shape)
        else:  # torch.frombuffer refuses a count of 0
            tensors[name] = torch.empty(facts.shape, dtype=facts.dtype)
        place += facts.bytes
    return tensors


def _mapped(path: Path) -> mmap.mmap:
    # Writable, but copied on write: torch warns of read-only buffers, and tensors may be changed.
    with open(path, "rb") as file:
        if sys.platform == "win32":
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return mmap.mmap(
            file.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | _NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )


def write_tensors(
    file: IO[bytes],
    tensors: Mapping[str, TensorFacts],
    blocks: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file, holding no more than one block of it at a time.

    Args:
        file: Open for writing, at its start.
        tensors: What the file will hold, in this order.
        blocks: Tensor name to its values in order, in pieces of any size, of its dtype.
        metadata: Texts for the header.

    Raises:
        ValueError: The pieces of a tensor are not of its dtype, or do not fill its shape.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, facts in tensors.items():
        entries[name] = {
            "dtype": _NAMES[facts.dtype],
            "shape": list(facts.shape),
            "data_offsets": [place, place + facts.bytes],
        }
        place += facts.bytes
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    # Tensors begin at a multiple of 8 bytes, so that mapped 64-bit values are aligned.
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    for name, facts in tensors.items():
        written = 0
        for block in blocks(name):
            if block.dtype != facts.dtype:
                raise ValueError(f"{name} is {facts.dtype}, but a piece of it is {block.dtype}")
            # As bytes, because numpy has no bfloat16; flat first, for scalars.
            written += file.write(block.contiguous().view(-1).view(torch.uint8).numpy().data)
        if written != facts.bytes:
            raise ValueError(f"{name} takes {facts.bytes} bytes, but its pieces have {written}")
