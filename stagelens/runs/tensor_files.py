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

from .scratch import scratch
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
    """Write safetensors files, several parts at a time, and wait until they are on the disk.

    Args:
        files: What each will hold, in this order; none of them exists.
        metadata: Texts for the header of each.
        not_finite: Called once if a floating value is NaN or infinite; may raise.
        written: Called as the work proceeds, with the number of the file, from 0 on, and the bytes
            written since the last call.

    Raises:
        OSError: They cannot be written.
    """
    finite, threads = True, torch.get_num_threads()
    workers = min(_WORKERS, cores.usable()) if _BY_PLACE else 1
    # torch's own threads would only wait for each other where all cores have work.
    pool = ThreadPoolExecutor(workers, "write", torch.set_num_threads, (1,))
    try:
        with ThreadPoolExecutor(1, "flush") as beside, pool:
            flushes = []
            for number, (path, tensors) in enumerate(files.items()):
                unflushed = 0
                with open(path, "xb", buffering=0) as file:
                    pieces = _pieces(file.fileno(), tensors, metadata)
                    for piece, good in _in_order(pool, pieces, 2 * workers):
                        if finite and not good:
                            finite = False
                            not_finite()
                        written(number, piece.bytes)
                        unflushed += piece.bytes
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

_PIECE, _PART = 1 << 21, 1 << 17
"""Elements that a worker is given at a time, and of these those that it computes at a time: few
enough for the processor's cache, enough for the others to work meanwhile."""

_FLUSHED = 1 << 28
"""Bytes after which the disk is told to begin: it need not wait for the processor."""

_BY_PLACE = hasattr(os, "pwrite")  # Windows has none


@dataclass(frozen=True)
class _Piece:
    """Elements of one tensor, and where they go: a file's descriptor, and a place in it."""

    read: Reader
    dtype: torch.dtype
    elements: range
    file: int
    place: int

    @property
    def bytes(self) -> int:
        return len(self.elements) * self.dtype.itemsize


def _pieces(
    file: int, tensors: Mapping[str, Source], metadata: Mapping[str, str]
) -> Iterator[_Piece]:
    """Write the header, and say what has to be written after it."""
    header = _header({name: source.facts for name, source in tensors.items()}, metadata)
    _put(file, memoryview(header), 0)
    place = len(header)
    for source in tensors.values():
        read, dtype, elements = source.reader(), source.facts.dtype, range(source.facts.count)
        for start in elements[::_PIECE]:
            piece = _Piece(read, dtype, elements[start : start + _PIECE], file, place)
            yield piece
            place += piece.bytes


def _in_order(pool: Executor, pieces: Iterable[_Piece], most: int) -> Iterator[tuple[_Piece, bool]]:
    """Have pieces written, not more than some at a time; yields if their values are all finite."""
    under_way: deque[tuple[_Piece, Future[bool]]] = deque()
    for piece in pieces:
        if len(under_way) == most:
            first, done = under_way.popleft()
            yield first, done.result()
        under_way.append((piece, pool.submit(_write, piece)))
    for first, done in under_way:
        yield first, done.result()


def _write(piece: _Piece) -> bool:
    """Compute and write it; returns whether its values are all finite."""
    finite, place = True, piece.place
    for start in piece.elements[::_PART]:
        with scratch(min(_PART, piece.elements.stop - start), piece.dtype) as (values,):
            piece.read(start, values)
            if piece.dtype.is_floating_point:
                finite &= all_finite(values)
            data = _bytes(values)
            _put(piece.file, data, place)
            place += len(data)
    return finite


def _put(file: int, data: memoryview, place: int) -> None:
    """Write bytes at a place in a file."""
    while data:
        # Where there is no pwrite, one worker writes in order.
        done = os.pwrite(file, data, place) if _BY_PLACE else os.write(file, data)
        data, place = data[done:], place + done


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
