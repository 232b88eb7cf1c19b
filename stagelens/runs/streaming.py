"""Safetensors files tensor by tensor: mapped into memory, or read in blocks.

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Protocol

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
NAMES = {dtype: name for name, dtype in _DTYPES.items()}
"""What the format calls them."""

# Linux counts a private mapping as memory that may be needed, and refuses a file larger than
# memory, unless MAP_NORESERVE is set. Python has a name for it from 3.13 on.
_NORESERVE = 0x4000 if sys.platform == "linux" else 0

BLOCK = 1 << 15
"""Elements summed at a time: however large a tensor, no more memory is taken; and torch would share
out more among threads, which cost more than they save on a processor with other work to do. Sums
over a tensor depend on it in their last digits."""


@dataclass(frozen=True)
class TensorFacts:
    """A tensor as a header describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self.count * self.dtype.itemsize


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


class Reader(Protocol):
    """Reads or computes any part of one tensor; several threads may call it at the same time."""

    def __call__(self, start: int, out: Tensor) -> None:
        """Fill ``out``, (n,) of the tensor's dtype, with its n values from ``start`` on."""


class Streamed(Mapping[str, Tensor]):
    """Named tensors that can be read in parts, so that no whole one has to be in memory."""

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
    def reader(self, name: str) -> Reader:
        """What reads or computes any part of one tensor.

        Raises:
            RunError: It cannot be had.
        """

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The values of one tensor, in order, in blocks of (n,) with n at most ``BLOCK``."""
        facts, read = self.facts(name), self.reader(name)
        for start in range(0, max(facts.count, 1), BLOCK):  # one, if it is empty
            block = torch.empty(min(BLOCK, facts.count - start), dtype=facts.dtype)
            read(start, block)
            yield block


def computed(facts: TensorFacts, read: Reader) -> Tensor:
    """One whole tensor in memory of its own, without more than a block beside it."""
    tensor = torch.empty(facts.shape, dtype=facts.dtype)
    flat = tensor.view(-1)
    for start in range(0, facts.count, BLOCK):
        read(start, flat[start : start + BLOCK])
    return tensor


def reader_of(weights: Mapping[str, Tensor], name: str) -> Reader:
    """What reads or computes any part of one tensor; see :meth:`Streamed.reader`."""
    return weights.reader(name) if isinstance(weights, Streamed) else _copying(weights[name])


def _copying(tensor: Tensor) -> Reader:
    flat = tensor.detach().reshape(-1)

    def read(start: int, out: Tensor) -> None:
        out.copy_(flat[start : start + len(out)])

    return read


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

    def reader(self, name: str) -> Reader:
        facts, place = self._facts[name], self._places[name]
        if self._has_view(name) or not facts.bytes:
            return _copying(self[name])

        # Read instead of mapped: pages of a mapping count as memory of the process.
        def read(start: int, out: Tensor) -> None:
            memory = out.view(torch.uint8).numpy().data
            found = os.preadv(self._file, [memory], place + start * facts.dtype.itemsize)
            if found != memory.nbytes:
                raise RunError(f"{self.path} was cut short while it was read; restore it")

        return read

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

    def reader(self, name: str) -> Reader:
        file, there = self._places[name]
        return file.reader(there)
