"""Safetensors files tensor by tensor: mapped into memory for reading, written in blocks.

The format: 8 bytes with the length of the header (little endian), the header as JSON padded with
spaces to a multiple of 8 bytes, then the tensors' raw bytes without gaps. ``safetensors`` itself
writes only what is in memory as a whole, and what it maps has to fit into memory and swap.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import sys
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
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

BLOCK = 1 << 15
"""Elements computed at a time: however large a tensor, no more memory is taken; they stay in the
processor's cache; and torch would share out more among threads, which cost more than they save on a
processor with other work to do."""


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
        # JSON may list them in any order; offsets are counted in that of the bytes.
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


class Streamed(Mapping[str, Tensor]):
    """Named tensors that can be read in blocks, so that no whole one has to be in memory."""

    @abstractmethod
    def facts(self, name: str) -> TensorFacts:
        """What a tensor is, without reading it."""

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read or compute the tensor.
        try:
            self.facts(str(name))
        except KeyError:
            return False
        return True

    @abstractmethod
    def blocks(self, name: str) -> Iterator[Tensor]:
        """The values of one tensor, in order, in blocks of (n,) with n at most ``BLOCK``."""


def flat_blocks(weights: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
    """The values of one tensor, in order, in blocks of (n,), with the same n for all weights."""
    if isinstance(weights, Streamed):
        return weights.blocks(name)
    return iter(weights[name].reshape(-1).split(BLOCK))


def side_by_side(name: str, *weights: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The values of one tensor in several models, block by block: a tuple of (n,), one of each.

    What is summed over a tensor takes the memory of a few blocks in this way, whatever its size.

    Raises:
        ValueError: They are not of the same size.
    """
    return zip(*(flat_blocks(each, name) for each in weights), strict=True)


def facts_of(weights: Mapping[str, Tensor], name: str) -> TensorFacts:
    """What a tensor is; one that is computed when it is read is not."""
    if isinstance(weights, Streamed):
        return weights.facts(name)
    tensor = weights[name]
    return TensorFacts(tensor.dtype, tuple(tensor.shape))


def in_order(weights: Mapping[str, Tensor]) -> dict[str, TensorFacts]:
    """What tensors are, in the order in which they are written: each begins where it can be read.

    That is at a multiple of its numbers' size, as those of larger numbers come first.
    """
    facts = {name: facts_of(weights, name) for name in weights}
    return dict(sorted(facts.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))


class MappedTensors(Streamed):
    """The tensors of a safetensors file, read when they are used.

    A tensor is a view of the file mapped into memory; one that is changed in place becomes separate
    memory, and the file does not change.

    Raises:
        RunError: See :func:`read_header`.
    """

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path, self._facts = path, header.tensors
        ends = accumulate((facts.bytes for facts in header.tensors.values()), initial=header.size)
        self._places = dict(zip(header.tensors, ends, strict=False))
        # Kept open, so that it stays this file even if another takes its place.
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        self._views: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._views:
            facts, count = self._facts[name], math.prod(self._facts[name].shape)
            if count:
                flat = torch.frombuffer(
                    self._mapped, dtype=facts.dtype, count=count, offset=self._places[name]
                )
                self._views[name] = flat.view(facts.shape)
            else:  # torch.frombuffer refuses a count of 0
                self._views[name] = torch.empty(facts.shape, dtype=facts.dtype)
        return self._views[name]

    def facts(self, name: str) -> TensorFacts:
        return self._facts[name]

    def blocks(self, name: str) -> Iterator[Tensor]:
        facts, place = self._facts[name], self._places[name]
        if self._has_view(name) or not facts.bytes:
            yield from self[name].view(-1).split(BLOCK)
            return
        # Read instead of mapped: pages of a mapping count as memory of the process.
        step, end = BLOCK * facts.dtype.itemsize, place + facts.bytes
        for start in range(place, end, step):
            block = bytearray(min(step, end - start))
            if os.preadv(self._file, [block], start) != len(block):
                raise RunError(f"{self.path} was cut short while it was read; restore it")
            yield torch.frombuffer(block, dtype=facts.dtype)

    def _has_view(self, name: str) -> bool:
        """Whether a tensor has to be read through its view: it may have been changed."""
        if not hasattr(os, "preadv"):
            return True
        view = self._views.get(name)
        return view is not None and (view.is_inference() or view._version > 0)

    @cached_property
    def _mapped(self) -> mmap.mmap:
        # Writable, but copied on write: torch warns of read-only buffers, and tensors may change.
        if sys.platform == "win32":
            return mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY)
        return mmap.mmap(
            self._file,
            0,
            flags=mmap.MAP_PRIVATE | _NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )


class TemporaryTensors(MappedTensors):
    """The tensors of a file that is deleted with this object, unless it was given another place."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._there = True
        weakref.finalize(self, path.unlink, missing_ok=True)

    def move(self, path: Path) -> bool:
        """Give the file another place on the same file system; whether it had none before."""
        if self._there:
            os.replace(self.path, path)
            self._there = False
            return True
        return False


class Gathered(Streamed):
    """Tensors of several files, by names of one's own.

    Args:
        places: Name to the file that holds the tensor, and its name there.
    """

    def __init__(self, places: Mapping[str, tuple[MappedTensors, str]]) -> None:
        self._places = places

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Gathered:
        """Every tensor of some files, by its own name."""
        files = [MappedTensors(path) for path in paths]
        return cls({name: (file, name) for file in files for name in file})

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Tensor:
        file, there = self._places[name]
        return file[there]

    def facts(self, name: str) -> TensorFacts:
        file, there = self._places[name]
        return file.facts(there)

    def blocks(self, name: str) -> Iterator[Tensor]:
        file, there = self._places[name]
        return file.blocks(there)


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
            del block  # before the next one is made
        if written != facts.bytes:
            raise ValueError(f"{name} takes {facts.bytes} bytes, but its pieces have {written}")
