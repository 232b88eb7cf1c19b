"""Writing safetensors files: in order, or several parts at a time.

``safetensors`` itself writes only what is in memory as a whole.
"""

from __future__ import annotations

import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from stagelens.compute import cores

from .states import all_finite
from .streaming import NAMES, Reader, TensorFacts


def _header(tensors: Mapping[str, TensorFacts], metadata: Mapping[str, str]) -> bytes:
    """What precedes the tensors of a file, which follow without gaps."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, facts in tensors.items():
        entries[name] = {
            "dtype": NAMES[facts.dtype],
            "shape": list(facts.shape),
            "data_offsets": [place, place + facts.bytes],
        }
        place += facts.bytes
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    # Tensors begin at a multiple of 8 bytes, so that mapped 64-bit values are aligned.
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def write_tensors(
    file: IO[bytes],
    tensors: Mapping[str, TensorFacts],
    blocks: Callable[[str], Iterable[Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file in order, holding no more than one block of it at a time.

    Args:
        file: Open for writing, at its start.
        tensors: What the file will hold, in this order.
        blocks: Tensor name to its values in order, in pieces of any size, of its dtype.
        metadata: Texts for the header.

    Raises:
        ValueError: The pieces of a tensor are not of its dtype, or do not fill its shape.
    """
    file.write(_header(tensors, metadata))
    for name, facts in tensors.items():
        written = 0
        for block in blocks(name):
            if block.dtype != facts.dtype:
                raise ValueError(f"{name} is {facts.dtype}, but a piece of it is {block.dtype}")
            written += file.write(_bytes(block.contiguous()))
            del block  # before the next one is made
        if written != facts.bytes:
            raise ValueError(f"{name} takes {facts.bytes} bytes, but its pieces have {written}")


def _bytes(block: Tensor) -> memoryview:
    # As bytes, because numpy has no bfloat16; flat first, for scalars.
    return block.view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Source:
    """A tensor to write: what it is in the file, and how it is read or computed."""

    facts: TensorFacts
    reader: Callable[[], Reader]


def write_files(
    files: Mapping[Path, Mapping[str, Source]],
    metadata: Mapping[str, str],
    not_finite: Callable[[], object],
    written: Callable[[int, int], object],
) -> None:
    """Write safetensors files, of which several parts are computed at a time, through to the disk.

    Args:
        files: What each will hold, in this order; none of them exists.
        metadata: Texts for the header of each.
        not_finite: Called once if a floating value is NaN or infinite; may raise.
        written: Called as the work proceeds, with the number of the file, from 0 on, and the bytes
            written since the last call.

    Raises:
        OSError: They cannot be written.
    """
    finite, threads, workers = True, torch.get_num_threads(), min(_WORKERS, cores.usable())
    # torch's own threads would only wait for each other where all cores have work.
    pool = ThreadPoolExecutor(workers, "compute", torch.set_num_threads, (1,))
    try:
        with ThreadPoolExecutor(1, "flush") as beside, pool:
            flushes = []
            for number, (path, tensors) in enumerate(files.items()):
                unflushed = 0
                with open(path, "xb") as file:
                    facts = {name: source.facts for name, source in tensors.items()}
                    file.write(_header(facts, metadata))
                    pieces = _pieces(tensors.values())
                    for values, good in _in_order(pool, pieces, 2 * workers):
                        if finite and not good:
                            finite = False
                            not_finite()
                        size = file.write(_bytes(values))
                        written(number, size)
                        unflushed += size
                        if unflushed >= _FLUSHED:
                            flushes.append(beside.submit(_flush, path))
                            unflushed = 0
                flushes.append(beside.submit(_flush, path))
            for flush in flushes:
                flush.result()
    finally:
        torch.set_num_threads(threads)


_WORKERS = 4
"""More would mostly wait for the disk, and for each other at the interpreter's lock."""

_PIECE, _PART = 1 << 20, 1 << 18
"""Elements that a worker is given at a time, and of these those that it computes at a time: few
enough for the processor's cache, enough for the others to work meanwhile."""

_FLUSHED = 1 << 28
"""Bytes after which the disk is told to begin: it need not wait for the processor."""


@dataclass(frozen=True)
class _Piece:
    """Elements of one tensor."""

    read: Reader
    dtype: torch.dtype
    elements: range


def _pieces(sources: Iterable[Source]) -> Iterator[_Piece]:
    for source in sources:
        read, elements = source.reader(), range(source.facts.count)
        for start in elements[::_PIECE]:
            yield _Piece(read, source.facts.dtype, elements[start : start + _PIECE])


def _in_order(pool: Executor, pieces: Iterable[_Piece], most: int) -> Iterator[tuple[Tensor, bool]]:
    """Compute pieces, some at a time; each is there until the next one is asked for.

    One thread writes them all: a file lets nobody else in while it is written to.

    Yields:
        (n,) values of a piece, and whether all are finite.
    """
    under_way: deque[tuple[Tensor, Tensor, Future[bool]]] = deque()
    for piece in pieces:
        if len(under_way) == most:
            memory, values, done = under_way.popleft()
            yield values, done.result()
        else:
            memory = torch.empty(_PIECE * _LARGEST, dtype=torch.uint8)
        values = memory[: len(piece.elements) * piece.dtype.itemsize].view(piece.dtype)
        under_way.append((memory, values, pool.submit(_compute, piece, values)))
    for _, values, done in under_way:
        yield values, done.result()


_LARGEST = 8
"""Bytes that a number takes at most."""


def _compute(piece: _Piece, out: Tensor) -> bool:
    """Compute its values; returns whether they are all finite."""
    finite = True
    for start, part in zip(piece.elements[::_PART], out.split(_PART), strict=True):
        piece.read(start, part)
        finite &= not part.is_floating_point() or all_finite(part)
    return finite


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
